"""inspect_ai's own reader opens the logs of an evaluation."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from rlt.results.inspect_log import write_logs

PYTHON = Path(__file__).resolve().parents[2] / ".venv-harness" / "bin" / "python"
READ = """
import json, sys
from inspect_ai.log import read_eval_log
log = read_eval_log(sys.argv[1])
first, second = log.samples
print(json.dumps([log.status, first.scores["math"].value, second.scores["math"].value, first.input, second.input]))
"""


def test_inspect_reads_samples_and_scores_and_no_private_question(tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.skip("`make harness` makes its environment, .venv-harness")
    row = {
        "benchmark": "b", "version": 1, "question_id": "q/1", "seed": 5, "prompt_sha256": "x", "question_sha256": "y",
        "answer": "4", "task": "math", "response": r"\boxed{4}", "prompt_tokens": 3, "completion_tokens": 5,
        "finish_reason": "stop", "extracted": "4", "error": None,
    }  # fmt: skip
    rows = [{**row, "key": "a", "sample": 0, "correct": True}, {**row, "key": "b", "sample": 1, "correct": False}]
    numbers = {
        "pass@1": 0.5, "standard_error": None, "interval": [0, 1], "samples": 2, "task": "math", "version": 1,
        "fingerprint": "f",
    }  # fmt: skip
    results = {
        "model": "m", "preset": None, "engine": "hf", "format": "stratos", "system_prompt": "format", "instruction": "none",
        "sampling": {"max_tokens": 8, "temperature": 0.7, "top_p": 1.0, "top_k": None, "seed": 0},
        "benchmarks": {"b": numbers}, "sources": {"b": "s"},
    }  # fmt: skip
    (path,) = write_logs(tmp_path, rows, results, {"a": "2+2?"})
    done = subprocess.run([PYTHON, "-c", READ, path], capture_output=True, text=True, check=True, cwd=tmp_path)
    status, first, second, shown, withheld = json.loads(done.stdout.splitlines()[-1])
    assert (status, first, second, shown) == ("success", "C", "I", "2+2?")
    assert withheld.startswith("withheld")
