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
ABSENT = ".venv-verl is missing: make engines"
PROBLEMS = [{"question": f"What is {i} + 2?", "solution": f"It is {i + 2}."} for i in range(3)]
COMPLETION = "So we add." + CLOSE


SPOILED = {
    "no service": ({"url": "http://127.0.0.1:9"}, {}, "Start it: rlt serve"),
    "temperature": ({"actor_rollout_ref.rollout.temperature": 1.0}, {}, "this service scores at 0.7"),
    "top-p": ({"actor_rollout_ref.rollout.top_p": 0.9}, {}, "truncate the distribution"),
    "prompt": ({"data.max_prompt_length": 8}, {}, "increase data.max_prompt_length (8)"),
    "no log-probs": ({}, {"logprobs": False}, "set rollout.calculate_log_probs to true"),
}
RECIPES = {"one-node": 4, "four-nodes": 16}


def changes(folder: Path, url: str, loop: Path, more: dict) -> list[str]:
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


@pytest.fixture(scope="module")
def rows(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("verl")
    write_rows(place / "problems.jsonl", PROBLEMS)
    arguments = ["--data", str(place / "problems.jsonl"), "--model", str(folder / "teacher"), "--kind", "verl"]
    assert (
        write_prompts([*arguments, "--format", str(folder / "format.yaml"), "--output", str(place / "rows.jsonl")]) == 0
    )
    return place / "rows.jsonl"


@pytest.fixture(scope="module")
def told(folder, served, rows):
    """What verl_side.py answers to each job, in one process: importing verl takes longer than all of them."""
    if not PYTHON.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(ABSENT)
    rollout = {"what": "rollout", "rows": str(rows), "completion": COMPLETION, "logprobs": True, "loop": "rlt"}
    right = changes(folder, served.url, rows.with_name("loop.yaml"), {})
    model = [f"actor_rollout_ref.model.path={folder / 'teacher'}"]
    jobs = {
        "training": {**rollout, "validate": False, "changes": right},
        "validation": {**rollout, "validate": True, "changes": right},
        "manager": {"what": "managed", "rows": str(rows), "completion": COMPLETION, "changes": right},
        **{name: {"what": "config", "recipe": name, "changes": model} for name in RECIPES},
    }
    for name, (keys, asked, _) in SPOILED.items():
        keys = dict(keys)
        wrong = changes(folder, keys.pop("url", served.url), rows.with_name(f"{name}.yaml".replace(" ", "-")), keys)
        jobs[name] = {**rollout, "validate": False, **asked, "changes": wrong}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [str(PYTHON), "tests/engines/verl_side.py", json.dumps(jobs)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500)
    lines = [line.removeprefix("ANSWER ") for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert len(lines) == len(jobs), done.stderr[-3000:]
    return {line["name"]: line for line in map(json.loads, lines)}


def test_the_agent_loop_continues_rlts_prompt_and_gets_the_reward_of_its_tokens(served, rows, told):
    got = told["training"]["answer"]
    prompts = [json.loads(line)["extra_info"]["teacher_prompt"] for line in rows.read_text().splitlines()]
    assert got["asked"] == prompts
    assert all(prompt.endswith(FMT.tags.explanation.open + FMT.padding) for prompt in prompts)
    count = len(got["ids"])
    sampled = {"token_ids": got["ids"], "logprobs": [-1.0] * count, "temperature": 0.7}
    _, expected = served.ask("/score", {"rows": [problem | sampled for problem in PROBLEMS]})
    assert got["rewards"] == pytest.approx([row["reward"] for row in expected["rows"]], rel=1e-5)
    assert got["extra"]["rlt/r_kl"] == pytest.approx([row["r_kl"] for row in expected["rows"]], rel=1e-5)
    assert got["placed"] == [[count - 1]] * 3


def test_in_greedy_validation_the_services_teacher_gives_r_kl(served, told):
    got = told["validation"]["answer"]
    _, expected = served.ask("/score", {"rows": [problem | {"token_ids": got["ids"]} for problem in PROBLEMS]})
    assert got["rewards"] == pytest.approx([row["reward"] for row in expected["rows"]], rel=1e-5)


def test_verls_reward_manager_gets_the_reward_of_the_text(served, told):
    _, expected = served.ask("/score", {"rows": [problem | {"completion": COMPLETION} for problem in PROBLEMS]})
    for one, row in zip(told["manager"]["answer"], expected["rows"], strict=True):
        assert one["reward_score"] == pytest.approx(row["reward"], rel=1e-5)
        assert one["reward_extra_info"]["rlt/r_ss"] == pytest.approx(row["r_ss"], rel=1e-5)


@pytest.mark.parametrize("name", SPOILED)
def test_what_would_spoil_the_reward_ends_the_run(told, name):
    assert told[name]["error"].startswith("ServiceError: ")
    assert SPOILED[name][2] in told[name]["error"]


@pytest.mark.parametrize("name", RECIPES)
def test_verl_accepts_the_shipped_configurations(told, name):
    trainer = told[name]["answer"]
    assert trainer["nnodes"] * trainer["n_gpus_per_node"] == RECIPES[name]


def test_the_example_prints_a_reward_for_each_explanation(served):
    if not PYTHON.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(ABSENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RLT_URL": served.url, "CUDA_VISIBLE_DEVICES": ""}
    command = [str(PYTHON), str(ROOT / "examples" / "verl_reward.py")]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout
    assert [math.isfinite(float(line.split()[0])) for line in printed.splitlines()] == [True, True]
