"""rlt's environment inside SkyRL's registry, in the environment of scripts/make_engine_verl.sh."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from serve.conftest import CLOSE, folder, served  # noqa: F401

from rlt.data.rows import read_rows, write_rows
from rlt.integrations.prompts import main as write_prompts

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-verl" / "bin" / "python"
PROBLEM = {"question": "What is 2 + 2?", "solution": "It is 4."}
SIDE = """
import json, sys, skyrl_gym
skyrl_gym.register(id="rlt", entry_point="rlt.integrations.skyrl:TeacherEnv")
row, action = json.loads(sys.argv[1])
env = skyrl_gym.make(row["env_class"], env_config={}, extras={"reward_spec": row["reward_spec"], "max_turns": 1})
prompt, _ = env.init(row["prompt"])
assert prompt == row["prompt"]
step = env.step(action)
print(json.dumps({"reward": step["reward"], "done": step["done"], "metrics": env.get_metrics()}))
"""


def skyrl(row: dict, action: str, url: str) -> subprocess.CompletedProcess:
    if not PYTHON.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(".venv-verl is missing: make engines")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RLT_URL": url, "RLT_RETRY_FOR": "1"}
    command = [str(PYTHON), "-c", SIDE, json.dumps([row, action])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def row(tmp_path):
    write_rows(tmp_path / "problems.jsonl", [PROBLEM])
    output = tmp_path / "rows.jsonl"
    flags = ["--format", "stratos-user", "--kind", "skyrl", "--output", str(output)]
    assert write_prompts(["--data", str(tmp_path / "problems.jsonl"), *flags]) == 0
    ((_, row),) = read_rows(output)
    return row


def test_an_episode_is_one_explanation_with_the_services_reward(served, row):  # noqa: F811
    done = skyrl(row, "So." + CLOSE, served.url)
    assert done.returncode == 0, done.stderr
    _, expected = served.ask("/score", {"rows": [{**PROBLEM, "completion": "So." + CLOSE}]})
    got, (scored,) = json.loads(done.stdout), expected["rows"]
    assert got["done"] is True
    assert got["reward"] == pytest.approx(scored["reward"], rel=1e-5)
    assert got["metrics"]["rlt/r_ss"] == pytest.approx(scored["r_ss"], rel=1e-5)


def test_without_a_service_the_episode_raises(row):
    assert "Start it: rlt serve" in skyrl(row, "So." + CLOSE, "http://127.0.0.1:9").stderr


def test_a_label_without_a_solution_is_refused(served, row):  # noqa: F811
    assert (
        "the reward needs the solution"
        in skyrl({**row, "reward_spec": {"ground_truth": "4"}}, "So.", served.url).stderr
    )


def test_the_example_plays_an_episode(served):  # noqa: F811
    if not PYTHON.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(".venv-verl is missing: make engines")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RLT_URL": served.url}
    command = [str(PYTHON), str(ROOT / "examples" / "skyrl_env.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert "done True, {'rlt/r_ss': " in done.stdout
