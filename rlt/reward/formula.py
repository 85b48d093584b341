"""The reward of a Reinforcement-Learned Teacher on one page: pure arithmetic on per-token numbers.

    r     = r_ss - kl_coef * r_kl + format_penalty
    r_ss  = mean(log pi_s(solution | explanation, question)) + alpha * min(...)       over the solution's tokens
    r_kl  = mean(KL(pi_theta(t | solution, question) || pi_s(t | question))) + alpha * max(...)   over the explanation's

Source: Cetin, Zhao, Tang, arXiv 2506.08388, section 3. Paper and published code use alpha = 0.01 and kl_coef (the
paper's lambda) = 3. The code departs from the formula in three ways, each an option of `rlt.config.RewardOptions`: both
models are scored at temperature 0.7, the KL is the one-sample log ratio (`k1`), and an unclosed explanation costs 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rlt.errors import ScoringError
from rlt.types import RewardParts


def divergence(
    teacher_logprobs: Float[Tensor, " tokens"], student_logprobs: Float[Tensor, " tokens"], estimator: str
) -> Float[Tensor, " tokens"]:
    """One-sample estimates `(N,)`, in nats, of KL(teacher || student) at tokens that the teacher sampled.

    With d = log pi_theta - log pi_s: `k1` is d (unbiased, may be negative), `k3` is exp(-d) - 1 + d (unbiased, never
    negative; Schulman, "Approximating KL divergence", 2020). `exact` needs distributions: `rlt.models.logprobs.exact_kl`.
    """
    difference = teacher_logprobs - student_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k3":
        return torch.exp(-difference) - 1 + difference
    raise ValueError(f"estimator {estimator!r}: one-sample estimators are 'k1' and 'k3'")


def stretch_sums(values: Float[Tensor, " tokens"], stretches: Sequence[range]) -> Float[Tensor, " stretches"]:
    """`(len(stretches),)` sums of the per-token `values` `(N,)` over each range of token indices.

    By the chain rule, the sum of log-probs over a stretch is the log-prob of its text in this tokenization. This defines
    `r_kl` between different tokenizers: `divergence` of two such sums compares the same text under both models (cf.
    universal logit distillation and TRL's GOLD trainer, which also merge tokens over shared boundaries). Like every
    tokenizer-based likelihood, it ignores other tokenizations of the same text.
    """
    if values.numel() == 0:
        return values.new_zeros(len(stretches))
    total = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
    starts = torch.tensor([r.start for r in stretches], device=values.device, dtype=torch.long)
    stops = torch.tensor([r.stop for r in stretches], device=values.device, dtype=torch.long)
    return (total[stops] - total[starts]).to(values.dtype)


def reward_parts(
    solution_logprobs: Float[Tensor, " solution"],
    explanation_kl: Float[Tensor, " explanation"] | None,
    *,
    alpha: float,
    kl_coef: float,
    format_penalty: float,
    alpha_kl: float | None = None,
    mean_coef: float = 1.0,
    explanation_tokens: int | None = None,
) -> RewardParts:
    """The reward of one explanation with its parts.

    `solution_logprobs` `(S,)`: the student's log-probs of the solution's tokens. `explanation_kl` `(E,)`: divergences on
    the explanation (None without a teacher: then r = r_ss + format_penalty). An explanation without tokens has r_kl = 0:
    nothing in it is unnatural. `alpha_kl` and `mean_coef` replace the weights of the KL's maximum (`alpha`) and of both
    means (1). `explanation_tokens`: the number of tokens behind `explanation_kl`, if not its length (stretches).
    Raises ScoringError for a solution without tokens, and for NaN or infinity, which never become a penalty.
    """
    if solution_logprobs.numel() == 0:
        raise ScoringError("no token of the solution lies inside its tags; it is empty or merges with them")
    mean, low = solution_logprobs.mean().item(), solution_logprobs.min().item()
    kl_mean = kl_max = r_kl = None
    if explanation_kl is not None:
        kl_mean, kl_max = (
            (explanation_kl.mean().item(), explanation_kl.max().item()) if explanation_kl.numel() else (0.0, 0.0)
        )
        r_kl = mean_coef * kl_mean + (alpha if alpha_kl is None else alpha_kl) * kl_max
        if explanation_tokens is None:
            explanation_tokens = explanation_kl.numel()
    r_ss = mean_coef * mean + alpha * low
    for name, value in (("student's log-probs of the solution", r_ss), ("KL of the explanation", r_kl)):
        if value is not None and not math.isfinite(value):
            raise ScoringError(f"the {name} is {value}: a model returned NaN or infinity for this row")
    return RewardParts(
        reward=r_ss - kl_coef * (r_kl or 0.0) + format_penalty,
        r_ss=r_ss,
        r_kl=r_kl,
        solution_log_prob_mean=mean,
        solution_log_prob_min=low,
        explanation_kl_mean=kl_mean,
        explanation_kl_max=kl_max,
        format_penalty=format_penalty,
        solution_tokens=solution_logprobs.numel(),
        explanation_tokens=explanation_tokens,
    )


def combine(parts: Sequence[RewardParts], aggregate: str) -> RewardParts:
    """The reward over several students: that of the student with the smallest (`min`), or the mean of each number (`mean`).

    Token counts that differ between students' tokenizers are None.
    """
    if len(parts) == 1:
        return parts[0]
    if aggregate == "min":
        return parts[smallest_of(parts)]

    def mean(name: str) -> float | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else sum(values) / len(values)

    def common(name: str) -> int | None:
        values = {getattr(part, name) for part in parts}
        return values.pop() if len(values) == 1 else None

    return RewardParts(
        reward=mean("reward"),
        r_ss=mean("r_ss"),
        r_kl=mean("r_kl"),
        solution_log_prob_mean=mean("solution_log_prob_mean"),
        solution_log_prob_min=mean("solution_log_prob_min"),
        explanation_kl_mean=mean("explanation_kl_mean"),
        explanation_kl_max=mean("explanation_kl_max"),
        format_penalty=mean("format_penalty"),
        solution_tokens=common("solution_tokens"),
        explanation_tokens=common("explanation_tokens"),
    )


def smallest_of(parts: Sequence[RewardParts]) -> int:
    """The index of the smallest reward."""
    return min(range(len(parts)), key=lambda i: parts[i].reward or 0.0)
