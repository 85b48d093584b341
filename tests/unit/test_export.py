"""What `rlt export lm-eval` writes: a task of lm-evaluation-harness, without the questions of a private file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlt.data.rows import read_rows
from rlt.errors import ConfigError
from rlt.integrations.lm_eval import ExportConfig, asked, export


def write(path: Path, **row: object) -> str:
    path.write_text(json.dumps({"question": "Which is prime?", "answer": "7", **row}) + "\n", encoding="utf-8")
    return str(path)


def test_a_file_becomes_a_task_with_its_questions(tmp_path: Path) -> None:
    command = export(ExportConfig(benchmark=write(tmp_path / "q.jsonl", id="a"), output=tmp_path / "task"))
    assert "--tasks rlt_q --include_path" in command
    (row,) = [row for _, row in read_rows(tmp_path / "task" / "questions.jsonl")]
    assert row == {"id": "a", "prompt": "Which is prime?", "target": "7"}
    assert "doc_to_target: '{{target}}'" in (tmp_path / "task" / "rlt_q.yaml").read_text()


def test_a_private_file_leaves_no_question_and_is_laid_out_in_memory(tmp_path: Path) -> None:
    data = write(tmp_path / "q.jsonl", id="a", private=True)
    assert "without --log_samples" in export(ExportConfig(benchmark=data, output=tmp_path / "task"))
    assert not [file for file in (tmp_path / "task").iterdir() if "prime" in file.read_text()]
    spec = json.loads((tmp_path / "task" / "spec.json").read_text())
    rows = asked(spec["benchmark"], [row for _, row in read_rows(Path(data))])
    assert rows == [{"id": "a", "prompt": "Which is prime?", "target": "7"}]


def test_a_task_that_the_harness_cannot_grade_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot grade its task code, only math, multiple_choice"):
        export(ExportConfig(benchmark="humaneval", output=tmp_path / "task"))
