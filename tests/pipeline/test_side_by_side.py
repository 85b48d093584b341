"""Steps side by side, in processes of their own: run once, told while they run, and waited for when one fails."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlt import pipeline
from rlt.errors import DataError
from rlt.pipeline import run_recipe
from rlt.recipe import build_recipe

PROBLEMS = {"stage": "problems", "task": "arithmetic", "count": 2}


def recipe(folder, steps, **head):
    return build_recipe({"name": "r", "folder": str(folder), "jobs": 2, **head, **steps}, "r.yaml")


@pytest.mark.slow
def test_steps_side_by_side_run_once_print_to_their_logs_and_are_told_while_they_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "HEARTBEAT", 0.5)
    steps = {"heldout": PROBLEMS, "corpus": {**PROBLEMS, "exclude": ["@heldout"]},
             "graded": {"stage": "grade", "data": "responses.jsonl"}, "report": {}}  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "responses.jsonl").write_text(json.dumps({"response": "4", "answer": "4"}) + "\n")
    assert run_recipe(recipe(tmp_path, steps, seeds=[0, 1])) == 0
    said = capsys.readouterr().out
    assert re.search(r"\] running: seed 0 heldout \(\d+ s\), seed 0 graded \(\d+ s\)", said)
    for seed in (0, 1):
        assert said.index(f"seed {seed} heldout: done") < said.index(f"seed {seed} corpus ...")
    assert "grade -> " in (tmp_path / "r" / "logs" / "seed-0-graded.log").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.stage.json")}
    assert len(before) == 6

    assert run_recipe(recipe(tmp_path, steps, seeds=[0, 1])) == 0
    assert "6 already complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.stage.json")} == before


@pytest.mark.slow
def test_a_failure_is_told_at_once_and_what_runs_is_waited_for(tmp_path, capsys):
    """Both begin together: one fails at once, the other has some work to do; what waits for it does not begin."""
    rows = [{"response": "4", "answer": "4"}, {"response": "4", "answer": ""}]  # only the first is looked at before
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)))
    steps = {"bad": {"stage": "grade", "data": str(tmp_path / "bad.jsonl")}, "long": {**PROBLEMS, "count": 20000},
             "last": {**PROBLEMS, "exclude": ["@long"]}}  # fmt: skip
    with pytest.raises(DataError, match=r"bad\.jsonl line 2: column `answer` is empty"):
        run_recipe(recipe(tmp_path, steps))
    said = capsys.readouterr().out
    failed = next(line for line in said.splitlines() if "failed" in line)
    assert "seed 0 bad: failed: " in failed
    assert "bad.jsonl line 2" in failed
    assert "logs/seed-0-bad.log" in said  # on a line of its own: lines are wrapped
    assert "seed 0 long: done" in said
    assert "seed 0 last ..." not in said


@pytest.mark.slow
def test_workers_end_when_their_run_is_killed(tmp_path):
    """Or they would go on writing outputs, and a second `rlt run` could not."""
    written = tmp_path / "recipe.yaml"
    written.write_text(
        recipe(tmp_path, {"long": {**PROBLEMS, "count": 2_000_000}, "longer": {**PROBLEMS, "count": 2_000_000}}).dump()
    )
    process = subprocess.Popen([sys.executable, "-m", "rlt.cli", "run", str(written)], stdout=subprocess.DEVNULL)
    logs = tmp_path / "r" / "logs"
    until = time.monotonic() + 120
    while len(list(logs.glob("*.log"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    workers = [int(child) for child in children(process.pid)]
    process.kill()
    process.wait()
    until = time.monotonic() + 20  # their work would take longer
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.1)


def children(pid):
    return [pid for task in Path(f"/proc/{pid}/task").iterdir() for pid in (task / "children").read_text().split()]
