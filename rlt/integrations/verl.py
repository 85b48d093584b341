"""rlt's reward in verl: an agent loop with rlt's own prompt, and a `compute_score` for r_ss.

    actor_rollout_ref.rollout.agent.agent_loop_config_path=recipes/verl/agent-loop.yaml
    reward.custom_reward_function.path=pkg://rlt.integrations.verl

Runs in verl's environment, with rlt installed by `pip install --no-deps`. See docs/integrations/verl.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import cast
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from rlt.integrations.service import LOGGED, JsonRow, RewardService, ServiceError, labelled, whole_distribution


class TeacherAgentLoop(AgentLoopBase):
    """One explanation for each problem, sampled from `extra_info.teacher_prompt` and scored with its log-probs.

    `url`, `retry_for`: of the service; without `url`, the environment's (RLT_URL). The rows are those of
    `python -m rlt.integrations.prompts --kind verl`.
    """

    def __init__(self, *arguments: object, url: str | None = None, retry_for: float = 300.0, **more: object) -> None:
        super().__init__(*arguments, **more)
        self.service = service(url, retry_for)

    async def run(self, sampling_params: Mapping[str, float], **row: object) -> AgentLoopOutput:
        """The explanation of one row, with its reward and the parts that are logged.

        Raises ServiceError for a prompt that does not fit, log-probs that r_kl cannot use, and a row without a reward.
        """
        known = labelled(cast(JsonRow, row["reward_model"])["ground_truth"])
        prompt_ids = self._prompt(cast(dict[str, str], row.get("extra_info") or {}).get("teacher_prompt"))
        sampled = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=prompt_ids, sampling_params=sampling_params
        )
        response = sampled.token_ids[: self.rollout_config.response_length]
        logprobs = None if sampled.log_probs is None else sampled.log_probs[: len(response)]
        reward, parts = await self.service.reward(known | self._sampled(response, logprobs, sampling_params))
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=response,
            response_mask=[1] * len(response),
            response_logprobs=logprobs or None,
            reward_score=reward,
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={**sampled.extra_fields, "reward_extra_info": logged(parts)},
        )

    def _prompt(self, text: str | None) -> list[int]:
        if not text:
            raise ServiceError("verl: a row lacks `extra_info.teacher_prompt`; write the rows with `--kind verl`")
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        room = self.rollout_config.prompt_length
        if len(ids) > room:
            raise ServiceError(f"verl: a prompt has {len(ids)} tokens; increase data.max_prompt_length ({room}).")
        return ids

    def _sampled(self, ids: list[int], logprobs: list[float] | None, sampling: Mapping[str, float]) -> JsonRow:
        if not sampling["temperature"]:
            return {"token_ids": ids}  # greedy, in validation: its log-probs belong to no temperature
        if logprobs is None:
            raise ServiceError("verl: the rollout has no log-probs; set rollout.calculate_log_probs to true")
        whole_distribution("verl", sampling.get("top_p"), sampling.get("top_k"))
        processed = self.rollout_config.logprobs_mode == "processed_logprobs"
        return {
            "token_ids": ids,
            "logprobs": logprobs,
            "temperature": float(sampling["temperature"]) if processed else 1.0,
        }


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: object = None,
    *,
    url: str | None = None,
    retry_for: float = 300.0,
    **others: object,
) -> dict[str, float]:
    """The reward of one response in the form of verl's reward managers: `score` and its parts.

    verl passes only text, without special tokens. r_kl is therefore computed by the service's `--teacher` or left out, and
    the closing tag must not be a special token of the policy. `ground_truth` is the JSON label. Raises ServiceError for a
    row that cannot be scored.
    """
    reward, parts = await service(url, retry_for).reward({**labelled(ground_truth), "completion": solution_str})
    return {"score": reward, **logged(parts)}


# verl makes a new loop for each row; only a client that is shared by the process notices a different service.
@functools.cache
def service(url: str | None, retry_for: float) -> RewardService:
    """The process's client of the service at `url`, or of the environment's."""
    return RewardService.from_environment() if url is None else RewardService(url, retry_for=retry_for)


def logged(parts: Mapping[str, float]) -> dict[str, float]:
    """Every part under its name, NaN if missing: verl takes the names of a batch from its first row."""
    return {f"rlt/{name}": parts.get(name, math.nan) for name in LOGGED}
