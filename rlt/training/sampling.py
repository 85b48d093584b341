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
from rlt.models.logprobs import is_sharded
from rlt.training.batches import sampler_problem

if TYPE_CHECKING:
    from trl import GRPOConfig

    from rlt.training.teacher import TeacherTrainer


def checked_sampler(sampler: str, arguments: GRPOConfig) -> bool:
    """Whether `sampler` is the engine. Raises ConfigError for options of the trainer under which that cannot sample."""
    if sampler == "engine" and (problem := sampler_problem(vars(arguments))) is not None:
        raise ConfigError(problem)
    return sampler == "engine"


class PolicySampler:
    """Completions of a GRPO trainer's prompts. They depend on the trainer's seed, the step and the place in the batch, so a
    resumed run samples what an uninterrupted one would. Raises ConfigError if the policy is sharded.
    """

    def __init__(self, trainer: TeacherTrainer) -> None:
        checked_sampler("engine", trainer.args)
        self.trainer, self._last, self._calls = trainer, -1, 0

    @property
    def exact(self) -> bool:
        """Whether the log-probs are those of a whole forward pass, up to float32's rounding."""
        plain = str(self.trainer.accelerator.mixed_precision) == "no"
        return plain and all(value.dtype == torch.float32 for value in self.trainer.model.parameters())

    def __call__(self, prompts: list[list[int]], temperature: float) -> tuple[list[list[int]], list[torch.Tensor]]:
        """For each prompt, the sampled ids with the token that ends the turn, and their `(C,)` log-probs at `temperature`."""
        trainer = self.trainer
        if is_sharded(trainer.model_wrapped):
            raise ConfigError(
                "`sampler: engine` needs the whole policy on each rank; it is sharded. Set `sampler: generate`."
            )
        model = causal_lm(trainer.accelerator.unwrap_model(trainer.model_wrapped))
        engine = HfEngine.of(model, trainer.processing_class)  # type: ignore[arg-type]
        engine.end_ids = set(trainer.eos_token_ids)
        step, rank = trainer.state.global_step, trainer.accelerator.process_index
        self._calls = self._calls + 1 if step == self._last else 0  # several generations in one step
        self._last = step
        seeds = [
            request_seed(trainer.args.seed, model.training, step, self._calls, rank, place)
            for place in range(len(prompts))
        ]
        arguments = trainer.args
        sampling = Sampling(
            arguments.max_completion_length or 1, arguments.temperature, arguments.top_p, arguments.top_k or None
        )
        training = model.training
        model.eval()
        try:
            # Under mixed precision, one context for all tokens casts the weights once; the forward pass's own would cast them
            # at every token.
            with trainer.accelerator.autocast():
                written = engine.sample(prompts, seeds, sampling, temperature)
        finally:
            model.train(training)
        return [ids for ids, _ in written], [values for _, values in written]
