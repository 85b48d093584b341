"""The reward of a running `rlt serve` as a TRL reward function, for plain and for asynchronous GRPO.

    GRPOTrainer(reward_funcs=[ServiceReward("http://127.0.0.1:8100")], ...)

In asynchronous GRPO the processes that compute rewards see no GPU; a service holds the student on its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rlt.integrations.service import RewardService, ServiceError

LOGGED = ("r_ss", "r_kl", "explanation_kl_max", "format_penalty")


class ServiceReward:
    """TRL reward function for completions of `rlt.text.formats.teacher_prompt`; the dataset has `question` and `solution`.

    The reward is r_ss + format_penalty; also - kl_coef * r_kl if the service has a `--teacher`, which should then be the
    policy's start. A completion that cannot be scored gets None, which TRL leaves out of its group; if none of a batch can
    be, ServiceError is raised. `eos_tokens`: texts that end a completion and do not belong to it.
    """

    def __init__(self, service: str | RewardService, *, eos_tokens: Sequence[str] = ()) -> None:
        self.__name__ = "rlt"
        self.service = RewardService(service) if isinstance(service, str) else service
        self.eos_tokens = tuple(eos_tokens)
        self.last_rows: list[dict[str, Any]] = []

    def __call__(
        self,
        prompts: Sequence[object],
        completions: Sequence[str],
        *,
        question: Sequence[str],
        solution: Sequence[str],
        answer: Sequence[str | None] | None = None,
        system: Sequence[str | None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **others: object,
    ) -> list[float | None]:
        """The reward of each completion, in order, or None."""
        columns = {"question": question, "solution": solution, "answer": answer, "system": system}
        rows: list[dict[str, Any]] = []
        for i, completion in enumerate(completions):
            given = {
                name: column[i] for name, column in columns.items() if column is not None and column[i] is not None
            }
            rows.append({**given, "completion": self._ended(completion)})
        self.last_rows = self.service.score(rows) if rows else []
        errors = [row["error"] for row in self.last_rows if row["error"] is not None]
        if rows and len(errors) == len(rows):
            raise ServiceError(f"none of {len(rows)} completions could be scored; the first: {errors[0]}")
        if log_metric is not None:
            for name in LOGGED:
                values = [row[name] for row in self.last_rows if row[name] is not None]
                if values:
                    log_metric(f"rlt/{name}", statistics.fmean(values))
            log_metric("rlt/failed", len(errors) / max(1, len(rows)))
        return [row["reward"] for row in self.last_rows]

    def _ended(self, completion: str) -> str:
        ends = [at for token in self.eos_tokens if (at := completion.find(token)) >= 0]
        return completion[: min(ends)] if ends else completion
