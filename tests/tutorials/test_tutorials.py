"""The tutorials in examples/ run as they are, from an empty folder, and leave what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(name, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), "made"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ten_explanations_are_scored_and_can_be_looked_at(tmp_path):
    said = run("score_ten", tmp_path)
    assert said.count("  lift ") == 10
    assert "<html" in (tmp_path / "made" / "page.html").read_text(encoding="utf-8")


def test_a_teacher_of_ones_own_problems_is_trained_and_reported(tmp_path):
    said = run("own_teacher", tmp_path)
    assert "explanation <- reasoning" in said
    assert "no problems found" in said
    results = json.loads((tmp_path / "made" / "runs" / "mine" / "results.json").read_text())
    assert set(results["arms"]) == {"warmup", "rlt"}


def test_the_student_of_careful_explanations_solves_more(tmp_path):
    """By far (.93 against .15 where it was written), so that another processor's rounding does not matter."""
    run("judge_students", tmp_path)
    arms = json.loads((tmp_path / "made" / "judged" / "results.json").read_text())["arms"]
    solved = {name: arm["seeds"][0]["solve_rate_t07"] for name, arm in arms.items()}
    assert solved["teacher"] > solved["original"] + 0.3
