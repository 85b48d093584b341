"""Shards of explanations: every problem has exactly its rows, whatever the journal went through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlt.data.explanations import COLUMNS, Shards, explanation_of
from rlt.data.rows import read_rows
from rlt.errors import DataError
from rlt.text.formats import load_format
from rlt.types import Explanation, Problem

FORMAT = load_format("stratos")
TAG = FORMAT.tags.explanation.close


def explanation(position: int, sample: int, text: str = "so") -> Explanation:
    problem = Problem(str(position), "What?", "It is 5.")
    return Explanation(
        problem, text + FORMAT.padding, True, f"{position}/{sample}", sample, "stop", 9, 4, -0.5, 7, "fake"
    )


def row(position: int, sample: int, text: str = "so") -> dict[str, object]:
    return explanation(position, sample, text).to_row(FORMAT.padding, TAG)


def shards(folder: Path, problems: int = 3, left_out: frozenset[int] = frozenset()) -> Shards:
    return Shards(folder, FORMAT, problems, 2, "jsonl", left_out)


def on_disk(folder: Path) -> list[tuple[str, int, str]]:
    return [(r["problem"], r["sample"], r["explanation"]) for _, r in read_rows(folder / "explanations-00000.jsonl")]


def test_a_row_that_was_written_twice_is_sealed_once(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    lines = [(0, 0, "first"), (0, 1, "so"), (0, 0, "again")]
    (tmp_path / "state" / "journal-00000.jsonl").write_text(
        "".join(json.dumps({"position": p, "row": row(p, s, text)}) + "\n" for p, s, text in lines)
    )
    made = shards(tmp_path, problems=1)
    assert list(made.missing()) == []
    assert on_disk(tmp_path) == [("0", 0, "first"), ("0", 1, "so")]


def test_problems_left_out_have_no_rows_and_are_not_missing(tmp_path: Path) -> None:
    made = shards(tmp_path, left_out=frozenset({1}))
    assert list(made.missing()) == [(0, 0), (0, 1), (2, 0), (2, 1)]
    for position, sample in [(2, 1), (0, 0), (2, 0), (0, 1)]:
        made.add(position, explanation(position, sample))
    assert [(problem, sample) for problem, sample, _ in on_disk(tmp_path)] == [("0", 0), ("0", 1), ("2", 0), ("2", 1)]
    assert made.written() == 4


@pytest.mark.parametrize("count", [1, 3])
def test_a_shard_whose_problems_are_all_left_out_is_there_and_empty(tmp_path: Path, count: int) -> None:
    made = shards(tmp_path, count, frozenset(range(count)))
    assert list(made.missing()) == []
    assert on_disk(tmp_path) == []


# -- rows ----------------------------------------------------------------------------------------------------------------


def written(text: str, closed: bool = True) -> dict[str, object]:
    return Explanation(Problem("a", "What?", "It is 5."), text, closed, "a/2", 2).to_row("\n\n", TAG)


def test_the_explanation_of_a_row_is_the_text_before_its_tag_without_the_tags_padding() -> None:
    assert written("one\n\ntwo\n\n")["explanation"] == "one\n\ntwo"
    assert written("one\n\n\n\n")["explanation"] == "one\n\n"
    assert written("one")["explanation"] == "one"
    assert written("one\n\n", closed=False)["explanation"] == "one"


def test_a_row_has_the_completion_to_the_letter_and_an_id_of_its_own() -> None:
    row = written("one\n\n")
    assert list(row) == list(COLUMNS)
    assert (row["id"], row["problem"], row["sample"]) == ("a/2", "a", 2)
    assert (row["completion"], row["closed"], row["text_only"]) == (f"one\n\n{TAG}", True, False)
    assert written("one\n\n", closed=False)["completion"] == "one\n\n"


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("text", ["", "one", "one\n\n", " \r\none\n\n\n"])
def test_a_row_gives_back_the_explanation_it_was_made_of(text: str, closed: bool) -> None:
    made = Explanation(
        Problem("a", "What?", "It is 5.", "5", system="Hi."),
        text,
        closed,
        "a/2",
        2,
        "stop",
        9,
        4,
        -0.5,
        7,
        "fake",
        True,
    )
    row = made.to_row(FORMAT.padding, TAG)
    assert Explanation.from_row(row, TAG) == explanation_of(row, "d.jsonl line 1", "0", FORMAT) == made


def test_rows_that_rlt_did_not_make_are_finished_explanations_or_raw_completions() -> None:
    asked = {"question": "What?", "solution": "It is 5."}
    finished = explanation_of({**asked, "explanation": "one"}, "here", "7", FORMAT)
    raw = explanation_of({**asked, "completion": f"one{TAG}two"}, "here", "7", FORMAT)
    unclosed = explanation_of({**asked, "completion": "one", "id": "x"}, "here", "7", FORMAT)
    assert (finished.text, finished.closed, finished.id) == ("one\n\n", True, "7")
    assert (raw.text, raw.closed) == ("one", True)
    assert (unclosed.text, unclosed.closed, unclosed.id) == ("one", False, "x")
    with pytest.raises(DataError, match="here: has neither `explanation` nor `completion`"):
        explanation_of(asked, "here", "7", FORMAT)
    with pytest.raises(
        DataError, match=r"here: column `explanation` contains the tag .*or rename the column to `completion`"
    ):
        explanation_of({**asked, "explanation": f"one{TAG}"}, "here", "7", FORMAT)
