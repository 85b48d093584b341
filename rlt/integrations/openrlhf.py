"""rlt's reward in OpenRLHF: an agent that samples as OpenRLHF does and asks a running `rlt serve` for the reward.

    RLT_URL=http://127.0.0.1:8100 python -m openrlhf.cli.train_ppo_ray --train.agent_func_path .../openrlhf.py ...

OpenRLHF's own `--reward.remote_url` turns a failed request into a missing reward; here it raises. See
docs/integrations/openrlhf.md.
"""

from __future__ import annotations

from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

from rlt.integrations.service import RewardService, labelled, whole_distribution
from rlt.types import JsonRow


class AgentExecutor(SingleTurnAgentExecutor):
    """Samples one completion for each prompt and has it scored; the `label` is JSON with `question` and `solution`.

    With `--algo.advantage.is_correction_level` OpenRLHF asks vLLM for log-probs at the sampling temperature, and r_kl comes
    from these; without, from the service's `--teacher`.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self.service = RewardService.from_environment()

    async def execute(
        self,
        prompt: str,
        label: object,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> JsonRow:
        """The executor's output with `reward`, `scores` and, in `extra_logs`, the reward's parts.

        Raises ServiceError for a label without a solution and for a reward that cannot be had.
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
