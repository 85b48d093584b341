"""TRL's GRPOTrainer with the one thing that the RLT reward needs besides: the current policy's log-probs.

A TRL reward function receives texts and ids, but `r_kl` compares the student with the policy that is being trained. This
subclass adds the policy's log-probs of the sampled tokens to what the reward function gets. Where the step has computed
them already (as it does with vLLM, for importance sampling) they are taken from there and not computed again.

It also saves and restores the moving reference model with each checkpoint, which TRL leaves out, and stops a run whose
sampler no longer has the trainer's weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer.utils import pad

from rlt.errors import RunError
from rlt.logprobs import Row, token_logprobs

REFERENCE_FOLDER = "reference"


class TeacherTrainer(GRPOTrainer):
    """GRPOTrainer whose reward functions also get `prompt_ids` and `policy_logprobs`, both lists with an item a completion.

    `policy_logprobs[i]` is a float32 CPU tensor `(C_i,)`, nats, of the completion's sampled tokens, end of turn included,
    at `score_temperature`; with `score_temperature` None no forward pass is made for it and the key is absent.
    `sync_threshold`: mean absolute difference, nats a token, between vLLM's and the trainer's log-probs of the same tokens
    above which the run stops with RunError (None: never).
    """

    def __init__(
        self, *args: Any, score_temperature: float | None, sync_threshold: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.score_temperature = score_temperature
        self.sync_threshold = sync_threshold
        self._prompt_ids: list[list[int]] = []
        self._step_logprobs: torch.Tensor | None = None
        self.policy_passes = 0
        """Forward passes of the policy made only for the reward."""

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        # A rendered prompt already has every special token in it; adding them again would put a second BOS in front.
        if isinstance(prompts[0], str):
            return self.processing_class(text=prompts, add_special_tokens=False)["input_ids"], None, {}
        return super()._tokenize_prompts(prompts)

    def _generate(self, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        self._prompt_ids = generated[0]
        self._step_logprobs = None
        return generated

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if model is self.model and not torch.is_grad_enabled():
            self._step_logprobs = result[0]
        return result

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        extra: list[dict[str, Any]] = [{"prompt_ids": ids} for ids in self._prompt_ids]
        if self.score_temperature is not None:
            for item, logprobs in zip(extra, self._policy_logprobs(completion_ids_list), strict=True):
                item["policy_logprobs"] = logprobs
        rows = [{**row, **item} for row, item in zip(inputs, extra, strict=True)]
        return super()._calculate_rewards(rows, prompts, completions, completion_ids_list)

    def _policy_logprobs(self, completion_ids: list[list[int]]) -> list[torch.Tensor]:
        if self.score_temperature != self.temperature:
            self.policy_passes += 1
            rows = [
                Row([*prompt, *ids], [range(len(prompt), len(prompt) + len(ids))])
                for prompt, ids in zip(self._prompt_ids, completion_ids, strict=True)
            ]
            return token_logprobs(self.model, rows, temperature=self.score_temperature)
        if self._step_logprobs is None:
            self.policy_passes += 1
            self._step_logprobs = self._one_more_pass(completion_ids)
        return [row[: len(ids)].float().cpu() for row, ids in zip(self._step_logprobs, completion_ids, strict=True)]

    @torch.no_grad()
    def _one_more_pass(self, completion_ids: list[list[int]]) -> torch.Tensor:
        device, fill = self.accelerator.device, self._tokenizer.pad_token_id
        prompts = [torch.tensor(ids) for ids in self._prompt_ids]
        texts = [torch.tensor(ids) for ids in completion_ids]
        left = pad(prompts, padding_value=fill, padding_side="left")
        right = pad(texts, padding_value=fill, padding_side="right")
        mask = torch.cat(
            [
                pad([torch.ones_like(ids) for ids in prompts], padding_value=0, padding_side="left"),
                pad([torch.ones_like(ids) for ids in texts], padding_value=0, padding_side="right"),
            ],
            dim=1,
        )
        logprobs, _, _ = self._get_per_token_logps_and_entropies(
            self.model, torch.cat([left, right], dim=1).to(device), mask.to(device), right.size(1),
            batch_size=self.args.per_device_train_batch_size,
        )  # fmt: skip
        return logprobs

    # -- a sampler that lost the weights -----------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        sampled = output.get("sampling_per_token_logps")
        if sampled is not None and self.sync_threshold is not None:
            ours = output.get("old_per_token_logps", self._step_logprobs)
            if ours is not None:
                self.check_sampler(ours, sampled, output["completion_mask"])
        return output

    def check_sampler(self, ours: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor) -> None:
        """Raise RunError on every rank if `(B, T)` log-probs of trainer and sampler differ by more than the threshold."""
        known = mask.bool() & sampled.isfinite()
        difference = (ours - sampled)[known].abs()
        total = torch.stack([difference.sum(), known.sum().to(difference.dtype)])
        total = self.accelerator.gather(total[None]).sum(0)
        mean = (total[0] / total[1].clamp(min=1)).item()
        self._metrics["train" if self.model.training else "eval"]["sampler_difference"].append(mean)
        if self.sync_threshold is not None and mean > self.sync_threshold:
            raise RunError(
                f"step {self.state.global_step}: the sampler's log-probs differ from the trainer's by {mean:.3g} nats a token "
                f"(threshold {self.sync_threshold}): it has other weights. Restart the sampler, or raise `sync_threshold`."
            )

    # -- the moving reference is part of a checkpoint ------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.ref_model is None or not self.args.sync_ref_model:
            return
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}" / REFERENCE_FOLDER
        state = self.accelerator.get_state_dict(self.ref_model)  # gathers sharded weights: every rank takes part
        if self.args.should_save:
            self.accelerator.unwrap_model(self.ref_model).save_pretrained(folder, state_dict=state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.ref_model is None or not self.args.sync_ref_model:
            return
        folder = Path(checkpoint) / REFERENCE_FOLDER
        if not folder.is_dir():
            raise RunError(f"{checkpoint}: has no `{REFERENCE_FOLDER}` folder; the moving reference model cannot be restored.")
        load_weights(self.ref_model, folder, self.accelerator)


@torch.no_grad()
def load_weights(model: Any, folder: Path, accelerator: Any) -> None:
    """Put the safetensors weights of `folder` into `model`, plain, DDP, FSDP2 or ZeRO-3."""
    from contextlib import nullcontext

    from safetensors.torch import load_file
    from torch.distributed.tensor import DTensor, distribute_tensor

    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    core = accelerator.unwrap_model(model)
    gathered: Any = nullcontext()
    parameters = dict(core.named_parameters())
    if any(hasattr(parameter, "ds_id") for parameter in parameters.values()):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=0)
    with gathered:
        for name, parameter in parameters.items():
            if name not in weights:
                continue  # tied to another parameter, which is in the file
            value = weights[name].to(parameter.dtype)
            if isinstance(parameter, DTensor):
                value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            parameter.copy_(value)
