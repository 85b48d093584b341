"""Grading a file again: columns are added, nothing is lost, odd rows end nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlt.config import GradeConfig
from rlt.data.rows import read_rows
from rlt.errors import ConfigError, DataError
from rlt.stages import grade

ENDLESS = r"\boxed{9^{9^{9^{9}}}}"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_keep_their_columns_and_order_and_get_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(
        tmp_path / "r.jsonl",
        {"response": r"\boxed{\dfrac12}", "answer": "0.5", "correct": True, "note": "kept"},
        {"response": ENDLESS, "answer": "x+1"},
        {"response": "7 * 3 + 25", "answer": "46", "question": "25 7 3 4 make 46 ?", "task": "countdown"},
        {"response": "no idea", "answer": "5", "correct": True},
    )
    result = grade.run(GradeConfig(data=data, output=tmp_path / "out.parquet", timeout=3))
    rows = [row for _, row in read_rows(tmp_path / "out.parquet")]
    assert [row["correct"] for row in rows] == [True, False, True, False]
    assert [row["extracted"] for row in rows] == [r"\dfrac12", None, "7 * 3 + 25", None]
    assert rows[1]["error"] == "not graded within 3 s"
    assert rows[0]["note"] == "kept"
    assert [row["recorded"] for row in rows] == [True, None, None, True]
    assert result.metrics["agree"] == 0.5
    assert result.metrics["not_graded"] == 1
    assert "50.0 % agree with the 2 recorded verdicts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"response": "5"}, "r.jsonl line 1: column `answer` is missing"),
        ({"answer": "5"}, "r.jsonl line 1: column `response` is missing"),
        ({"response": "5", "answer": " "}, "r.jsonl line 1: column `answer` is empty"),
    ],
)
def test_rows_that_cannot_be_graded_are_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        grade.run(GradeConfig(data=write(tmp_path / "r.jsonl", row), output=tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


def test_unknown_tasks_and_endings_are_told(tmp_path: Path) -> None:
    data = write(tmp_path / "r.jsonl", {"response": "5", "answer": "5"})
    with pytest.raises(ConfigError, match="did you mean math"):
        grade.run(GradeConfig(data=data, output=tmp_path / "out.jsonl", task="maths"))
    with pytest.raises(ValueError, match=r"must be a \.jsonl or \.parquet file"):
        GradeConfig(data=data, output=tmp_path / "out.csv")
