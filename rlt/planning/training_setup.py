"""How a step trains: trainer options, memory of an update, passes per token, checkpoints on disk."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from rlt.config import ColdstartConfig, DistillConfig, TrainConfig, WarmupConfig
from rlt.planning.machine import GB, Launch
from rlt.planning.memory import Memory, gathered_bytes, head_bytes, training_activations, training_state
from rlt.planning.options import FIXED, PlanConfig
from rlt.planning.shapes import Shape
from rlt.recipe import Step

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingSetup:
    """A training step: its model, trainer options including the stage's defaults, and `n` processes."""

    shape: Shape
    trainer: Mapping[str, object]
    launch: Launch
    n: int
    dtype_bytes: int
    trainable: int

    @classmethod
    def of(
        cls,
        step: Step,
        config: WarmupConfig | DistillConfig | TrainConfig | ColdstartConfig,
        shape: Shape,
        launch: Launch,
        n: int,
    ) -> TrainingSetup:
        """The setup of a training step. Raises ModelError for LoRA targets that cannot be planned."""
        # The stage's own defaults, so that the two cannot diverge. This is the planner's only import that loads torch.
        defaults = getattr(importlib.import_module(f"rlt.stages.{step.stage}"), "DEFAULTS", {})
        trainable = shape.parameters
        if config.peft is not None:
            targets = cast("str | list[str] | None", config.peft.get("target_modules"))
            trainable = shape.lora_parameters(cast(int, config.peft.get("r", 8)), targets)
        half = config.dtype in ("bfloat16", "float16")  # with `auto`, training stages load float32
        return cls(shape, {**defaults, **config.trainer}, launch, n, 2 if half else 4, trainable)

    def get(self, option: str, default: T) -> T:
        """A trainer option; `default` is that of TRL or transformers. Its type is checked with the recipe."""
        value = self.trainer.get(option)
        return default if value is None else cast(T, value)

    @property
    def lora(self) -> bool:
        return self.trainable < self.shape.parameters

    @property
    def batch(self) -> int:
        """Rows per micro-batch on one GPU."""
        return int(self.get("per_device_train_batch_size", 8))

    @property
    def accumulation(self) -> int:
        return int(self.get("gradient_accumulation_steps", 1))

    @property
    def rows_per_step(self) -> int:
        """Rows, or completions, per optimiser step on all GPUs."""
        return self.batch * self.accumulation * self.n

    @property
    def checkpointing(self) -> bool:
        return bool(self.get("gradient_checkpointing", True))

    @property
    def residual(self) -> int:
        """Bytes per element of the residual stream: under autocast, float32 weights keep it in float32."""
        return 4 if self.dtype_bytes == 4 and self.launch.kind in ("single", "ddp") else 2

    @property
    def passes(self) -> int:
        """Cost of an update in forward passes: forward 1, backward 2 (LoRA 1: no weight gradients), recomputation 1."""
        return (2 if self.lora else 3) + self.checkpointing

    @property
    def moments(self) -> int:
        """Bytes of optimiser state per trained parameter: Adam 8, 8-bit Adam 2, SGD 0."""
        name = self.get("optim", "adamw_torch_fused")
        if "8bit" in name:
            return 2
        return 0 if name.startswith(("sgd", "adafactor")) else 8  # Adafactor's rows and columns are small

    def update(self, tokens: float) -> Memory:
        """Memory of an update on one GPU, with `tokens` in the widest micro-batch."""
        state, _ = training_state(self.shape, self.trainable, self.launch, self.n, self.dtype_bytes, self.moments)
        state["weights"] += gathered_bytes(self.shape, self.launch)
        return Memory(
            "update",
            **state,
            activations=training_activations(self.shape, tokens, self.checkpointing, self.residual),
            logits=head_bytes(self.shape, tokens, not self.lora),
        )

    @property
    def host_bytes(self) -> float:
        """Bytes of training state offloaded to the host, over all GPUs."""
        return training_state(self.shape, self.trainable, self.launch, self.n, self.dtype_bytes, self.moments)[1]

    @property
    def reference_bytes(self) -> float:
        """Bytes of the reference model on one GPU.

        ZeRO-3 shards it. FSDP2 gathers it whole for a forward pass, because TRL wraps it as one group. Otherwise it is a
        full copy. LoRA needs none: the adapter is disabled.
        """
        if self.lora or not self.get("beta", 0.0):
            return 0.0
        p = self.shape.parameters
        if self.launch.kind == "zero3":
            return 2.0 * p / self.n + gathered_bytes(self.shape, self.launch)
        if self.launch.kind == "fsdp2":
            return self.dtype_bytes * p / self.n + 2.0 * p
        return float((2 if self.launch.kind == "zero2" else self.dtype_bytes) * p)

    def offload_seconds(self, steps: float, options: PlanConfig) -> float:
        """Seconds to move gradients to the host after each micro-batch, step Adam there, and move weights back."""
        if not self.launch.offload_optimiser:
            return 0.0
        p = self.shape.parameters
        moved = 2.0 * p / self.n * (self.accumulation + 1) * (2 if self.launch.offload_weights else 1)
        stepped = FIXED.adam_host_bytes * p / math.ceil(self.n / FIXED.gpus_per_node)  # a node's GPUs share its memory
        return steps * (moved / (options.pcie_gb_per_s * GB) + stepped / (options.host_gb_per_s * GB))

    @property
    def saved_bytes(self) -> int:
        """Bytes per weight of the saved model: DeepSpeed saves bfloat16; LoRA is merged into its base."""
        return 2 if self.launch.kind.startswith("zero") else self.dtype_bytes

    def disk(self, steps: int) -> tuple[float, float]:
        """Bytes left on disk, and the maximum at a time.

        Left: the final model and the checkpoints that `save_total_limit` keeps (rlt's default: 2). A new checkpoint is
        written before the oldest is deleted. With a reference (`beta`), a checkpoint also contains its moving copy.
        """
        deepspeed = self.launch.kind.startswith("zero")
        final = float(self.saved_bytes * self.shape.parameters)
        if self.get("save_strategy", "no") == "no":
            return final, final
        saves = max(1, math.ceil(steps / self.get("save_steps", 500)))  # the last step is always saved
        limit = self.trainer.get("save_total_limit", 2)  # null keeps all of them
        kept = saves if limit is None else min(cast(int, limit), saves)
        if self.lora:
            each = (4.0 + self.moments) * self.trainable
        else:
            moving = final if self.get("beta", 0.0) else 0.0
            each = final + moving + ((4 if deepspeed else 0) + self.moments) * self.trainable
        stays = final + kept * each
        return stays, max(stays, min(kept + 1, saves) * each)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Half-precision weights without a float32 copy: updates below 1/256 of a weight are rounded away."""
        whole = self.dtype_bytes == 2 and not self.lora and self.launch.kind in ("single", "ddp")
        if whole and self.get("learning_rate", 1e-5) < 4e-5:
            return ("half-precision weights round most updates away at this learning rate: set `dtype: float32`",)
        return ()

    @property
    def completions(self) -> int:
        """Completions per generation, as derived by TRL's GRPOConfig."""
        whole = self.get("generation_batch_size", 0)
        return int(whole) if whole else self.batch * self.n * int(self.get("steps_per_generation", self.accumulation))

    def updates(self, rows: int) -> int:
        """Optimiser steps: `max_steps`, or epochs over `rows` questions with one group of completions each."""
        if self.get("max_steps", -1) > 0:
            return int(self.get("max_steps", -1))
        return math.ceil(self.get("num_train_epochs", 3.0) * rows * self.get("num_generations", 8) / self.rows_per_step)

    @property
    def vllm(self) -> str | None:
        """`server` or `colocate`; None if transformers samples."""
        return self.get("vllm_mode", "colocate") if self.get("use_vllm", False) else None
