"""Two models compared on one explanation, token by token or by common stretches of text."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlt.errors import ConfigError
from rlt.reward.formula import divergence, stretch_sums
from rlt.reward.tokens import TokenNumbers, token_texts
from rlt.text.tokens import Tokenized, aligned
from rlt.types import Explanation


@dataclass(frozen=True, slots=True)
class Side:
    """One model's tokens of an explanation: those entirely between its opening padding and its closing tag.

    `ids` `(n,)`; `boundaries` `(n + 1,)`: character positions around them, from the explanation's start; `logprobs` `(n,)`:
    float32 in nats, at the scoring temperature; `hidden` `(n, H)`: the states that predict them, for the exact KL.
    """

    ids: list[int]
    boundaries: list[int]
    logprobs: torch.Tensor | None = None
    hidden: torch.Tensor | None = None


def side_of(text: Tokenized, logprobs: torch.Tensor | None, hidden: torch.Tensor | None = None) -> Side:
    """The model's side of a text: its explanation's tokens with their log-probs or hidden states."""
    span = text.spans["explanation"]
    return Side(text.ids[span.start : span.stop], text.boundaries("explanation"), logprobs, hidden)


def explanation_divergence(teacher: Side, student: Side, estimator: str, same: bool) -> tuple[torch.Tensor, int]:
    """`(E,)` one-sample divergences, in nats, and the number of the student's tokens behind them.

    If both models share a tokenizer (`same`), E is the number of tokens. Otherwise E is the number of shortest stretches
    of text whose boundaries both tokenizations share, and each value is the estimate from the log-probs of that stretch
    under each model: sums over its tokens, by the chain rule. TRL's GOLD trainer aligns tokenizers in the same way
    (Patiño et al., "Unlocking on-policy distillation for any model family", 2025). Tokens that merge with a tag on one
    side only are left out.
    """
    if teacher.logprobs is None or student.logprobs is None:
        raise ConfigError(f"the estimator `{estimator}` needs the log-probs of teacher and student.")
    if _equal(teacher, student, same):
        return divergence(teacher.logprobs, student.logprobs, estimator), len(student.ids)
    pairs = aligned(teacher.ids, teacher.boundaries, student.ids, student.boundaries, same)
    theirs = stretch_sums(teacher.logprobs, [a for a, _ in pairs])
    ours = stretch_sums(student.logprobs, [b for _, b in pairs])
    return divergence(theirs, ours, estimator), sum(len(b) for _, b in pairs)


def _equal(teacher: Side, student: Side, same: bool) -> bool:
    return same and teacher.ids == student.ids and teacher.boundaries == student.boundaries


def token_numbers(
    item: Explanation,
    text: Tokenized,
    solution: torch.Tensor,
    student: Side,
    teacher: Side | None,
    kl: torch.Tensor | None,
    same: bool,
) -> TokenNumbers:
    """The per-token numbers behind one student's parts: `solution` `(S,)` log-probs, `kl` `(E,)` divergences."""
    words = token_texts(item.problem.solution, text.boundaries("solution"))
    pieces = token_texts(item.text, student.boundaries)
    if teacher is None:
        return TokenNumbers(words, solution, pieces)
    # As in `explanation_divergence`: equal tokenizations are compared token by token, others by stretches.
    pairs = [(range(i, i + 1), range(i, i + 1)) for i in range(len(student.ids))]
    if not _equal(teacher, student, same):
        pairs = aligned(teacher.ids, teacher.boundaries, student.ids, student.boundaries, same)
    theirs = None if teacher.logprobs is None else stretch_sums(teacher.logprobs, [a for a, _ in pairs])
    ours = None if student.logprobs is None else stretch_sums(student.logprobs, [b for _, b in pairs])
    stretches = ["".join(pieces[b.start : b.stop]) for _, b in pairs]
    return TokenNumbers(words, solution, stretches, theirs, ours, kl)
