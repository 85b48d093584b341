"""rlt's reward in slime: `--custom-rm-path rlt.integrations.slime.reward`. See docs/integrations/slime.md."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlt.integrations.service import RewardService, ServiceError, labelled, whole_distribution
from rlt.types import JsonRow

if TYPE_CHECKING:
    from slime.utils.types import Sample

Reward = float | dict[str, float]


async def reward(args: Namespace, sample: Sample | Sequence[Sample], **others: object) -> Reward | list[Reward]:
    """The reward of a slime `Sample`, or of each in a list: a number, or with `--reward-key` an object with its parts.

    The sample's `label` is JSON with `question` and `solution`. r_kl is computed from the rollout's log-probs. Raises
    ServiceError for a label without a solution, for several turns, and for a sample without a reward.
    """
    if isinstance(sample, Sequence):
        return list(await asyncio.gather(*(_reward(args, one) for one in sample)))
    return await _reward(args, sample)


async def _reward(args: Namespace, sample: Sample) -> Reward:
    value, parts = await RewardService.from_environment().reward(_row(args, sample))
    return {args.reward_key: value, **parts} if args.reward_key else value


def _row(args: Namespace, sample: Sample) -> JsonRow:
    row, length = labelled(sample.label), sample.response_length
    if sample.loss_mask is not None and not all(sample.loss_mask):
        raise ServiceError("slime: the response has tokens that the policy did not sample; the reward is for one turn")
    row["token_ids"] = list(sample.tokens[len(sample.tokens) - length :])
    if sample.rollout_log_probs is not None:
        whole_distribution("slime", args.rollout_top_p, args.rollout_top_k)
        row["logprobs"] = list(sample.rollout_log_probs)
        row["temperature"] = float(args.rollout_temperature)
    return row
