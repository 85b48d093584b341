"""From a policy's samples to what is scored: the explanation's text and the policy's side of r_kl."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import torch

from rlt.errors import ScoringError
from rlt.reward.sides import Side
from rlt.text.formats import Format
from rlt.text.tokens import sampled_texts
from rlt.types import Explanation, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Sampled = tuple[Explanation, Side | None]


def sampled_explanations(
    fmt: Format,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    completion_ids: Sequence[Sequence[int]],
    known: Sequence[torch.Tensor | None],
    ends: Collection[int],
) -> list[Sampled | ScoringError]:
    """For each completion of C sampled tokens, its explanation and, if `known`, the policy's side.

    `known`: `(C,)` float32 log-probs in nats, or `(C, H)` hidden states for the exact KL; None for a row without either.
    `ends`: the ids that end a completion; these and later tokens are dropped. The side has the tokens that lie entirely
    inside the explanation. A row whose tokens cannot be read has a ScoringError instead.
    """
    ended = [list(takewhile(lambda token: token not in ends, ids)) for ids in completion_ids]
    rows: list[Sampled | ScoringError] = []
    for problem, ids, values, sampled in zip(problems, ended, known, sampled_texts(tokenizer, ended), strict=True):
        if isinstance(sampled, ScoringError):
            rows.append(sampled)
            continue
        text, boundaries = sampled
        explanation = fmt.completed(problem, text)
        rows.append((explanation, None if values is None else _side(ids, boundaries, len(explanation.text), values)))
    return rows


def _side(ids: list[int], boundaries: list[int], end: int, values: torch.Tensor) -> Side:
    inside = sum(position <= end for position in boundaries[1:])
    values = values[:inside]
    hidden = values.dim() == 2
    return Side(
        ids[:inside], boundaries[: inside + 1], None if hidden else values.float().cpu(), values if hidden else None
    )
