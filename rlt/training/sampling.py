"""Sampling from the policy in training with rlt's own engine instead of transformers' `generate`.

A prompt shared by its group is read once, finished completions leave the batch, and the log-probs of the sampled tokens are
kept: in float32, r_kl then needs no forward pass of the policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rlt.engines.base import Sampling, request_seed
from rlt.engines.hf import HfEngine
from rlt.errors import ConfigError
from rlt.models.heads import causal_lm
from rlt.models.logprobs import in_shards
from rlt.training.batches import sampler_problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl import GRPOConfig
    from trl import GRPOTrainer as _Trainer
else:
    _Trainer = object


def engine_samples(sampler: str, arguments: GRPOConfig) -> bool:
    """Whether rlt's engine is to sample. Raises ConfigError if it must (`engine`) and cannot under the trainer's options."""
    problem = sampler_problem(vars(arguments))
    if sampler == "engine" and problem is not None:
        raise ConfigError(problem)
    return sampler != "generate" and problem is None


class EngineSampling(_Trainer):
    """Mixin before TRL's GRPOTrainer: `sampler` (see `SamplerOptions`) says who samples.

    The engine's completions depend on the trainer's seed, the step and the place in the batch of all processes. So a resumed
    run samples what an uninterrupted one would, and two processes what one would (up to rounding). `sampled_logprobs`: per
    completion its `(C,)` log-probs at `logprob_temperature` if the engine sampled them in float32, where they are those of a
    whole forward pass; else None.
    """

    args: GRPOConfig
    model: PreTrainedModel
    sampled_logprobs: list[torch.Tensor] | None = None

    @property
    def logprob_temperature(self) -> float:
        """Temperature at which the log-probs of sampled tokens are kept; a subclass may need another."""
        return 1.0

    def __init__(self, *arguments: object, sampler: str = "auto", **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.sampler, self._engine_samples = sampler, engine_samples(sampler, self.args)
        self._sampled_at, self._generations = -1, 0

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *arguments: object, **options: object
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        self.sampled_logprobs = None
        if not self._engine_samples or self._is_sharded():
            return super()._generate_single_turn(prompt_ids, *arguments, **options)
        sampled = self._sample(prompt_ids)
        plain = str(self.accelerator.mixed_precision) == "no"
        if plain and all(value.dtype == torch.float32 for value in self.model.parameters()):
            self.sampled_logprobs = [logprobs for _, logprobs in sampled]
        return [ids for ids, _ in sampled], None

    def _is_sharded(self) -> bool:
        """Whether a rank has only a part of the policy. Raises ConfigError if the engine must sample all the same."""
        sharded = in_shards(self.model_wrapped)
        if sharded and self.sampler == "engine":
            raise ConfigError(
                "`sampler: engine` needs the whole policy on each rank; it is sharded. Set `sampler: auto`."
            )
        return sharded

    def _sample(self, prompts: list[list[int]]) -> list[tuple[list[int], torch.Tensor]]:
        """For each prompt, the sampled ids with the token that ends the turn, and their `(C,)` log-probs."""
        model, arguments = causal_lm(self.accelerator.unwrap_model(self.model_wrapped)), self.args
        engine = HfEngine.of(model, self.processing_class)  # type: ignore[arg-type]
        engine.end_ids = set(self.eos_token_ids)
        step, first = self.state.global_step, self.accelerator.process_index * len(prompts)
        self._generations = self._generations + 1 if step == self._sampled_at else 0  # several in one step
        self._sampled_at = step
        seeds = [
            request_seed(arguments.seed, model.training, step, self._generations, place)
            for place in range(first, first + len(prompts))
        ]
        length = arguments.max_completion_length or 1
        sampling = Sampling(length, arguments.temperature, arguments.top_p, arguments.top_k or None)
        training = model.training
        model.eval()
        try:
            # Under mixed precision, one context for all tokens casts the weights once; the forward pass's own would cast them
            # at every token.
            with self.accelerator.autocast():
                return engine.sample(prompts, seeds, sampling, self.logprob_temperature)
        finally:
            model.train(training)
