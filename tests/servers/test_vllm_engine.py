"""The `vllm` engine itself, on the CPU: a process of the server's environment that writes completions without a server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from vllm_process import ABSENT, PYTHON, STARTS_WITHIN, make_qwen

from rlt.config import EngineOptions
from rlt.engines.base import Request, Sampling
from rlt.engines.build import build_engine

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]
PROMPTS = [f"What is {i} + {i}?" * (1 + i % 3) for i in range(8)]

# Prints one JSON object; what vLLM prints goes elsewhere.
SCRIPT = """
import dataclasses, json, os, sys

def main():
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from rlt.config import EngineOptions
    from rlt.errors import DataError
    from rlt.engines.base import Request, Sampling
    from rlt.engines.build import build_engine

    model, prompts = sys.argv[1], json.loads(sys.argv[2])
    options = {"max_model_len": 512, "max_num_seqs": 4, "enforce_eager": True}
    engine = build_engine(EngineOptions(engine="vllm", engine_options=options), model, dtype="float32")
    requests = [Request(str(i), prompt, i) for i, prompt in enumerate(prompts)]
    greedy = [dataclasses.asdict(c) for c in engine.generate(requests, Sampling(12, temperature=0))]

    window, engine.window, drawn = engine.window, 3, []
    source = (drawn.append(request.key) or request for request in requests)
    next(engine.generate(source, Sampling(4, temperature=1.0)))
    at_first = len(drawn)

    params, before = engine.params, []
    def refusing(request, *rest):
        if request.key == "5":
            raise ValueError("no such token")
        return params(request, *rest)
    engine.params = refusing
    try:
        for completion in engine.generate(requests, Sampling(4, temperature=0)):
            before.append(completion.key)
    except DataError as error:
        said = str(error)
    (full,) = engine.generate([Request("full", "x" * 600, 0)], Sampling(4))
    result = {"greedy": greedy, "at_first": at_first, "before": before, "said": said, "full": dataclasses.asdict(full),
              "context": engine.context_length, "name": engine.name, "window": window}
    engine.close()
    json.dump(result, output)
    output.close()

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PYTHON.exists():
        pytest.skip(ABSENT)
    return make_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def written(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script above prints."""
    script = tmp_path_factory.mktemp("script") / "embedded.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING",
    }  # fmt: skip
    process = subprocess.Popen(
        [str(PYTHON), str(script), str(model), json.dumps(PROMPTS)], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=STARTS_WITHIN)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the session that was started above: vLLM has a process of its own
        raise
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output)


def test_greedy_tokens_and_log_probs_are_those_of_the_transformers_engine(written, model):
    local = build_engine(EngineOptions(), str(model), dtype="float32")
    requests = [Request(str(i), prompt, i) for i, prompt in enumerate(PROMPTS)]
    ours = {c["key"]: c for c in written["greedy"]}
    for completion in local.generate(requests, Sampling(12, temperature=0)):
        theirs = ours[completion.key]
        assert tuple(theirs["token_ids"]) == completion.token_ids
        assert (theirs["text"], theirs["finish_reason"]) == (completion.text, completion.finish_reason)
        assert theirs["prompt_tokens"] == completion.prompt_tokens
        assert theirs["logprob_sum"] == pytest.approx(completion.logprob_sum, abs=1e-3)
        assert theirs["seed"] is None


def test_requests_are_drawn_as_places_become_free(written):
    assert written["at_first"] <= 3
    assert written["window"] == 4 + 64  # max_num_seqs, and what waits behind


def test_what_is_under_way_comes_before_a_refusal_which_names_its_request(written):
    assert sorted(written["before"]) == ["0", "1", "2", "3", "4"]
    assert written["said"].startswith("request 5: vLLM rejects it (no such token)")


def test_a_prompt_that_fills_the_context_gets_no_token(written):
    assert (written["full"]["finish_reason"], written["full"]["completion_tokens"]) == ("length", 0)
    assert written["context"] == 512
    assert written["name"].startswith("vllm 0.")
