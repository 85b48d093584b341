"""How one step trains: weights, gradients and optimiser over GPUs, passes over each token, what is kept on disk."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlt.config import ColdstartConfig, DistillConfig, TrainConfig, WarmupConfig
from rlt.planning.machine import GB, Launch
from rlt.planning.memory import Memory, gathered_bytes, head_bytes, training_activations, training_state
from rlt.planning.options import FIXED, PlanConfig
from rlt.planning.shapes import Shape
from rlt.recipe import Step


@dataclass(frozen=True)
class Training:
    """A step's model, trainer options (with the stage's defaults), and how `n` processes share the work."""

    shape: Shape
    trainer: Mapping[str, Any]
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
    ) -> Training:
        """What the configuration of a training step says; LoRA's targets must be known (ModelError)."""
        # Asked of the stage, so that the two cannot drift apart; no other import of the planner loads torch.
        defaults = getattr(importlib.import_module(f"rlt.stages.{step.stage}"), "DEFAULTS", {})
        trainable = shape.parameters
        if config.peft is not None:
            trainable = shape.lora_parameters(config.peft.get("r", 8), config.peft.get("target_modules"))
        half = config.dtype in ("bfloat16", "float16")  # the training stages load float32 where `dtype` is `auto`
        return cls(shape, {**defaults, **config.trainer}, launch, n, 2 if half else 4, trainable)

    def get(self, option: str, default: Any) -> Any:
        """A trainer option; `default` is TRL's or transformers' own."""
        value = self.trainer.get(option)
        return default if value is None else value

    @property
    def lora(self) -> bool:
        return self.trainable < self.shape.parameters

    @property
    def batch(self) -> int:
        """Rows of one micro-batch on one GPU."""
        return int(self.get("per_device_train_batch_size", 8))

    @property
    def accumulation(self) -> int:
        return int(self.get("gradient_accumulation_steps", 1))

    @property
    def rows_a_step(self) -> int:
        """Rows, or completions, of one optimiser step on all GPUs."""
        return self.batch * self.accumulation * self.n

    @property
    def checkpointing(self) -> bool:
        return bool(self.get("gradient_checkpointing", True))

    @property
    def residual(self) -> int:
        """Bytes of an element of the residual stream: autocast leaves it float32 where the weights are."""
        return 4 if self.dtype_bytes == 4 and self.launch.kind in ("single", "ddp") else 2

    @property
    def passes(self) -> int:
        """Forward passes that an update costs: 1, its backward 2 (LoRA 1: no gradients of weights), recomputing 1."""
        return (2 if self.lora else 3) + self.checkpointing

    @property
    def moments(self) -> int:
        """Bytes of optimiser state for a trained parameter: 8 for Adam, 2 for Adam in 8 bits, none for SGD."""
        name = self.get("optim", "adamw_torch_fused")
        if "8bit" in name:
            return 2
        return 0 if name.startswith(("sgd", "adafactor")) else 8  # Adafactor's rows and columns are small

    def update(self, tokens: float) -> Memory:
        """Memory of the update on one GPU with `tokens` in the widest micro-batch."""
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
        """Bytes of the training state that is offloaded to the host, of all GPUs."""
        return training_state(self.shape, self.trainable, self.launch, self.n, self.dtype_bytes, self.moments)[1]

    @property
    def reference_bytes(self) -> float:
        """Bytes of the reference model on one GPU. ZeRO-3 shards it; FSDP2 gathers it whole in its forward pass, for
        TRL wraps it as one group; elsewhere it is a full copy. LoRA needs none: the adapter is switched off."""
        if self.lora or not self.get("beta", 0.0):
            return 0.0
        p = self.shape.parameters
        if self.launch.kind == "zero3":
            return 2.0 * p / self.n + gathered_bytes(self.shape, self.launch)
        if self.launch.kind == "fsdp2":
            return self.dtype_bytes * p / self.n + 2.0 * p
        return float((2 if self.launch.kind == "zero2" else self.dtype_bytes) * p)

    def offload_seconds(self, steps: float, options: PlanConfig) -> float:
        """Moving gradients to the host after each micro-batch, Adam on the CPU once a step, and the weights back."""
        if not self.launch.offload_optimiser:
            return 0.0
        p = self.shape.parameters
        moved = 2.0 * p / self.n * (self.accumulation + 1) * (2 if self.launch.offload_weights else 1)
        stepped = FIXED.adam_host_bytes * p / math.ceil(self.n / FIXED.gpus_a_node)  # a node's GPUs share its memory
        return steps * (moved / (options.pcie_gb_per_s * GB) + stepped / (options.host_gb_per_s * GB))

    @property
    def saved_bytes(self) -> int:
        """Bytes of a weight of the model that the stage leaves: DeepSpeed saves bfloat16; LoRA is merged into its base."""
        return 2 if self.launch.kind.startswith("zero") else self.dtype_bytes

    def disk(self, steps: int) -> tuple[float, float]:
        """Bytes that stay (the final model, and as many checkpoints as `save_total_limit` keeps, in rlt 2), and the most
        there are at one time: a new checkpoint is written before the oldest goes. Those of teacher RL have the moving
        reference in them."""
        deepspeed = self.launch.kind.startswith("zero")
        final = float(self.saved_bytes * self.shape.parameters)
        if self.get("save_strategy", "no") == "no":
            return final, final
        saves = max(1, math.ceil(steps / self.get("save_steps", 500)))  # the last step is saved whatever its number
        limit = self.trainer.get("save_total_limit", 2)
        kept = saves if limit is None else min(limit, saves)
        if self.lora:
            each = (4.0 + self.moments) * self.trainable
        else:
            moving = final if self.get("beta", 0.0) else 0.0
            each = final + moving + ((4 if deepspeed else 0) + self.moments) * self.trainable
        stays = final + kept * each
        return stays, max(stays, min(kept + 1, saves) * each)

    @property
    def warnings(self) -> tuple[str, ...]:
        """bfloat16 weights trained as they are: an update below 1/256 of a weight is rounded away."""
        whole = self.dtype_bytes == 2 and not self.lora and self.launch.kind in ("single", "ddp")
        if whole and self.get("learning_rate", 1e-5) < 4e-5:
            return (
                "half-precision weights without sharding round most updates away at this learning rate; use float32",
            )
        return ()

    @property
    def completions(self) -> int:
        """Completions of one generation, as TRL's GRPOConfig derives them."""
        if self.get("generation_batch_size", None):
            return int(self.trainer["generation_batch_size"])
        return self.batch * self.n * int(self.get("steps_per_generation", self.accumulation))

    def updates(self, rows: int) -> int:
        """Optimiser steps: `max_steps`, or epochs over `rows` questions with a group of completions each."""
        if self.get("max_steps", -1) > 0:
            return int(self.trainer["max_steps"])
        return math.ceil(self.get("num_train_epochs", 3) * rows * self.get("num_generations", 8) / self.rows_a_step)

    @property
    def vllm(self) -> str | None:
        """`server` or `colocate`, or None where transformers samples."""
        return self.get("vllm_mode", "colocate") if self.get("use_vllm", False) else None
