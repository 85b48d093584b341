"""rlt's reward in OpenRLHF: an agent that gets the reward from a running `rlt serve`.

    RLT_URL=http://127.0.0.1:8100 python -m openrlhf.cli.train_ppo_ray --train.agent_func_path .../openrlhf.py ...

It samples as OpenRLHF does. With OpenRLHF's own `--reward.remote_url`, a failed request becomes a missing reward; here it
raises. See docs/integrations/openrlhf.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openrlhf.utils.agent import SingleTurnAgentExecutor

from rlt.integrations.service import RewardService, labelled, whole_distribution
from rlt.types import JsonRow

if TYPE_CHECKING:
    from vllm import SamplingParams


class AgentExecutor(SingleTurnAgentExecutor):
    """Samples one completion for each prompt and scores it; the `label` is JSON with `question` and `solution`.

    With `--algo.advantage.is_correction_level`, OpenRLHF gets log-probs at the sampling temperature from vLLM, and r_kl is
    computed from these; otherwise by the service's `--teacher`.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self.service = RewardService.from_environment()

    async def execute(
        self,
        prompt: str,
        label: object,
        sampling_params: SamplingParams,
        max_length: int,
        hf_tokenizer: object,
        llm_engine: object,
        images: object = None,
    ) -> JsonRow:
        """The executor's output with `reward`, `scores` and, in `extra_logs`, the reward's parts.

        Raises ServiceError for a label without a solution and for a row without a reward.
        """
        row = labelled(label)
        output = await super().execute(
            prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=images
        )
        ((start, end),) = output["action_ranges"]
        row["token_ids"] = list(output["observation_tokens"][start:end])
        if output["rollout_log_probs"] is not None:
            whole_distribution("OpenRLHF", sampling_params.top_p, sampling_params.top_k)
            row["logprobs"] = list(output["rollout_log_probs"][start:end])
            row["temperature"] = float(sampling_params.temperature)
        reward, parts = await self.service.reward(row)
        output.update(reward=reward, scores=reward, extra_logs=parts)
        return output
