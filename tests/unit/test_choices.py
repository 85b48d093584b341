"""Choices laid out: MMLU-Pro's lists of up to ten, ARC's labels, SciQ's and GPQA's columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlt.errors import DataError
from rlt.tasks.benchmarks import Question, load_benchmark, load_questions

MMLU_PRO = {
    "question_id": 70, "question": "Which is prime?", "options": ["4", "6", "8", "9", "10", "12", "14", "15", "16", "17"],
    "answer": "J", "answer_index": 9,
}  # fmt: skip
ARC = {
    "id": "M1", "question": "Which is prime?", "choices": {"text": ["4", "7", "9"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}  # fmt: skip
SCIQ = {
    "question": "Which is prime?", "correct_answer": "7", "distractor1": "4", "distractor2": "6", "distractor3": "8",
    "support": "Seven is prime.",
}  # fmt: skip


def asked(name: str, row: dict[str, Any], tmp_path: Path) -> Question:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (question,) = load_questions(load_benchmark(name)[0], str(path))
    return question


def test_mmlu_pro_has_up_to_ten_choices_in_its_order(tmp_path: Path) -> None:
    question = asked("mmlu-pro", MMLU_PRO, tmp_path)
    assert (question.id, question.answer) == ("70", "J")
    assert question.question.splitlines()[2] == "A. 4"
    assert question.question.splitlines()[-1] == "J. 17"


def test_arcs_numbers_become_letters(tmp_path: Path) -> None:
    question = asked("arc-challenge", ARC, tmp_path)
    assert question.question == "Which is prime?\n\nA. 4\nB. 7\nC. 9"
    assert question.answer == "B"


def test_sciq_is_shuffled_and_shows_no_supporting_paragraph(tmp_path: Path) -> None:
    question = asked("sciq", SCIQ, tmp_path)
    lines = question.question.splitlines()
    assert next(line for line in lines if line.endswith(" 7")).startswith(question.answer)
    assert "Seven" not in question.question


def test_a_file_that_is_laid_out_already_stays_as_it_is(tmp_path: Path) -> None:
    row = {"id": "x", "question": "Q?\n\nA. 1\nB. 2", "answer": "B"}
    for name in ("mmlu-pro", "arc-easy", "sciq", "gpqa-main"):
        found = asked(name, row, tmp_path)
        assert (found.question, found.answer) == (row["question"], "B")


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("mmlu-pro", {**MMLU_PRO, "answer": "K"}, "'K' is not one of the labels"),
        ("mmlu-pro", {**MMLU_PRO, "options": ["1"]}, "has 1 choices; expected 2 to 10"),
        ("mmlu-pro", {**MMLU_PRO, "options": ["1"] * 11}, "has 11 choices; expected 2 to 10"),
        ("mmlu-pro", {**MMLU_PRO, "options": ["1", ""], "answer": "A"}, "choice 2 is empty"),
        ("arc-easy", {**ARC, "answerKey": "4"}, "'4' is not one of the labels 1, 2, 3"),
        ("sciq", {**SCIQ, "distractor2": " "}, "column `distractor2` is missing or empty"),
    ],
)
def test_a_row_without_its_choices_is_named(name: str, row: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        asked(name, row, tmp_path)


def test_errors_of_a_private_benchmark_do_not_repeat_its_question(tmp_path: Path) -> None:
    row = {"Record ID": "r", "Question": "SECRET", "Correct Answer": "CHOICE", "Incorrect Answer 1": ""}
    with pytest.raises(DataError) as error:
        asked("gpqa-main", row, tmp_path)
    assert "SECRET" not in str(error.value)
    assert "CHOICE" not in str(error.value)
