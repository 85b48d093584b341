"""Selection for students: of each problem's explanations, those that a student can be trained on, and of those which.

Where a problem has several explanations, the method keeps one that fits the student's context, and ranks by reward
(SakanaAI/RLT README, on students of 32B). The text stays as the teacher wrote it: what does not fit is left out whole.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rlt.formats import Format, render_student
from rlt.sequences import tokenize
from rlt.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
Choose = Callable[[Sequence[Row]], Sequence[Row]]
# Problems looked at together, so that rewards are computed in full batches.
CHUNK = 64


@dataclass(frozen=True)
class Fits:
    """What keeps an explanation from being a student's example: `reason(row)` is None where nothing does.

    With a `tokenizer`, the student's whole text (system prompt, question, thought, solution, end of turn) is rendered
    in the student's format and counted to the token against `context`.
    """

    fmt: Format
    tokenizer: PreTrainedTokenizerBase | None = None
    context: int | None = None

    def reason(self, row: Row) -> str | None:
        """Why the row is left out, in words that are counted, or None."""
        if not row["closed"]:
            return "the explanation never closes its tag"
        if self.fmt.tag_inside(row["explanation"]) is not None:
            return "the explanation contains a tag of the format"
        if self.tokenizer is not None and self.context is not None and self.tokens(row) > self.context:
            return "the student's text is longer than its context"
        return None

    def tokens(self, row: Row) -> int:
        """Tokens of the student's text."""
        assert self.tokenizer is not None
        body = self.fmt.thought_body(row["explanation"])
        return len(
            tokenize(self.tokenizer, [render_student(self.fmt, self.tokenizer, problem_of_row(row), body)])[0].ids
        )


@dataclass
class Report:
    """What a selection did: rows read and kept, problems with nothing left, and rows dropped by reason."""

    rows: int = 0
    kept: int = 0
    problems: int = 0
    problems_without: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        """A line for people."""
        reasons = "; ".join(f"{count} x {reason}" for reason, count in self.dropped.most_common())
        without = f"; {self.problems_without} of {self.problems} problems have none" if self.problems_without else ""
        return f"{self.kept} of {self.rows} explanations kept{without}" + (f" (dropped: {reasons})" if reasons else "")


def select(
    rows: Iterable[Row],
    fits: Fits,
    choose: Choose,
    score: Callable[[Sequence[Row]], Sequence[tuple[float | None, str | None]]] | None = None,
    on_drop: Callable[[Row, str], None] | None = None,
    report: Report | None = None,
) -> Iterator[Row]:
    """The rows that students get, in the order of `rows`, which have each problem's explanations side by side.

    Rows that do not fit are dropped. `score` gives each of the others its `(reward, error)`; a row with an error is
    dropped too. Then `choose` takes of each problem's rest. `on_drop` sees each dropped row with the reason; numbers
    gather in `report`.
    """
    report = Report() if report is None else report
    for chunk in _chunks(groupby(rows, key=lambda row: row["problem"])):
        dropped: dict[int, str] = {}
        flat = [row for group in chunk for row in group]
        for i, row in enumerate(flat):
            if (reason := fits.reason(row)) is not None:
                dropped[i] = reason
        if score is not None:
            live = [i for i in range(len(flat)) if i not in dropped]
            for i, (reward, error) in zip(live, score([flat[i] for i in live]), strict=True):
                flat[i] = {**flat[i], "reward": reward}
                if reward is None:
                    dropped[i] = f"it cannot be scored: {error}"
        start = 0
        for group in chunk:
            indices = range(start, start + len(group))
            start += len(group)
            rest = [flat[i] for i in indices if i not in dropped]
            chosen = [row["id"] for row in choose(rest)] if rest else []
            for i in indices:
                if i not in dropped and flat[i]["id"] not in chosen:
                    dropped[i] = "another explanation of its problem was chosen"
            report.problems += 1
            report.problems_without += not chosen
        for i, row in enumerate(flat):
            report.rows += 1
            if i in dropped:
                report.dropped[dropped[i].partition(":")[0]] += 1
                if on_drop is not None:
                    on_drop(row, dropped[i])
            else:
                report.kept += 1
                yield row


def choose_all(rows: Sequence[Row]) -> Sequence[Row]:
    """All of them."""
    return rows


def choose_random(seed: int) -> Choose:
    """One of them, which depends on `seed` and the problem alone."""

    def choose(rows: Sequence[Row]) -> Sequence[Row]:
        return [random.Random(f"select {seed} {rows[0]['problem']}").choice(rows)]

    return choose


def choose_best(rows: Sequence[Row]) -> Sequence[Row]:
    """The one of highest `reward`; of equals the first."""
    return [max(rows, key=lambda row: row["reward"])]


def problem_of_row(row: Row) -> Problem:
    """The problem that an explanation row is about."""
    return Problem(row["problem"], row["question"], row["solution"], row.get("answer"), system=row.get("system"))


def _chunks(groups: Iterable[tuple[str, Iterable[Row]]]) -> Iterator[list[list[Row]]]:
    chunk: list[list[Row]] = []
    for _, group in groups:
        chunk.append(list(group))
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
