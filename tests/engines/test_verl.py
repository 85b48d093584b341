"""rlt's adapter inside verl's own code, in verl's environment: dataset, agent loop worker, reward manager, configuration."""

# ruff: noqa: F811 - the fixtures of tests/serve
from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
from serve.conftest import CLOSE, FMT, folder, served  # noqa: F401

from rlt.data.rows import write_rows
from rlt.integrations.prompts import main as write_prompts

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-verl" / "bin" / "python"
ABSENT = ".venv-verl is missing: bash scripts/make_engine_verl.sh"
PROBLEMS = [{"question": f"What is {i} + 2?", "solution": f"It is {i + 2}."} for i in range(3)]
COMPLETION = "So we add." + CLOSE


def verl(**asked: object):
    """What verl_side.py answers; a RuntimeError with its last line where it fails."""
    if not PYTHON.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(ABSENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [str(PYTHON), "tests/engines/verl_side.py", json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    found = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    if not found:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(found[0].removeprefix("ANSWER "))


def changes(folder: Path, url: str, loop: Path, **more: object) -> list[str]:
    loop.write_text(f"- name: rlt\n  _target_: rlt.integrations.verl.TeacherAgentLoop\n  url: {url}\n  retry_for: 1\n")
    values = {
        "actor_rollout_ref.model.path": folder / "teacher", "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.temperature": 0.7, "actor_rollout_ref.rollout.agent.agent_loop_config_path": loop,
        "data.max_prompt_length": 1024, "data.max_response_length": 64,
        "reward.custom_reward_function.path": "pkg://rlt.integrations.verl",
        "+reward.custom_reward_function.reward_kwargs.url": url,
        "+reward.custom_reward_function.reward_kwargs.retry_for": 1, **more,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in values.items()]


@pytest.fixture
def rows(folder, tmp_path):
    write_rows(tmp_path / "problems.jsonl", PROBLEMS)
    arguments = ["--data", str(tmp_path / "problems.jsonl"), "--model", str(folder / "teacher")]
    arguments += ["--format", str(folder / "format.yaml"), "--kind", "verl", "--output", str(tmp_path / "rows.jsonl")]
    assert write_prompts(arguments) == 0
    return tmp_path / "rows.jsonl"


def test_the_agent_loop_continues_rlts_prompt_and_gets_the_reward_of_its_tokens(folder, served, rows, tmp_path):
    got = verl(
        what="rollout", rows=str(rows), completion=COMPLETION, logprobs=True, validate=False, loop="rlt",
        changes=changes(folder, served.url, tmp_path / "loop.yaml"),
    )  # fmt: skip
    prompts = [json.loads(line)["extra_info"]["teacher_prompt"] for line in rows.read_text().splitlines()]
    assert got["asked"] == prompts
    assert all(prompt.endswith(FMT.tags.explanation.open + FMT.padding) for prompt in prompts)
    count = len(got["ids"])
    sampled = {"token_ids": got["ids"], "logprobs": [-1.0] * count, "temperature": 0.7}
    _, expected = served.ask("/score", {"rows": [problem | sampled for problem in PROBLEMS]})
    assert got["rewards"] == pytest.approx([row["reward"] for row in expected["rows"]], rel=1e-5)
    assert got["extra"]["rlt/r_kl"] == pytest.approx([row["r_kl"] for row in expected["rows"]], rel=1e-5)
    assert got["placed"] == [[count - 1]] * 3


def test_in_greedy_validation_the_services_teacher_gives_r_kl(folder, served, rows, tmp_path):
    got = verl(
        what="rollout", rows=str(rows), completion=COMPLETION, logprobs=True, validate=True, loop="rlt",
        changes=changes(folder, served.url, tmp_path / "loop.yaml"),
    )  # fmt: skip
    _, expected = served.ask("/score", {"rows": [problem | {"token_ids": got["ids"]} for problem in PROBLEMS]})
    assert got["rewards"] == pytest.approx([row["reward"] for row in expected["rows"]], rel=1e-5)


def test_verls_reward_manager_gets_the_reward_of_the_text(folder, served, rows, tmp_path):
    got = verl(
        what="managed",
        rows=str(rows),
        completion=COMPLETION,
        changes=changes(folder, served.url, tmp_path / "loop.yaml"),
    )
    _, expected = served.ask("/score", {"rows": [problem | {"completion": COMPLETION} for problem in PROBLEMS]})
    for one, row in zip(got, expected["rows"], strict=True):
        assert one["reward_score"] == pytest.approx(row["reward"], rel=1e-5)
        assert one["reward_extra_info"]["rlt/r_ss"] == pytest.approx(row["r_ss"], rel=1e-5)


@pytest.mark.parametrize(
    ("more", "asked", "words"),
    [
        ({"url": "http://127.0.0.1:9"}, {}, "Start it: rlt serve"),
        ({"actor_rollout_ref.rollout.temperature": 1.0}, {}, "this service scores at 0.7"),
        ({"actor_rollout_ref.rollout.top_p": 0.9}, {}, "cut the distribution"),
        ({"data.max_prompt_length": 8}, {}, "data.max_prompt_length is 8. Raise it"),
        ({}, {"logprobs": False}, "set rollout.calculate_log_probs to true"),
    ],
    ids=["no service", "temperature", "top-p", "prompt", "no log-probs"],
)
def test_what_would_spoil_the_reward_ends_the_run(folder, served, rows, tmp_path, more, asked, words):
    more = dict(more)
    url = more.pop("url", served.url)
    common = {
        "what": "rollout",
        "rows": str(rows),
        "completion": COMPLETION,
        "logprobs": True,
        "validate": False,
        "loop": "rlt",
    }
    with pytest.raises(RuntimeError, match=words):
        verl(**{**common, **asked}, changes=changes(folder, url, tmp_path / "loop.yaml", **more))


@pytest.mark.parametrize(("name", "gpus"), [("one-node", 4), ("four-nodes", 16)])
def test_verl_accepts_the_shipped_configurations(folder, name, gpus):
    trainer = verl(what="config", recipe=name, changes=[f"actor_rollout_ref.model.path={folder / 'teacher'}"])
    assert trainer["nnodes"] * trainer["n_gpus_per_node"] == gpus
    assert math.remainder(16 * 64, gpus) == 0


def test_the_example_prints_a_reward_for_each_explanation(served):
    if not PYTHON.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(ABSENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RLT_URL": served.url, "CUDA_VISIBLE_DEVICES": ""}
    command = [str(PYTHON), str(ROOT / "examples" / "verl_reward.py")]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout
    assert [math.isfinite(float(line.split()[0])) for line in printed.splitlines()] == [True, True]
