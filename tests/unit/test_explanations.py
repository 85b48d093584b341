"""Shards of explanations: every problem has exactly its rows, whatever the journal went through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlt.data.explanations import Shards
from rlt.data.rows import read_rows


def row(position: int, sample: int, text: str = "so") -> dict[str, object]:
    return {"problem": str(position), "sample": sample, "explanation": text}


def shards(folder: Path, problems: int = 3, left_out: frozenset[int] = frozenset()) -> Shards:
    return Shards(folder, folder / "state", problems, 2, "jsonl", left_out)


def written(folder: Path) -> list[tuple[str, int, str]]:
    return [(r["problem"], r["sample"], r["explanation"]) for _, r in read_rows(folder / "explanations-00000.jsonl")]


def test_a_row_that_was_written_twice_is_sealed_once(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    lines = [(0, 0, "first"), (0, 1, "so"), (0, 0, "again")]
    (tmp_path / "state" / "journal-00000.jsonl").write_text(
        "".join(json.dumps({"position": p, "row": row(p, s, text)}) + "\n" for p, s, text in lines)
    )
    made = shards(tmp_path, problems=1)
    assert list(made.missing()) == []
    assert written(tmp_path) == [("0", 0, "first"), ("0", 1, "so")]


def test_problems_left_out_have_no_rows_and_are_not_missing(tmp_path: Path) -> None:
    made = shards(tmp_path, left_out=frozenset({1}))
    assert list(made.missing()) == [(0, 0), (0, 1), (2, 0), (2, 1)]
    for position, sample in [(2, 1), (0, 0), (2, 0), (0, 1)]:
        made.add(position, row(position, sample))
    assert [(problem, sample) for problem, sample, _ in written(tmp_path)] == [("0", 0), ("0", 1), ("2", 0), ("2", 1)]
    assert made.written() == 4


@pytest.mark.parametrize("count", [1, 3])
def test_a_shard_whose_problems_are_all_left_out_is_there_and_empty(tmp_path: Path, count: int) -> None:
    made = shards(tmp_path, count, frozenset(range(count)))
    assert list(made.missing()) == []
    assert written(tmp_path) == []
