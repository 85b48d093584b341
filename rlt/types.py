"""Records that travel between stages. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its worked solution, as every stage receives it.

    `id` is unique in its dataset and stays the same between runs (the row's own `id` column, else its number).
    `answer` is the short final answer a grader compares; `explanation` an existing thought (a solver's trace, say);
    `system` the dataset's own system prompt, used where the format's `student_system_prompt` is null.

    Example: Problem(id="3", question="What is 2+3?", solution="2+3 = 5", answer="5")
    """

    id: str
    question: str
    solution: str
    answer: str | None = None
    explanation: str | None = None
    system: str | None = None

    def to_row(self) -> dict[str, Any]:
        """This problem as a row of JSON, without the columns it does not have."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class RewardParts:
    """One row's reward and what it is made of. Log-probs and divergences in nats; `None` where a part is not defined.

    `r_ss = mean + alpha * min` over the solution's tokens; `r_kl = mean + alpha * max` over the explanation's;
    `reward = r_ss - kl_coef * r_kl + format_penalty` (paper, section 3; see `rlt.reward.formula`). `error` says why a row could
    not be scored; every number is then `None`.
    """

    reward: float | None = None
    r_ss: float | None = None
    r_kl: float | None = None
    solution_log_prob_mean: float | None = None
    solution_log_prob_min: float | None = None
    explanation_kl_mean: float | None = None
    explanation_kl_max: float | None = None
    format_penalty: float | None = None
    solution_tokens: int | None = None
    explanation_tokens: int | None = None
    error: str | None = None

    def to_row(self) -> dict[str, Any]:
        """Every column, `None` included."""
        return asdict(self)
