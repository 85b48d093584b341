"""TRL's GRPOTrainer plus what the RLT reward needs: the current policy's log-probs.

A TRL reward function receives texts and ids, but `r_kl` compares the student with the policy in training. This subclass
passes the policy's log-probs of the sampled tokens to the reward function. If the step has already computed them (with
vLLM, for importance sampling), they are reused.

It also saves and restores the moving reference model with each checkpoint, which TRL does not, and stops a run whose
sampler no longer has the trainer's weights.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import pad

from rlt.data.rows import JsonlWriter
from rlt.errors import RunError
from rlt.models.logprobs import Row, hidden_states, output_head, token_logprobs
from rlt.reward.self_student import AveragedSelf, LiveSelf
from rlt.reward.trl import TeacherReward
from rlt.training.checkpoints import WholeCheckpoints
from rlt.training.loop import ResumablePrompts
from rlt.training.sampling import EngineSampling
from rlt.training.trimming import TrimmedPadding
from rlt.types import JsonRow

if TYPE_CHECKING:
    from accelerate import Accelerator

REFERENCE_FOLDER, AVERAGE_FOLDER = "reference", "average"
SAMPLES_FILE = "samples.jsonl"


class TeacherTrainer(EngineSampling, ResumablePrompts, TrimmedPadding, WholeCheckpoints, GRPOTrainer):
    """GRPOTrainer that gives its TeacherReward the policy's side of `r_kl` (see `TeacherReward.__call__`).

    `reward`: the reward function; with `needs_policy` false no forward pass is made for it. `sync_threshold`: difference
    between sampler and trainer, as measured by `check_sampler`, above which the run stops (None: never). `own_student`:
    the student that is the policy or its average with decay `ema_decay`. `batch_tokens`: padded tokens per forward pass
    that TRL does not make itself (different temperature, exact KL). `policy_passes` counts such passes.
    """

    args: GRPOConfig
    model: PreTrainedModel

    def __init__(
        self,
        *,
        reward: TeacherReward,
        needs_policy: bool = True,
        sync_threshold: float | None = None,
        batch_tokens: int | None = None,
        own_student: LiveSelf | AveragedSelf | None = None,
        ema_decay: float = 0.99,
        **kwargs: Any,
    ) -> None:
        super().__init__(reward_funcs=[reward], **kwargs)
        self.own_student = own_student
        if isinstance(own_student, AveragedSelf):
            self.add_callback(_Average(self, own_student, ema_decay))
        self.reward, self.needs_policy, self.sync_threshold = reward, needs_policy, sync_threshold
        self.batch_tokens = batch_tokens
        self._prompt_ids: list[list[int]] = []
        self._completion_ids: list[list[int]] = []
        self._step_logprobs: torch.Tensor | None = None
        self.policy_passes = 0

    def _generate(self, prompts: list[object]) -> tuple[Any, ...]:
        generated = super()._generate(prompts)
        self._prompt_ids, self._completion_ids, self._step_logprobs = generated[0], generated[1], None
        return generated

    @property
    def logprob_temperature(self) -> float:
        return self.reward.engine.temperature

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        passed = super()._get_per_token_logps_and_entropies
        reference = model is not self.model or is_reference(self.accelerator.unwrap_model(model))
        if not self._prompt_ids or torch.is_grad_enabled() or reference:
            return passed(model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs)
        # The policy on its own samples. The reward uses these numbers, so dropout is off, and completions that TRL masks
        # because they were truncated are included.
        with evaluating(model):
            logprobs, entropies, aux = passed(
                model, input_ids, self._mask(attention_mask, logits_to_keep), logits_to_keep, batch_size, **kwargs
            )
        self._step_logprobs = logprobs
        return logprobs * attention_mask[:, -logits_to_keep:], entropies, aux

    def _mask(self, like: torch.Tensor, logits_to_keep: int) -> torch.Tensor:
        """`(B, P + T)` 1 at every token of this step's prompts, padded left, and completions, padded right."""
        mask, start = torch.zeros_like(like), like.size(1) - logits_to_keep
        for row, prompt, completion in zip(mask, self._prompt_ids, self._completion_ids, strict=True):
            row[start - len(prompt) : start + len(completion)] = 1
        return mask

    def _calculate_rewards(
        self,
        inputs: list[JsonRow],
        prompts: list[object],
        completions: list[object],
        completion_ids_list: list[list[int]],
    ) -> torch.Tensor:
        if isinstance(self.own_student, LiveSelf):
            self.own_student.attach(self.model, self.accelerator.autocast)
        rows = inputs
        if self.needs_policy:
            name, sides = self._policy_side(completion_ids_list)
            rows = [{**row, name: side} for row, side in zip(inputs, sides, strict=True)]
        rewards = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        if self.accelerator.is_main_process and self.model.training:
            with JsonlWriter(Path(str(self.args.output_dir)) / SAMPLES_FILE) as file:
                file.write({"step": self.state.global_step, **sample} for sample in self.reward.last_samples)
        return rewards

    def _policy_side(self, completion_ids: list[list[int]]) -> tuple[str, list[torch.Tensor]]:
        """Name of the input of `r_kl`, and its value per completion: `(C,)` log-probs or `(C, H)` hidden states."""
        temperature = self.reward.engine.temperature
        exact = self.reward.engine.estimator == "exact"
        if self.sampled_logprobs is not None and not exact:
            return "policy_logprobs", self.sampled_logprobs
        if exact or temperature != self.temperature:
            # A different temperature than TRL's, or whole distributions: needs a separate pass.
            self.policy_passes += 1
            rows = [
                Row([*prompt, *ids], [range(len(prompt), len(prompt) + len(ids))])
                for prompt, ids in zip(self._prompt_ids, completion_ids, strict=True)
            ]
            with self.accelerator.autocast():
                if exact:
                    self.reward.policy_head = output_head(self.model)
                    return "policy_hidden", hidden_states(self.model, rows, batch_tokens=self.batch_tokens)
                return "policy_logprobs", token_logprobs(
                    self.model, rows, temperature=temperature, batch_tokens=self.batch_tokens
                )
        pairs = zip(self._all_logprobs(), completion_ids, strict=True)
        return "policy_logprobs", [row[: len(ids)].float().cpu() for row, ids in pairs]

    @torch.no_grad()
    def _all_logprobs(self) -> torch.Tensor:
        """`(B, T)` log-probs of this step's completions, computed at most once."""
        if self._step_logprobs is None:
            self.policy_passes += 1
            device, fill = self.accelerator.device, self._tokenizer.pad_token_id
            prompts, completions = (
                pad([torch.tensor(row, dtype=torch.long) for row in rows], fill, side, self.pad_to_multiple_of)  # type: ignore[arg-type]
                for rows, side in ((self._prompt_ids, "left"), (self._completion_ids, "right"))
            )
            ids = torch.cat([prompts, completions], 1).to(device)
            mask = self._mask(ids, completions.size(1))
            self._get_per_token_logps_and_entropies(
                self.model, ids, mask, completions.size(1), batch_size=self.args.per_device_train_batch_size
            )
        if self._step_logprobs is None:
            raise RuntimeError("the policy's pass kept no log-probs; TRL calls its model in an unexpected way")
        return self._step_logprobs

    # -- a sampler that lost the weights -----------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[JsonRow]) -> JsonRow:
        output = super()._generate_and_score_completions(inputs)
        if self.sync_threshold is not None and "sampling_per_token_logps" in output:
            ours = output.get("old_per_token_logps")
            if ours is None:
                ours = self._all_logprobs()
            self.check_sampler(ours, output["sampling_per_token_logps"], output["completion_mask"])
        self._prompt_ids = []  # this step's samples are scored; later passes are on other texts
        return output

    def check_sampler(self, ours: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor) -> None:
        """Raise RunError on every rank if `(B, T)` log-probs of trainer and sampler differ by more than the threshold.

        The difference is the mean of |ours - sampled| in nats over the tokens of `mask` `(B, T)` that the sampler reports,
        weighted by the larger of the two probabilities: log-probs of unlikely tokens are noisy in bfloat16. NaN marks
        tokens that vLLM could not report; if there are no others, the run stops too.
        """
        counted = mask.bool()
        known = counted & ~sampled.isnan()
        weights = torch.maximum(ours, sampled)[known].double().exp()
        difference = (ours - sampled)[known].double().abs()
        sums = torch.stack([(weights * difference).sum(), weights.sum(), counted.sum().double()])
        total, weight, tokens = self.accelerator.gather(sums[None]).sum(0).tolist()
        if tokens == 0:
            return  # every completion is masked: this batch teaches nothing
        mean = total / weight if weight else math.nan
        self._metrics["train" if self.model.training else "eval"]["sampler_difference"].append(mean)
        if self.sync_threshold is not None and not mean <= self.sync_threshold:
            raise RunError(
                f"step {self.state.global_step}: the sampler's log-probs differ from the trainer's by {mean:.3g} nats per "
                f"token (`sync_threshold` {self.sync_threshold}): it has different weights, or reports log-probs before "
                "temperature and truncation. Restart it (a vLLM server with `--logprobs-mode processed_logprobs`), or raise "
                "the threshold."
            )

    # -- the moving reference is part of a checkpoint ------------------------------------------------------------------------

    def _save_more(self, folder: Path) -> None:
        if isinstance(self.own_student, AveragedSelf) and self.args.should_save:
            self.own_student.model.save_pretrained(folder / AVERAGE_FOLDER, save_original_format=False)
        if self.ref_model is None or not self.args.sync_ref_model:
            return
        state = self.accelerator.get_state_dict(self.ref_model)  # gathers sharded weights: every rank takes part
        if self.args.should_save:
            # With the in-memory names of the weights, which restoring needs.
            self.accelerator.unwrap_model(self.ref_model).save_pretrained(
                folder / REFERENCE_FOLDER, state_dict=state, save_original_format=False
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and isinstance(self.own_student, AveragedSelf):
            load_weights(self.own_student.model, _part(checkpoint, AVERAGE_FOLDER, "average"), self.accelerator)
        if checkpoint is None or self.ref_model is None or not self.args.sync_ref_model:
            return
        folder = _part(checkpoint, REFERENCE_FOLDER, "moving reference model")
        load_weights(self.ref_model, folder, self.accelerator)


def _part(checkpoint: str, name: str, what: str) -> Path:
    folder = Path(checkpoint) / name
    if not folder.is_dir():
        raise RunError(f"{checkpoint}: has no `{name}` folder; the {what} cannot be restored.")
    return folder


class _Average(TrainerCallback):
    """Moves the averaged student after each optimizer step."""

    def __init__(self, trainer: TeacherTrainer, student: AveragedSelf, decay: float) -> None:
        self.trainer, self.student, self.decay = trainer, student, decay

    def on_step_end(self, *_: object, **others: object) -> None:
        self.student.follow(self.trainer.accelerator.unwrap_model(self.trainer.model), self.decay)


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout is off inside this context."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def is_reference(model: torch.nn.Module) -> bool:
    """Whether a model with LoRA currently acts as TRL's reference: its adapter is off, or the copy `ref` is active."""
    if not hasattr(model, "peft_config"):
        return False
    # `is True`: transformers' own models have a method of this name.
    off = any(getattr(module, "disable_adapters", False) is True for module in model.modules())
    return off or model.active_adapter == "ref"


@torch.no_grad()
def load_weights(model: torch.nn.Module, folder: Path, accelerator: Accelerator) -> None:
    """Load the safetensors weights of `folder` into `model`: plain, DDP, FSDP2 or ZeRO-3.

    Raises RunError unless the files have exactly the model's weights (one of each tied group).
    """
    from safetensors.torch import load_file
    from torch.distributed.tensor import DTensor, distribute_tensor

    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    core = accelerator.unwrap_model(model)
    gathered: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    parameters = dict(core.named_parameters())
    tied = getattr(core, "all_tied_weights_keys", {}).keys()
    missing = sorted(parameters.keys() - weights.keys() - tied)
    unknown = sorted(weights.keys() - core.state_dict().keys() - tied)
    if missing or unknown:
        raise RunError(
            f"{folder}: not the weights of this reference model: {len(missing)} missing ({', '.join(missing[:3])}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:3])}). Remove {folder.parent} to resume from an older checkpoint."
        )
    if any(hasattr(parameter, "ds_id") for parameter in parameters.values()):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=0)
    with gathered:
        for name, parameter in parameters.items():
            if name not in weights:
                continue  # tied to a parameter that is in the files
            value = weights[name].to(parameter.dtype)
            if isinstance(parameter, DTensor):
                value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            parameter.copy_(value)
