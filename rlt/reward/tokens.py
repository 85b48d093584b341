"""Per-token numbers behind the reward, for `rlt score --tokens` and `rlt view`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np

from rlt.types import JsonRow

if TYPE_CHECKING:
    import torch

RANK_LIMIT = 100
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class TokenNumbers:
    """One student's numbers, in nats, behind the parts of one row.

    `solution` `(S,)`: texts of the solution's tokens, with log-probs `(S,)` given this explanation, an empty one, and
    another question's. `explanation` `(E,)`: texts with the log-probs of `teacher` and `student` and the `divergence`
    behind `r_kl`; if the tokenizers differ, each is a stretch whose ends both share. Of tokens that are bytes of one
    character, the first has its text, the others "". `solution_ranks`, `explanation_ranks`: the token's rank in the
    student's distribution, 1 for the most probable one (unknown for stretches). None: unknown.
    """

    solution: list[str]
    log_probs: torch.Tensor
    explanation: list[str]
    teacher: torch.Tensor | None = None
    student: torch.Tensor | None = None
    divergence: torch.Tensor | None = None
    log_probs_empty: torch.Tensor | None = None
    log_probs_shuffled: torch.Tensor | None = None
    solution_ranks: list[int] | None = None
    explanation_ranks: list[int] | None = None

    def summary(self) -> JsonRow:
        """What other methods rank explanations by, both under the student and at the temperature of scoring; None: not known.

        `explanation_log_prob`: mean over the explanation's tokens, in nats. `rank_surprisal`: the mean rank of its tokens, none
        counted above `RANK_LIMIT`, over their mean surprisal; lower is better (Rank-Surprisal Ratio, arXiv 2601.14249).
        """
        if self.student is None or not len(self.student):
            return {"explanation_log_prob": None, "rank_surprisal": None}
        surprisal, ranks = -float(self.student.double().mean()), self.explanation_ranks
        ratio = None
        if ranks and surprisal > 0:
            ratio = sum(min(rank, RANK_LIMIT) for rank in ranks) / len(ranks) / surprisal
        return {"explanation_log_prob": -surprisal, "rank_surprisal": ratio}

    def to_row(self) -> JsonRow:
        """The struct `tokens` of a row: texts as lists, numbers as base64 of little-endian float16 (`packed`)."""
        numbers = {name: None if (value := getattr(self, name)) is None else packed(value) for name in NUMBERS}
        ranks = {name: getattr(self, name) for name in RANKS}
        return {"solution": self.solution, "explanation": self.explanation, **numbers, **ranks}


NUMBERS = ("log_probs", "log_probs_empty", "log_probs_shuffled", "teacher", "student", "divergence")
RANKS = ("solution_ranks", "explanation_ranks")


def token_texts(text: str, boundaries: Sequence[int]) -> list[str]:
    """The text of each token, from the `(n + 1,)` positions around them (`rlt.text.tokens.Tokenized.boundaries`).

    Of tokens that are bytes of one character, the first has the character, the others "".
    """
    return [text[a:b] for a, b in pairwise(boundaries)]


def half(values: torch.Tensor) -> np.ndarray:
    """`(n,)` float16 of `values`, with the sum of `values` up to the rounding of the smallest one.

    Plainly rounding 1,000 log-probs would let their sum drift. Each value's rounding error is therefore carried to the
    next smaller one, so a value is off by at most its own and the next larger one's rounding. Values beyond float16's
    range become its largest number.
    """
    exact = values.detach().double().numpy().clip(-LARGEST, LARGEST)
    result, carried = np.zeros(len(exact), dtype="<f2"), 0.0
    for i in np.argsort(-np.abs(exact), kind="stable"):
        wanted = float(np.clip(exact[i] + carried, -LARGEST, LARGEST))
        result[i] = wanted
        carried = wanted - float(result[i])
    return result


def packed(values: torch.Tensor) -> str:
    """`half` of `values` as base64, 2.7 characters per number."""
    return base64.b64encode(half(values).tobytes()).decode()


def packed_list(values: Sequence[float]) -> str:
    """The text that `packed` made of the numbers in a Parquet row."""
    return base64.b64encode(np.array(values, dtype="<f2").tobytes()).decode()


def unpacked(text: str) -> np.ndarray:
    """The `(n,)` float16 numbers in a text made by `packed`."""
    return np.frombuffer(base64.b64decode(text), dtype="<f2")


def lists(tokens: JsonRow | None) -> JsonRow | None:
    """The struct `tokens` with lists of numbers instead of base64, for Parquet's list<halffloat>."""
    if tokens is None:
        return None
    texts = {name: cast(str | None, tokens[name]) for name in NUMBERS}
    return tokens | {name: None if text is None else unpacked(text).tolist() for name, text in texts.items()}
