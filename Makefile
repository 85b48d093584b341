# Two commands on a fresh machine: `make quickstart` and `make test`. Both make .venv if it is not there.
PYTHON ?= python3
VENV := .venv
RLT := $(VENV)/bin/rlt

.PHONY: quickstart test browser-tests screenshots install check format vllm-server clean

quickstart: $(VENV)/installed  ## the whole method on two CPU cores, in minutes
	$(RLT) run recipes/quickstart/recipe.yaml

test: $(VENV)/installed-dev  ## all tests
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python -m pytest -n 2 --dist loadfile

browser-tests: $(VENV)/installed-browser  ## the pages of `rlt view` in Chromium
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 tests/browser

screenshots: $(VENV)/installed-browser  ## docs/view-light.png and docs/view-dark.png
	$(VENV)/bin/python -m tests.browser.screenshots docs

install: $(VENV)/installed

check: $(VENV)/installed-dev  ## formatting, lint, types, layers
	$(VENV)/bin/ruff format --check rlt tests benchmarks examples
	$(VENV)/bin/ruff check rlt tests benchmarks examples
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/installed-dev
	$(VENV)/bin/ruff format rlt tests benchmarks examples
	$(VENV)/bin/ruff check --fix rlt tests benchmarks examples

vllm-server:  ## an environment of its own with vLLM for the CPU, for tests/servers
	bash scripts/make_vllm_server.sh

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed tests/tokenizers.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peft,ray,dev]'
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/tokenizers.txt
	touch $@

$(VENV)/installed-browser: $(VENV)/installed-dev scripts/install_browser.sh
	bash scripts/install_browser.sh $(VENV)
	touch $@

clean:
	rm -rf $(VENV) .venv-vllm .browser build dist *.egg-info
