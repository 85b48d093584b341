"""TRL's arguments from a recipe's `trainer` options: checked, completed, never mirrored."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import os
import typing
from collections.abc import Mapping
from typing import Any

from rlt.config import DistillConfig, ModelOptions, StageConfig, WarmupConfig
from rlt.errors import ConfigError
from rlt.training.cards import UPLOAD
from rlt.training.lora import peft_config

# Keys of `trainer` that would say what another key says, or what rlt promises -> what to do instead.
_OURS = {
    "output_dir": "the stage's `output` says where",
    "save_only_model": "from such a checkpoint no run could go on",
    "hub_token": "it would stand in the run's files; set the environment variable HF_TOKEN",
}


_OURS_IN_MODEL = {
    "dtype": "the stage's own `dtype` says it",
    "torch_dtype": "the stage's own `dtype` says it",
    "trust_remote_code": "the stage's own `trust_remote_code` says it",
    "use_safetensors": "weights are read from safetensors only",
}


def trainer_arguments(
    kind: type, stage: str, config: StageConfig, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Any:
    """TRL's `kind` (SFTConfig, GRPOConfig) from the recipe's `trainer` options, as they are, over `defaults` of the stage.

    rlt sets only where the output goes, the seed, and what a CPU needs (no bfloat16, no checkpointing of activations).
    `model_init_kwargs` are merged key by key. `push_to_hub` is rlt's: it uploads the finished folder, with its card.
    Raises ConfigError for an option that TRL does not have, of another type, or that TRL refuses.
    """
    import torch

    _check_options(kind, stage, options)
    ours: dict[str, Any] = {
        "seed": config.seed, "report_to": "none", "disable_tqdm": os.environ.get("RLT_QUIET") == "1",
        "save_total_limit": 2, **defaults,
    }  # fmt: skip
    if not torch.cuda.is_available():
        # Not on a CPU: bfloat16 and checkpointed activations are TRL's defaults, and pinned memory is for GPUs.
        ours |= {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    merged = {**ours, **{key: value for key, value in options.items() if key not in UPLOAD}}
    if "model_init_kwargs" in options:
        merged["model_init_kwargs"] = {**ours.get("model_init_kwargs", {}), **(options["model_init_kwargs"] or {})}
    try:
        return kind(output_dir=str(config.output), **merged)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{stage}: `trainer`: {error}") from error


def _check_options(kind: type, stage: str, options: Mapping[str, Any]) -> None:
    from pydantic import TypeAdapter, ValidationError

    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    for name, value in options.items():
        if name in _OURS:
            raise ConfigError(f"{stage}: `trainer.{name}`: {_OURS[name]}. Leave it out.")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=2)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise ConfigError(f"{stage}: `trainer.{name}` is no option of {kind.__name__}{hint}.")
        try:
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = inspect.formatannotation(hints[name])
            raise ConfigError(f"{stage}: `trainer.{name}`: {value!r} is of another type than {wanted}.") from error
    if options.get("hub_strategy", "end") != "end":
        raise ConfigError(f"{stage}: `trainer.hub_strategy`: rlt uploads what is finished. Leave it out.")
    model = options.get("model_init_kwargs") or {}
    if not isinstance(model, dict):
        raise ConfigError(f"{stage}: `trainer.model_init_kwargs`: must be a mapping, not {model!r}.")
    for name in model.keys() & _OURS_IN_MODEL:
        raise ConfigError(f"{stage}: `trainer.model_init_kwargs.{name}`: {_OURS_IN_MODEL[name]}. Leave it out.")


def loading(options: ModelOptions) -> dict[str, Any]:
    """The trainer's `model_init_kwargs`: float32 weights where `dtype` is `auto`, because small updates vanish in bfloat16."""
    dtype = "float32" if options.dtype == "auto" else options.dtype
    return {
        "model_init_kwargs": {"dtype": dtype, "use_safetensors": True, "trust_remote_code": options.trust_remote_code}
    }


def check_saving(stage: str, arguments: Any) -> None:
    """Raise ConfigError if GRPO would save a checkpoint between the steps of one generation.

    Completions are generated for several steps at once; from a checkpoint between those steps a run could not go on as if
    it had never been cut off.
    """
    cycle = arguments.steps_per_generation * arguments.num_iterations / arguments.gradient_accumulation_steps
    strategy, every = str(getattr(arguments.save_strategy, "value", arguments.save_strategy)), arguments.save_steps
    if strategy == "no" or cycle <= 1:
        return
    wanted = (
        f"a multiple of {cycle:g}, the steps that one generation serves; else a resumed run would differ from one never"
    )
    if strategy != "steps":
        raise ConfigError(
            f"{stage}: `trainer.save_strategy` {strategy} may save between the steps of one generation. Set it to steps, and "
            f"`trainer.save_steps` to {wanted} cut off."
        )
    if every < 1:
        every = math.ceil(arguments.max_steps * every) if arguments.max_steps > 0 else math.nan
    if every % cycle != 0:
        raise ConfigError(f"{stage}: `trainer.save_steps` {arguments.save_steps} must be {wanted} cut off.")


def sampling_context(arguments: Any, context: int | None) -> int | None:
    """Tokens that prompt and completion may have together for GRPO: the model's context, or less where vLLM has less."""
    limits = [context, arguments.vllm_max_model_length if arguments.use_vllm else None]
    return min((limit for limit in limits if limit is not None), default=None)


def supervised_arguments(stage: str, config: WarmupConfig | DistillConfig, defaults: Mapping[str, Any]) -> Any:
    """TRL's SFTConfig for a stage. It saves a checkpoint every 100 steps, a multiple of the steps between logs."""
    from trl import SFTConfig

    peft_config(config.peft)  # what is wrong with it is said before anything is begun
    # Nothing is cut to a length: `fit` refused or dropped what is too long.
    ours = {"max_length": None, "save_strategy": "steps", "save_steps": 100, "logging_steps": 10, **loading(config)}
    return trainer_arguments(SFTConfig, stage, config, config.trainer, {**ours, **defaults})
