"""The reward of a running `rlt serve` as a TRL reward function, for plain and for asynchronous GRPO.

    GRPOTrainer(reward_funcs=[ServiceReward("http://127.0.0.1:8100")], ...)

In asynchronous GRPO, the processes that compute rewards have no GPU; the service keeps the student on its own GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import cast

from rlt.integrations.service import LOGGED, JsonRow, RewardService, ServiceError, parts_of


class ServiceReward:
    """TRL reward function for completions of `rlt.text.formats.teacher_prompt`.

    The dataset has `question` and `solution`. The reward is r_ss + format_penalty, minus kl_coef * r_kl if the service has
    a `--teacher`, which should be the policy's starting model. A completion that cannot be scored gets None, which TRL
    leaves out of its group; if no completion of a batch can be scored, raises ServiceError. `eos_tokens`: texts at which
    completions are cut off.
    """

    def __init__(self, service: str | RewardService, *, eos_tokens: Sequence[str] = ()) -> None:
        self.__name__ = "rlt"
        self.service = RewardService(service) if isinstance(service, str) else service
        self.eos_tokens = tuple(eos_tokens)
        self.last_rows: list[JsonRow] = []

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
        rows: list[JsonRow] = []
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
            parts = [parts_of(row) for row in self.last_rows]
            for name in LOGGED:
                values = [part[name] for part in parts if name in part]
                if values:
                    log_metric(f"rlt/{name}", statistics.fmean(values))
            log_metric("rlt/failed", len(errors) / max(1, len(rows)))
        return [cast(float | None, row["reward"]) for row in self.last_rows]

    def _ended(self, completion: str) -> str:
        ends = [at for token in self.eos_tokens if (at := completion.find(token)) >= 0]
        return completion[: min(ends)] if ends else completion
