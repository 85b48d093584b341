"""Golden table of the mathematics grader: what is the same answer, and the near misses that fool string comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlt.tasks.math_answers import same_answer

TABLE = Path(__file__).with_name("golden_math_answers.tsv").read_text(encoding="utf-8").splitlines()[1:]
ROWS = [tuple(line.split("\t")) for line in TABLE]


@pytest.mark.parametrize(("given", "answer"), [row[1:] for row in ROWS if row[0] == "same"])
def test_other_spellings_are_the_same_answer(given: str, answer: str) -> None:
    assert same_answer(given, answer)


@pytest.mark.parametrize(("given", "answer"), [row[1:] for row in ROWS if row[0] == "different"])
def test_near_misses_are_another_answer(given: str, answer: str) -> None:
    assert not same_answer(given, answer)
