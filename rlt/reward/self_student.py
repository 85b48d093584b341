"""The policy as its own student, with a prompt that lacks the solution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from rlt.config import SELF, RewardOptions
from rlt.errors import ConfigError
from rlt.models import loading, logprobs
from rlt.models.heads import vocabulary
from rlt.models.logprobs import Progress, Row
from rlt.reward.students import LocalModel, check_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LiveSelf(LocalModel):
    """The policy with its current weights: no second copy, and one forward pass for both terms of the reward.

    The trainer calls `attach` before it scores a batch. If the policy is sharded over ranks, all of them must score
    together, each with any number of rows.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: RewardOptions, batch_tokens: int | None = None
    ) -> None:
        self.tokenizer, self.options, self.batch_tokens = tokenizer, options, batch_tokens
        self.name, self.placement, self.context = SELF, "same", None
        self._autocast: Callable[[], AbstractContextManager[object]] = nullcontext

    def attach(self, model: nn.Module, autocast: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """Score with this model, in the trainer's precision. Raises ConfigError for `exact` if it is sharded."""
        if logprobs.is_sharded(model):
            check_sharded(self.name, self.options)
        core = logprobs.causal_lm(model)
        self.model, self._autocast = model, autocast
        self.context = loading.context_length(core.config)
        self.vocabulary = vocabulary(core)

    def logprobs(self, rows: Sequence[Row], temperature: float, progress: Progress | None = None) -> list[torch.Tensor]:
        """See `LocalModel.logprobs`."""
        with self._autocast():
            return super().logprobs(rows, temperature, progress)

    def hidden(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """See `LocalModel.hidden`."""
        with self._autocast():
            return super().hidden(rows)


class AveragedSelf(LocalModel):
    """A moving average of the policy's weights, whole on every rank even if FSDP2 shards the policy."""

    model: PreTrainedModel

    @torch.no_grad()
    def follow(self, policy: torch.nn.Module, decay: float) -> None:
        """Average <- decay * average + (1 - decay) * policy, weight by weight; every rank takes part.

        Raises ConfigError under ZeRO-3, whose weights have no shape outside of a forward pass.
        """
        theirs = dict(policy.named_parameters())
        if any(hasattr(parameter, "ds_id") for parameter in theirs.values()):
            raise ConfigError("`self_weights: ema` does not work with DeepSpeed ZeRO-3. Use `fsdp2`, or `live`.")
        for name, average in self.model.named_parameters():
            weight = theirs[name].detach()
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            average.lerp_(whole.to(average), 1 - decay)
