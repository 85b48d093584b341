"""rlt's reward in verifiers and prime-rl: a reward function and a taskset.

    --env.taskset.task.rewards.rlt.fn rlt.integrations.verifiers:rlt

See docs/integrations/verifiers.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import compress
from pathlib import Path

import verifiers.v1 as vf
from verifiers.v1.trace import Trace

from rlt.integrations.service import RewardService, ServiceError, labelled, whole_distribution
from rlt.types import JsonRow

__all__ = ["TeacherTaskset", "rlt"]


async def rlt(task: object, trace: Trace) -> float:
    """The reward of a trace of one turn, whose `task` has `question` and `solution`; its parts become metrics.

    r_kl is computed from the trace's log-probs. Raises ServiceError for several turns and for a trace without a reward:
    verifiers then records the trace as failed, without a reward.
    """
    row = labelled({name: getattr(task, name, None) for name in ("question", "solution", "answer", "system")})
    reward, parts = await RewardService.from_environment().reward(row | sampled(trace))
    trace.record_metrics({f"rlt/{name}": value for name, value in parts.items()})
    return reward


def sampled(trace: Trace) -> JsonRow:
    """What the policy sampled: token ids and log-probs from prime-rl's engine, or text if the client has no tokens."""
    branches = [branch for branch in trace.branches if branch.trainable]
    calls = [call for call in trace.calls if call.node is not None]
    if len(branches) != 1 or len(calls) != 1:
        raise ServiceError(
            f"verifiers: a trace with {len(branches)} branches and {len(calls)} model calls; the reward is for one "
            "explanation"
        )
    (branch,), mask, sampling = branches, branches[0].sampled_mask, calls[0].sampling
    if not any(mask):
        return {"completion": trace.last_reply}
    if sampling is None or sampling.temperature is None:
        raise ServiceError("verifiers: the sampling temperature is not set; r_kl depends on it")
    whole_distribution("verifiers", sampling.top_p, getattr(sampling, "top_k", None))
    return {
        "token_ids": list(compress(branch.token_ids, mask)),
        "logprobs": list(compress(branch.logprobs, mask)),
        "temperature": float(sampling.temperature),
    }


class TeacherData(vf.TaskData):
    """A problem: the teacher's prompt, and what its explanation is rewarded against."""

    question: str
    solution: str
    answer: str | int | float | None = None
    system: str | None = None


class TeacherTask(vf.Task[TeacherData]):
    @vf.reward
    async def rlt(self, trace: Trace) -> float:
        return await rlt(self.data, trace)


class TeacherConfig(vf.TasksetConfig):
    data: Path
    """File written by `python -m rlt.integrations.prompts --kind messages`."""


class TeacherTaskset(vf.Taskset[TeacherTask, TeacherConfig]):
    """Problems in rlt's format, each with the messages that ask a teacher for its explanation."""

    def load(self) -> Iterator[TeacherTask]:
        """A task for each row; raises ValueError, naming file, row and field, for a row without messages."""
        with self.config.data.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                messages = row.get("prompt")
                if not isinstance(messages, list) or not messages or messages[-1].get("role") != "user":
                    raise ValueError(
                        f"{self.config.data} line {number}: `prompt` must be messages that end with a user's. Write the file "
                        "with: python -m rlt.integrations.prompts --kind messages"
                    )
                *before, last = messages
                data = TeacherData(
                    prompt=last["content"],
                    system_prompt=before[0]["content"] if before else None,
                    **labelled(row["label"]),
                )
                yield TeacherTask(data, self.config.task)
