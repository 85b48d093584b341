"""The result of scoring an explanation: its reward with the parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlt.errors import ServerError
from rlt.reward.tokens import TokenNumbers
from rlt.types import JsonRow, RewardParts


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """The reward of one explanation: `parts` over all students, and `students` for each one if there are several.

    `accuracy` is the share of correct solutions that the students sampled: their mean, or with `aggregate: min` that of
    the student whose parts these are; `accuracies` has each one's if there are several. `gain` is
    what the student would gain from learning it (`train.gain`). The lifts are `r_ss` minus its
    value with an empty explanation, or with another question's: near 0, any text would earn this reward. `tokens`: each
    student's per-token numbers, if requested.
    """

    parts: RewardParts
    students: dict[str, RewardParts] = field(default_factory=dict)
    accuracy: float | None = None
    accuracies: dict[str, float] = field(default_factory=dict)
    gain: float | None = None
    lift_over_empty: float | None = None
    lift_over_shuffled: float | None = None
    tokens: dict[str, TokenNumbers] = field(default_factory=dict)

    @classmethod
    def failed(cls, error: str) -> ScoredRow:
        """A row that could not be scored, and why."""
        return cls(RewardParts(error=error))

    def to_row(self) -> JsonRow:
        """The columns of `rlt score`: every part, and the others if requested."""
        more: JsonRow = {
            name: value
            for name in ("accuracy", "gain", "lift_over_empty", "lift_over_shuffled")
            if (value := getattr(self, name)) is not None
        }
        if self.students:
            more["students"] = {
                name: parts.to_row()
                | ({"accuracy": self.accuracies[name]} if self.accuracies else {})
                | (_with_tokens(self.tokens[name]) if self.tokens else {})
                for name, parts in self.students.items()
            }
        elif self.tokens:
            more |= _with_tokens(next(iter(self.tokens.values())))
        return {**self.parts.to_row(), **more}


def _with_tokens(numbers: TokenNumbers) -> JsonRow:
    return {**numbers.summary(), "tokens": numbers.to_row()}


class StudentLost(ServerError):
    """A student's server is gone. `rows`: the first rows, those scored before."""

    def __init__(self, message: str, rows: Sequence[ScoredRow] = ()) -> None:
        super().__init__(message)
        self.rows = list(rows)
