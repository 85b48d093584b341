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

# Options of `trainer` that rlt refuses, with what to do instead: another key says the same, or TRL would silently truncate,
# drop or rewrite what rlt has rendered, counted or saved. Off (null, false) they are harmless and pass.
_REFUSED = {
    "output_dir": "the stage's `output` says where",
    "seed": "the stage's own `seed` says it",
    "trust_remote_code": "the stage's own `trust_remote_code` says it",
    "hub_token": "it would stand in the run's files; set the environment variable HF_TOKEN",
    # Rows.
    "max_length": "TRL would silently cut rows, and their end of turn, to it; set the stage's own `max_length`, which "
    "refuses or drops longer rows",
    "truncation_mode": "rlt never truncates",
    "packing": "it needs TRL's `max_length`, which cuts rows silently",
    "eval_packing": "training has no evaluation data",
    "dataset_kwargs": "rlt prepares the rows itself",
    "remove_unused_columns": "it removes the columns that the reward reads",
    "dataloader_drop_last": "the last rows of each epoch would be left out and still be counted",
    "chat_template_path": "it would change the template after the rows are rendered; put a `chat_template.jinja` into the "
    "model's folder",
    "chat_template_kwargs": "rlt renders the prompts, and TRL would not read it",
    # Tokens.
    "eos_token": "the saved tokenizer would no longer be the one that the rows were rendered with; change "
    "`tokenizer_config.json` in the model's folder",
    "pad_token": "the saved tokenizer would no longer be the one that the rows were rendered with; change "
    "`tokenizer_config.json` in the model's folder",
    # The loss: rlt marks the tokens that are learned.
    "completion_only_loss": "rlt marks the learned tokens itself",
    "assistant_only_loss": "rlt marks the learned tokens itself",
    # Resuming.
    "save_only_model": "a run could not resume from such a checkpoint",
    "resume_from_checkpoint": "the same command resumes by itself",
    "ignore_data_skip": "a resumed run would read its first rows twice",
    "auto_find_batch_size": "a full memory would silently shrink the batch; set `per_device_train_batch_size`",
    # Evaluation.
    "do_eval": "training has no evaluation data; `rlt evaluate` evaluates the model",
    "eval_on_start": "training has no evaluation data; `rlt evaluate` evaluates the model",
    "load_best_model_at_end": "training has no evaluation data to choose by; the last model is the result",
}
_REFUSED_IN_MODEL = {
    "dtype": "the stage's own `dtype` says it",
    "torch_dtype": "the stage's own `dtype` says it",
    "trust_remote_code": "the stage's own `trust_remote_code` says it",
    "use_safetensors": "weights are read from safetensors only",
    "ignore_mismatched_sizes": "weights of another shape would be replaced by random ones",
}
# Keys of `generation_kwargs` that another option of TRL's says, or that would make completions end elsewhere.
_REFUSED_IN_GENERATION = {
    "max_new_tokens": "`trainer.max_completion_length` says it",
    "max_length": "`trainer.max_completion_length` says it",
    **{name: f"`trainer.{name}` says it" for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")},
    "do_sample": "`trainer.temperature` says it",
    "num_return_sequences": "`trainer.num_generations` says it",
    "eos_token_id": "the model's generation_config.json says where a completion ends",
    "stop_strings": "a completion ends with its end of turn",
}


def trainer_arguments(
    kind: type, stage: str, config: StageConfig, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Any:
    """TRL's `kind` (SFTConfig, GRPOConfig) from the recipe's `trainer` options, as they are, over `defaults` of the stage.

    rlt adds the output folder, the seed, and what a CPU needs (no bfloat16, no checkpointing of activations).
    `model_init_kwargs` are merged key by key. `push_to_hub` is rlt's own: it uploads the finished folder with its card.
    Raises ConfigError for an unknown option, a wrong type, a value that TRL refuses, and for options that would silently
    truncate, drop or rewrite rows.
    """
    import torch

    _check_options(kind, stage, options)
    ours: dict[str, Any] = {
        "seed": config.seed, "report_to": "none", "disable_tqdm": os.environ.get("RLT_QUIET") == "1",
        "save_total_limit": 2, "logging_nan_inf_filter": False, **defaults,
    }  # fmt: skip
    if not torch.cuda.is_available():
        # bfloat16 and checkpointed activations are TRL's defaults and slow on a CPU; pinned memory is for GPUs.
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
        where = f"{stage}: `trainer.{name}`"
        if name not in names:
            near = difflib.get_close_matches(name, names, n=2)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise ConfigError(f"{where} is not an option of {kind.__name__}{hint}.")
        if name in _REFUSED and value not in (None, False):
            raise ConfigError(f"{where}: {_REFUSED[name]}. Leave it out.")
        try:
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = inspect.formatannotation(hints[name])
            raise ConfigError(f"{where}: expected {wanted}, got {value!r}.") from error
    if options.get("hub_strategy", "end") != "end":
        raise ConfigError(f"{stage}: `trainer.hub_strategy`: rlt uploads the finished model only. Leave it out.")
    if options.get("eval_strategy", "no") != "no":
        raise ConfigError(f"{stage}: `trainer.eval_strategy`: {_REFUSED['do_eval']}. Leave it out.")
    for key, refused in (("model_init_kwargs", _REFUSED_IN_MODEL), ("generation_kwargs", _REFUSED_IN_GENERATION)):
        given = options.get(key) or {}
        if not isinstance(given, dict):
            raise ConfigError(f"{stage}: `trainer.{key}`: must be a mapping, not {given!r}.")
        for name in given.keys() & refused:
            raise ConfigError(f"{stage}: `trainer.{key}.{name}`: {refused[name]}. Leave it out.")
    _check_padding_free(stage, options)


def _check_padding_free(stage: str, options: Mapping[str, Any]) -> None:
    attention = str((options.get("model_init_kwargs") or {}).get("attn_implementation", ""))
    if options.get("padding_free") and "flash" not in attention:
        raise ConfigError(
            f"{stage}: `trainer.padding_free`: without flash attention each row would read the rows before it. Leave it out, "
            "or set `trainer.model_init_kwargs.attn_implementation` to flash_attention_2."
        )


def loading(options: ModelOptions) -> dict[str, Any]:
    """The trainer's `model_init_kwargs`. `dtype` `auto` means float32 here: small updates vanish in bfloat16."""
    dtype = "float32" if options.dtype == "auto" else options.dtype
    return {
        "model_init_kwargs": {"dtype": dtype, "use_safetensors": True, "trust_remote_code": options.trust_remote_code}
    }


def check_saving(stage: str, arguments: Any) -> None:
    """Raise ConfigError if GRPO would save a checkpoint between the steps of one generation.

    Completions are generated for several steps at once, and are not part of a checkpoint.
    """
    cycle = arguments.steps_per_generation * arguments.num_iterations / arguments.gradient_accumulation_steps
    strategy, every = str(getattr(arguments.save_strategy, "value", arguments.save_strategy)), arguments.save_steps
    if strategy == "no" or cycle <= 1:
        return
    wanted = (
        f"a multiple of {cycle:g} (steps per generation); otherwise a resumed run would not match an uninterrupted one"
    )
    if strategy != "steps":
        raise ConfigError(
            f"{stage}: `trainer.save_strategy` {strategy} may save between the steps of one generation. Set it to steps, and "
            f"`trainer.save_steps` to {wanted}."
        )
    if every < 1:
        every = math.ceil(arguments.max_steps * every) if arguments.max_steps > 0 else math.nan
    if every % cycle != 0:
        raise ConfigError(f"{stage}: `trainer.save_steps` {arguments.save_steps} must be {wanted}.")


def sampling_context(arguments: Any, context: int | None) -> int | None:
    """Most tokens of prompt and completion together in GRPO: the model's context, or vLLM's where that is smaller."""
    limits = [context, arguments.vllm_max_model_length if arguments.use_vllm else None]
    return min((limit for limit in limits if limit is not None), default=None)


def supervised_arguments(stage: str, config: WarmupConfig | DistillConfig, defaults: Mapping[str, Any]) -> Any:
    """TRL's SFTConfig for a stage. It saves a checkpoint every 100 steps and logs every 10."""
    from trl import SFTConfig

    peft_config(config.peft)  # raises before the stage begins
    # TRL truncates nothing: `fit` has refused or dropped what is too long.
    ours = {"max_length": None, "save_strategy": "steps", "save_steps": 100, "logging_steps": 10, **loading(config)}
    return trainer_arguments(SFTConfig, stage, config, config.trainer, {**ours, **defaults})
