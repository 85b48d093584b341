"""Rows for the page: a sample of a file of any length, with texts, parts and per-token numbers."""

from __future__ import annotations

import heapq
import random
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import cast

from rlt.data.rows import read_rows
from rlt.errors import DataError
from rlt.outputs import read_state
from rlt.results.sources import SourceNumbers
from rlt.reward.tokens import NUMBERS, packed_list
from rlt.types import JsonMap, JsonRow

PARTS = (
    "reward", "r_ss", "r_kl", "solution_log_prob_mean", "solution_log_prob_min", "explanation_kl_mean",
    "explanation_kl_max", "format_penalty", "accuracy", "gain", "lift_over_empty", "lift_over_shuffled", "solution_tokens",
    "explanation_tokens",
)  # fmt: skip
COEFFICIENTS = ("alpha", "alpha_kl", "mean_coef", "kl_coef")
COPIED_WORDS = 4
"""This many consecutive words that also occur in the solution count as copied (fewer for a shorter solution)."""


class Source:
    """The rows of one file of scores, read lazily, with the scored texts if their file still exists.

    `data`: that file; None: the one named in the state of the scores. Rows of `samples.jsonl` contain their texts. Raises
    DataError for a file without rewards.
    """

    def __init__(self, path: Path, name: str | None = None, data: Path | None = None) -> None:
        self.path, self.name = Path(path), name or Path(path).name
        state = read_state(self.path) or {}
        config = state.get("config", {})
        self.control = cast("str | None", config.get("control"))
        self.coefficients = {key: config.get(key) for key in COEFFICIENTS} if "kl_coef" in config else None
        self.students = cast(list[str], config.get("student") or [])
        self.data = data if data is not None else self._found(cast("str | None", config.get("data")))
        self.numbers = cast(SourceNumbers, cast(JsonRow, state.get("metrics", {})).get("by_source", {}))

    def _found(self, data: str | None) -> Path | None:
        beside = [] if data is None else [Path(data), self.path.parent / data, self.path.parent / Path(data).name]
        return next((path for path in beside if path.exists()), None)

    def __iter__(self) -> Iterator[JsonRow]:
        texts = (row for _, row in read_rows(self.data)) if self.data is not None else iter(())
        for number, (scored, text) in enumerate(zip_longest(read_rows(self.path), texts)):
            if scored is None:  # the file of scores is still being written
                return
            where, row = scored
            if "reward" not in row and "error" not in row:
                raise DataError(
                    f"{where}: has no `reward`; `rlt view` shows files of `rlt score`, or the folder of a run."
                )
            same = text is not None and ("id" not in row or str(row["id"]) == str(text.get("id")))
            yield {**(text if same and text is not None else {}), **row, "number": number}


def sampled(
    source: Iterable[JsonRow], limit: int, ids: Collection[str] = (), seed: int = 0
) -> tuple[list[JsonRow], int]:
    """At most `limit` rows for the page, in order, and the number of rows in the file.

    A third have the highest rewards, a third the lowest, the rest are random; rows of `ids` are always included. One pass
    over the file, with at most three times `limit` rows in memory.
    """
    rng = random.Random(seed)
    third = limit // 3
    high: list[tuple[float, int, JsonRow]] = []
    low: list[tuple[float, int, JsonRow]] = []
    drawn: list[tuple[float, int, JsonRow]] = []
    named: dict[int, JsonRow] = {}
    total = 0
    for row in source:
        number, reward = total, cast("float | None", row.get("reward"))
        total += 1
        if str(row.get("id", number)) in ids:
            named[number] = row
        for heap, key, size in ((high, reward, third), (low, None if reward is None else -reward, third),
                                (drawn, rng.random(), limit)):  # fmt: skip
            if key is None or size == 0:
                continue
            if len(heap) < size:
                heapq.heappush(heap, (key, -number, row))
            elif key > heap[0][0]:
                heapq.heapreplace(heap, (key, -number, row))
    chosen = named | {-number: row for heap in (high, low) for _, number, row in heap}
    for _, number, row in sorted(drawn, key=lambda entry: -entry[0]):
        if len(chosen) >= limit:
            break
        chosen[-number] = row
    return [chosen[number] for number in sorted(chosen)], total


def matching(source: Source, keys: Collection[str], limit: int) -> tuple[list[JsonRow], int]:
    """Rows of a second file whose `match_key` is in `keys`, and the number of rows in the file."""
    rows: list[JsonRow] = []
    total = 0
    for row in source:
        total += 1
        if match_key(row) in keys and len(rows) < limit:
            rows.append(row)
    return rows, total


def match_key(row: JsonMap) -> str:
    """What identifies a question across files: its text, else the row's id."""
    return str(row.get("question") or row.get("id") or row["number"])


def page_row(row: JsonMap, source: int, control: str | None = None, step: int | None = None) -> JsonRow:
    """A row as the page reads it: texts, numbers, `tokens` by student, and the copied characters."""
    students = cast(dict[str, JsonRow], row.get("students") or {})
    given = {name: each.get("tokens") for name, each in students.items()} or {"student": row.get("tokens")}
    tokens = {name: _tokens(cast(JsonRow, each)) for name, each in given.items() if each}
    first = cast(dict[str, list[str]], next(iter(tokens.values()), {}))
    solution = str(row.get("solution") or "".join(first.get("solution", [])))
    said = "".join(first.get("explanation", []))
    explanation = str(row.get("explanation") or row.get("completion") or "")
    if control is not None or said not in explanation:
        explanation = said  # the scored text is not the file's
    spans = copied(explanation, solution)
    result: JsonRow = {
        "id": str(row.get("id", row.get("number", ""))), "source": source, "match": match_key({"number": 0, **row}),
        "question": row.get("question", ""), "solution": solution, "explanation": explanation,
        "copied": spans, "copied_share": sum(b - a for a, b in spans) / max(1, len(explanation)),
        "length": len(explanation), "closed": row.get("closed"), "correct": row.get("correct"),
        "error": row.get("error"), "tokens": tokens or None, "step": step, "mixture": row.get("source"),
    }  # fmt: skip
    return {
        name: value for name, value in (result | {name: row.get(name) for name in PARTS}).items() if value is not None
    }


def _tokens(tokens: JsonRow) -> JsonRow:
    # Parquet has lists where JSONL has base64.
    return tokens | {
        name: packed_list(value) if isinstance(value := tokens.get(name), list) else value for name in NUMBERS
    }


def copied(explanation: str, solution: str) -> list[tuple[int, int]]:
    """The character spans `[start, end)` of the explanation that are copied from the solution.

    Copied: `COPIED_WORDS` consecutive words, ignoring case; for a shorter solution all of its words, at least two.
    """
    theirs = [word.casefold() for word in re.findall(r"\w+", solution)]
    size = min(COPIED_WORDS, len(theirs))
    if size < 2:
        return []
    known = {tuple(theirs[i : i + size]) for i in range(len(theirs) - size + 1)}
    words = list(re.finditer(r"\w+", explanation))
    folded = [word[0].casefold() for word in words]
    spans: list[tuple[int, int]] = []
    for i in range(len(words) - size + 1):
        if tuple(folded[i : i + size]) in known:
            start, end = words[i].start(), words[i + size - 1].end()
            if spans and start <= spans[-1][1] + 1:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
    return spans


def thinned(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` of the points, evenly spaced, including the last."""
    if len(points) <= most:
        return points
    places = sorted({round(i * (len(points) - 1) / (most - 1)) for i in range(most)})
    return [points[i] for i in places]
