"""TRL's arguments from a recipe's `trainer` options: checked and completed, never mirrored."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

from rlt.config import DistillConfig, ModelOptions, StageConfig, WarmupConfig
from rlt.errors import ConfigError, ProblemsFound
from rlt.terminal import quiet
from rlt.training.batches import save_problem
from rlt.training.cards import UPLOAD
from rlt.training.lora import peft_config
from rlt.training.options import trainer_problems
from rlt.types import JsonMap, JsonRow

if TYPE_CHECKING:
    from transformers import TrainingArguments
    from trl import GRPOConfig, SFTConfig

Arguments = TypeVar("Arguments", bound="TrainingArguments")


def trainer_arguments(
    kind: Callable[..., Arguments], stage: str, config: StageConfig, options: JsonMap, defaults: JsonMap
) -> Arguments:
    """TRL's `kind` (SFTConfig, GRPOConfig) from the recipe's `trainer` options, unchanged, over the stage's `defaults`.

    rlt adds the output folder, the seed, and settings for a CPU (no bfloat16, no activation checkpointing).
    `model_init_kwargs` are merged key by key. `push_to_hub` is handled by rlt: it uploads the finished folder with its
    card. Raises ConfigError for an unknown option, a wrong type, a value that TRL refuses, or an option that would
    silently truncate, drop or rewrite rows.
    """
    import torch

    wrong = trainer_problems(options, kind.__module__, kind.__name__)
    if wrong:
        raise ProblemsFound(stage, wrong)
    ours: JsonRow = {
        "seed": config.seed, "report_to": "none", "disable_tqdm": quiet(),
        "save_total_limit": 2, "logging_nan_inf_filter": False, **defaults,
    }  # fmt: skip
    if not torch.cuda.is_available():
        # bfloat16 and checkpointed activations are TRL's defaults and slow on a CPU; pinned memory is for GPUs.
        ours |= {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    merged = {**ours, **{key: value for key, value in options.items() if key not in UPLOAD}}
    if "model_init_kwargs" in options:
        both = (cast(JsonRow, source.get("model_init_kwargs") or {}) for source in (ours, options))
        merged["model_init_kwargs"] = {key: value for part in both for key, value in part.items()}
    try:
        return kind(output_dir=str(config.output), **merged)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{stage}: `trainer`: {error}") from error


def loading(options: ModelOptions) -> JsonRow:
    """The trainer's `model_init_kwargs`. `dtype: auto` means float32 here: small updates vanish in bfloat16."""
    dtype = "float32" if options.dtype == "auto" else options.dtype
    return {
        "model_init_kwargs": {"dtype": dtype, "use_safetensors": True, "trust_remote_code": options.trust_remote_code}
    }


def check_saving(stage: str, arguments: GRPOConfig) -> None:
    """Raise ConfigError if GRPO would save a checkpoint between the steps of one generation."""
    steps = arguments.steps_per_generation or 1  # TRL sets it
    cycle = steps * arguments.num_iterations / arguments.gradient_accumulation_steps
    strategy = str(getattr(arguments.save_strategy, "value", arguments.save_strategy))
    problem = save_problem(strategy, arguments.save_steps, arguments.max_steps, cycle)
    if problem is not None:
        raise ConfigError(f"{stage}: {problem}")


def sampling_context(arguments: GRPOConfig, context: int | None) -> int | None:
    """Maximum tokens of prompt and completion together in GRPO: the smaller of the contexts of model and vLLM."""
    limits = [context, arguments.vllm_max_model_length if arguments.use_vllm else None]
    return min((limit for limit in limits if limit is not None), default=None)


def supervised_arguments(stage: str, config: WarmupConfig | DistillConfig, defaults: JsonMap) -> SFTConfig:
    """TRL's SFTConfig for a stage, with a checkpoint every 100 steps and a log every 10."""
    from trl import SFTConfig

    peft_config(config.peft)  # raises before the stage begins
    # TRL truncates nothing: `fit` has refused or dropped rows that are too long.
    ours = {"max_length": None, "save_strategy": "steps", "save_steps": 100, "logging_steps": 10, **loading(config)}
    return trainer_arguments(SFTConfig, stage, config, config.trainer, {**ours, **defaults})
