"""What two models say of one explanation, compared: token by token, or by stretches where their tokenizers differ."""

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
    """One model's tokens of an explanation: those wholly between the padding that opens it and its closing tag.

    `ids` `(n,)`; `boundaries` `(n + 1,)` characters from the explanation's start before and after each; `logprobs` `(n,)`
    float32 in nats, at the scoring temperature; `hidden` `(n, H)`, the states that predict them, for the exact KL.
    """

    ids: list[int]
    boundaries: list[int]
    logprobs: torch.Tensor | None = None
    hidden: torch.Tensor | None = None


def side_of(text: Tokenized, logprobs: torch.Tensor | None, hidden: torch.Tensor | None = None) -> Side:
    """The model's side of a text: its explanation's tokens, with their log-probs or hidden states."""
    span = text.spans["explanation"]
    return Side(text.ids[span.start : span.stop], text.boundaries("explanation"), logprobs, hidden)


def explanation_divergence(teacher: Side, student: Side, estimator: str, same: bool) -> tuple[torch.Tensor, int]:
    """`(E,)` one-sample divergences, in nats, and how many of the student's tokens stand behind them.

    Where both tokenizers are one (`same`), E is the number of tokens, and each value belongs to one. Otherwise E is the
    number of shortest stretches of text on whose boundaries both tokenizations agree, and each value is the estimate on
    the log-probs of that stretch under each model: the sums over its tokens, by the chain rule. The same construction
    aligns tokenizers in TRL's GOLD trainer (Patiño et al., "Unlocking on-policy distillation for any model family",
    2025). Tokens that merge with a tag on one side only are in no stretch.
    """
    if teacher.logprobs is None or student.logprobs is None:
        raise ConfigError(f"the estimator `{estimator}` needs the log-probs of teacher and student.")
    if same and teacher.ids == student.ids and teacher.boundaries == student.boundaries:
        return divergence(teacher.logprobs, student.logprobs, estimator), len(student.ids)
    pairs = aligned(teacher.ids, teacher.boundaries, student.ids, student.boundaries, same)
    theirs = stretch_sums(teacher.logprobs, [a for a, _ in pairs])
    ours = stretch_sums(student.logprobs, [b for _, b in pairs])
    return divergence(theirs, ours, estimator), sum(len(b) for _, b in pairs)


def token_numbers(
    item: Explanation,
    text: Tokenized,
    solution: torch.Tensor,
    student: Side,
    teacher: Side | None,
    kl: torch.Tensor | None,
    same: bool,
) -> TokenNumbers:
    """The numbers of single tokens behind one student's parts: `solution` `(S,)` log-probs, `kl` `(E,)` divergences."""
    words = token_texts(item.problem.solution, text.boundaries("solution"))
    if teacher is None:
        return TokenNumbers(words, solution, token_texts(item.text, student.boundaries))
    # As in `explanation_divergence`: equal tokenizations are compared token by token, others by stretches.
    pairs = [(range(i, i + 1), range(i, i + 1)) for i in range(len(student.ids))]
    if not (same and teacher.ids == student.ids and teacher.boundaries == student.boundaries):
        pairs = aligned(teacher.ids, teacher.boundaries, student.ids, student.boundaries, same)
    pieces = token_texts(item.text, student.boundaries)
    theirs = None if teacher.logprobs is None else stretch_sums(teacher.logprobs, [a for a, _ in pairs])
    ours = None if student.logprobs is None else stretch_sums(student.logprobs, [b for _, b in pairs])
    stretches = ["".join(pieces[b.start : b.stop]) for _, b in pairs]
    return TokenNumbers(words, solution, stretches, theirs, ours, kl)
