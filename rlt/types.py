"""Records that travel between stages. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NotRequired, TypedDict

JsonRow = dict[str, object]
"""One row of a file, or any JSON object."""

AnyRow = dict[str, Any]
"""The same for values that another library checks, such as keyword arguments."""

JsonMap = Mapping[str, object]
"""A read-only JsonRow."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its worked solution, as every stage receives it.

    `id` is unique in its dataset and the same in every run (the row's `id` column, else its number). `answer`: the short
    final answer that a grader compares. `explanation`: an existing thought, such as a solver's trace. `system`: the
    dataset's own system prompt, used if the format's `student_system_prompt` is null. `task`: the task whose grader reads
    `answer`. `source`: the dataset of a mixture that the problem comes from.

    Example: Problem(id="3", question="What is 2+3?", solution="2+3 = 5", answer="5")
    """

    id: str
    question: str
    solution: str
    answer: str | None = None
    explanation: str | None = None
    system: str | None = None
    task: str | None = None
    source: str | None = None

    def to_row(self) -> JsonRow:
        """This problem as a row, without empty columns."""
        return {key: value for key, value in asdict(self).items() if value is not None}


class ExplanationRow(TypedDict):
    """A row of the files that `rlt collect` writes, as `Explanation.to_row` makes it."""

    id: str
    problem: str
    sample: int
    question: str
    solution: str
    answer: str | None
    system: str | None
    explanation: str
    completion: str
    closed: bool
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    logprob_sum: float | None
    seed: int | None
    engine: str | None
    text_only: bool
    task: NotRequired[str | None]
    source: NotRequired[str | None]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One explanation of a problem, from the engine that wrote it to the student that learns from it.

    `text`: everything between the teacher's prompt and its closing tag, unchanged; `closed`: whether that tag was written.
    `id` is unique in its file; `sample` numbers the explanations of one problem. Known only if an engine wrote it: token
    counts, log-prob in nats, seed (None: not seeded), finish reason (`stop`, `length`), the engine, and whether the server
    returned text without token ids (`text_only`).

    Example: Explanation(Problem("3", "2+3?", "5"), "two and three", id="3/0", sample=0, completion_tokens=4, seed=1234)
    """

    problem: Problem
    text: str
    closed: bool = True
    id: str = ""
    sample: int = 0
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logprob_sum: float | None = None
    seed: int | None = None
    engine: str | None = None
    text_only: bool = False

    def to_row(self, padding: str, tag: str) -> ExplanationRow:
        """The row with every column of `rlt.data.explanations.COLUMNS`, for a format with this padding and closing tag.

        `completion` is the teacher's text with its tag; `explanation` has neither the tag nor the padding before it: a
        student's text is padding + explanation + padding.
        """
        problem = self.problem
        return {
            "id": self.id, "problem": problem.id, "sample": self.sample, "question": problem.question,
            "solution": problem.solution, "answer": problem.answer, "system": problem.system,
            "explanation": self.text.removesuffix(padding), "completion": self.text + (tag if self.closed else ""),
            "closed": self.closed, "finish_reason": self.finish_reason, "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens, "logprob_sum": self.logprob_sum, "seed": self.seed,
            "engine": self.engine, "text_only": self.text_only, "task": problem.task, "source": problem.source,
        }  # fmt: skip

    @classmethod
    def from_row(cls, row: ExplanationRow, tag: str) -> Explanation:
        """The explanation in a row made by `to_row`."""
        problem = Problem(
            row["problem"], row["question"], row["solution"], row["answer"], system=row["system"],
            task=row.get("task"), source=row.get("source"),
        )  # fmt: skip
        return cls(
            problem, row["completion"].removesuffix(tag) if row["closed"] else row["completion"], row["closed"],
            row["id"], row["sample"], row["finish_reason"], row["prompt_tokens"], row["completion_tokens"],
            row["logprob_sum"], row["seed"], row["engine"], row["text_only"],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RewardParts:
    """One row's reward and its parts. Log-probs and divergences in nats; `None` if a part is undefined.

    `r_ss = mean + alpha * min` over the solution's tokens; `r_kl = mean + alpha * max` over the explanation's;
    `reward = r_ss - kl_coef * r_kl + format_penalty` (paper, section 3; see `rlt.reward.formula`). If a
    row cannot be scored, `error` says why and every number is `None`.
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

    def to_row(self) -> JsonRow:
        """Every column, including those that are `None`."""
        return asdict(self)
