"""Training and held-out questions that are the same are found before a run, and through every step between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlt.config import DataConfig
from rlt.data.overlap import leaks, overlap, questions_of
from rlt.recipe import build_recipe


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *questions: str, **columns: str) -> str:
    rows = ({"question": question, "solution": "s", **columns} for question in questions)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def lines_of(**steps: Any) -> list[str]:
    return list(leaks([step.config for step in build_recipe({"name": "r", **steps}, "r/recipe.yaml").steps]))


def test_the_same_question_is_found_in_both_files_with_its_lines() -> None:
    one, other = write("one.jsonl", "a", "b", " c "), write("other.jsonl", "c", "d", "a")
    both = overlap(DataConfig(path=one), DataConfig(path=other))
    assert both == [("other.jsonl line 3", "one.jsonl line 1"), ("other.jsonl line 1", "one.jsonl line 3")]


def test_parts_of_one_file_that_skip_and_limit_cut_do_not_overlap() -> None:
    path = write("one.jsonl", *"abcdef")
    assert overlap(DataConfig(path=path, limit=3), DataConfig(path=path, skip=3)) == []
    assert len(overlap(DataConfig(path=path, limit=4), DataConfig(path=path, skip=3))) == 1


def test_questions_are_read_from_every_schema_and_a_hub_name_is_not_looked_up() -> None:
    Path("math.jsonl").write_text('{"problem": "m", "solution": "s"}\n')
    Path("stratos.jsonl").write_text('{"conversations": [{"from": "user", "value": "s"}]}\n')
    assert [q for name in ("math", "stratos") for _, q in questions_of(DataConfig(path=f"{name}.jsonl"))] == ["m", "s"]
    mapped = DataConfig(path=write("mapped.jsonl", "no", theirs="yes"), columns={"question": "theirs"})
    assert [q for _, q in questions_of(mapped)] == ["yes"]
    assert overlap(DataConfig(path="openai/gsm8k"), mapped) == []


def test_a_leak_is_found_through_the_steps_between_data_and_student() -> None:
    train, test = write("train.jsonl", "a", "b"), write("test.jsonl", "b", "c")
    collect = {"model": "m", "data": train}
    steps: dict[str, Any] = {
        "collect": collect, "select": {"data": "@collect", "keep": "closed"},
        "distill": {"model": "m", "data": "@select"}, "coldstart": {"model": "@distill", "data": write("more.jsonl", "e")},
        "evaluate": {"model": "@coldstart", "benchmark": test},
    }  # fmt: skip
    (line,) = lines_of(**steps)
    assert line.startswith(
        "test.jsonl: 1 of its questions are in the training data train.jsonl, the first at test.jsonl line 1"
    )
    assert lines_of(**{**steps, "collect": {"model": "m", "data": {"path": train, "limit": 1}}}) == []
    assert lines_of(**{**steps, "evaluate": {**steps["evaluate"], "allow_overlap": True}}) == []


def test_data_that_no_step_has_made_yet_and_other_models_are_no_leak() -> None:
    test = write("test.jsonl", "b")
    problems = {"stage": "problems", "task": "arithmetic"}
    distill = {"model": "m", "data": "@corpus"}
    assert lines_of(corpus=problems, distill=distill, evaluate={"model": "@distill", "benchmark": test}) == []
    assert lines_of(distill={"model": "m", "data": test}, evaluate={"model": "m", "benchmark": test}) == []
