"""Benchmarks as data: every shipped one loads, and files of the hub's schemas give its questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlt.errors import ConfigError, DataError
from rlt.tasks.benchmarks import fingerprint, load_benchmark, load_questions, shipped_benchmarks

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
GPQA_ROW = {
    "Record ID": "rec1", "Question": "Which number is prime?", "Correct Answer": "7", "Incorrect Answer 1": "4",
    "Incorrect Answer 2": "9", "Incorrect Answer 3": "12", "Subdomain": "made up",
}  # fmt: skip


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", shipped_benchmarks())
def test_every_shipped_benchmark_says_what_it_is(name: str) -> None:
    benchmark, path = load_benchmark(name)
    assert path is None
    assert benchmark.source
    assert (benchmark.hub is None) != (benchmark.generate is None)


def test_all_benchmarks_are_there() -> None:
    assert shipped_benchmarks() == [
        "aime24", "aime25", "arc-challenge", "arc-easy", "arithmetic", "countdown", "gpqa-diamond", "gpqa-main", "gsm8k",
        "hmmt-feb25", "humaneval", "livecodebench", "math500", "mbpp", "mmlu-pro", "olympiadbench-maths",
        "olympiadbench-physics", "sciq",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "file"), [("aime24", "aime24"), ("math500", "math500"), ("gsm8k", "gsm8k_test")])
def test_real_files_give_as_many_questions_as_the_benchmark_has(name: str, file: str) -> None:
    path = DATA / f"{file}.jsonl"
    if not path.exists():
        pytest.skip(f"needs ../shared/data/{file}.jsonl")
    benchmark, _ = load_benchmark(name)
    questions = load_questions(benchmark, str(path))
    assert len(questions) == benchmark.questions
    assert all(question.answer for question in questions)


def test_hub_schemas_are_mapped(tmp_path: Path) -> None:
    aime, _ = load_benchmark("aime24")
    rows = [
        {"id": 1, "problem": "Q1", "solution": "S", "answer": "25", "url": "https://a/2023_AIME_I"},
        {"id": 2, "problem": "Q2", "solution": "S", "answer": "25", "url": "https://a/2024_AIME_I"},
    ]
    (question,) = load_questions(aime, write(tmp_path / "aime.jsonl", *rows))
    assert (question.id, question.question, question.answer) == ("2", "Q2", "25")
    gsm8k, _ = load_benchmark("gsm8k")
    path = write(tmp_path / "gsm8k.jsonl", {"question": "Q", "answer": "1+1=<<1+1=2>>2\n#### 1,002"})
    assert load_questions(gsm8k, path)[0].answer == "1002"


def test_gpqa_choices_have_an_order_that_never_changes(tmp_path: Path) -> None:
    gpqa, _ = load_benchmark("gpqa-diamond")
    path = write(tmp_path / "gpqa.jsonl", GPQA_ROW)
    (question,) = load_questions(gpqa, path)
    assert load_questions(gpqa, path) == [question]
    lines = question.question.splitlines()
    assert lines[0] == "Which number is prime?"
    assert sorted(line[3:] for line in lines[2:]) == ["12", "4", "7", "9"]
    assert next(line for line in lines if line.startswith(question.answer)).endswith(". 7")


@pytest.mark.parametrize(
    ("name", "row", "private"),
    [
        ("q.jsonl", {"id": "recA1b2C3d4E5f6G7"}, True),
        ("q.jsonl", {"id": "gpqa/recA1b2C3d4E5f6G7"}, True),
        ("q.jsonl", {"Canary String": "x"}, True),
        ("q.jsonl", {"private": True}, True),
        ("my-GPQA.jsonl", {}, True),
        ("q.jsonl", {"id": "record-17", "private": False}, False),
    ],
)
def test_a_file_of_gpqa_is_private_also_when_it_is_laid_out(
    tmp_path: Path, name: str, row: dict[str, Any], private: bool
) -> None:
    laid_out = {"question": "Q?\n\nA. 1\nB. 2", "answer": "B"}
    benchmark, path = load_benchmark(write(tmp_path / name, laid_out, {**laid_out, **row}), "multiple_choice")
    assert benchmark.private is private
    assert [question.answer for question in load_questions(benchmark, path)] == ["B", "B"]


def test_the_instruction_stands_where_the_benchmark_says() -> None:
    math500, _ = load_benchmark("math500")
    assert math500.instructed("What is 2+3?") == r"Return your final response within \boxed{}. What is 2+3?"
    after = math500.model_copy(update={"place": "after"})
    assert after.instructed("What is 2+3?") == "What is 2+3?\n\n" + r"Return your final response within \boxed{}."


def test_the_order_of_questions_does_not_change_the_fingerprint() -> None:
    benchmark, _ = load_benchmark("countdown")
    questions = load_questions(benchmark)
    assert fingerprint(benchmark, questions) == fingerprint(benchmark, questions[::-1])
    assert fingerprint(benchmark, questions) != fingerprint(benchmark, questions[1:])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("math-500", "did you mean math500"),
        ("gpqa", "did you mean gpqa-main or gpqa-diamond"),
        ("zzz", "benchmarks: aime24"),
    ],
)
def test_an_unknown_benchmark_gets_the_near_names(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_benchmark(name)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "Q"}, "bad.jsonl line 1: column `answer` is missing"),
        ({"question": "Q", "answer": " "}, "bad.jsonl line 1: column `answer` is empty"),
        ({"answer": "5"}, "bad.jsonl line 1: column `question` is missing"),
    ],
)
def test_a_row_that_lacks_something_is_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    benchmark, path = load_benchmark(write(tmp_path / "bad.jsonl", row))
    with pytest.raises(DataError, match=words):
        load_questions(benchmark, path)


def test_an_id_that_repeats_is_named(tmp_path: Path) -> None:
    row = {"id": "a", "question": "Q", "answer": "5"}
    benchmark, path = load_benchmark(write(tmp_path / "twice.jsonl", row, row))
    with pytest.raises(DataError, match=r"twice.jsonl line 2: column `id`: 'a' is also in twice.jsonl line 1"):
        load_questions(benchmark, path)
