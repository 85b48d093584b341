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

from rlt.text.formats import Format, render_student
from rlt.text.tokens import tokenize
from rlt.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
Choose = Callable[[Sequence[Row]], Sequence[Row]]


@dataclass(frozen=True)
class Fits:
    """What keeps an explanation from being a student's example: `reason(row)` is None where nothing does.

    For each of `students`, its tokenizer and its context in tokens: the student's whole text (system prompt, question,
    thought, solution, end of turn) is rendered in the student's format and counted to the token.
    """

    fmt: Format
    students: Sequence[tuple[PreTrainedTokenizerBase, int | None]] = ()

    def reason(self, row: Row) -> str | None:
        """Why the row is left out, in words that are counted, or None."""
        if not row["closed"]:
            return "the explanation never closes its tag"
        if self.fmt.tag_inside(row["explanation"]) is not None:
            return "the explanation contains a tag of the format"
        for tokenizer, context in self.students:
            if context is not None and self.tokens(tokenizer, row) > context:
                return "the student's text is longer than its context"
        return None

    def tokens(self, tokenizer: PreTrainedTokenizerBase, row: Row) -> int:
        """Tokens of the student's text."""
        written = self.fmt.as_written(row["explanation"])
        return len(tokenize(tokenizer, [render_student(self.fmt, tokenizer, problem_of_row(row), written)])[0].ids)


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
    judged: Iterable[tuple[Row, str | None]],
    choose: Choose,
    on_drop: Callable[[Row, str], None] | None = None,
    report: Report | None = None,
) -> Iterator[Row]:
    """The rows that students get, in their order; each problem's rows come side by side.

    `judged`: each row with the reason for which it is dropped, or None (`Fits.reason`). Of each problem's others `choose`
    takes its choice. `on_drop` sees each dropped row with the reason; numbers gather in `report`.
    """
    report = Report() if report is None else report
    for _, group in groupby(judged, key=lambda pair: pair[0]["problem"]):
        pairs = list(group)
        rest = [row for row, reason in pairs if reason is None]
        chosen = {row["id"] for row in choose(rest)} if rest else set()
        report.problems += 1
        report.problems_without += not chosen
        for row, reason in pairs:
            report.rows += 1
            if reason is None and row["id"] in chosen:
                report.kept += 1
                yield row
                continue
            reason = reason or "another explanation of its problem was chosen"
            report.dropped[reason.partition(":")[0]] += 1
            if on_drop is not None:
                on_drop(row, reason)


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
