"""Saving what LoRA trained as a whole model: the next stage, a sampler or anyone else needs no base beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlt.errors import ConfigError
from rlt.models.logprobs import is_sharded


def save_whole(trainer: Any) -> None:
    """Save the trainer's model into its output folder: LoRA adapters merged into the weights they were trained on.

    The trained adapter itself stays in the checkpoints. Where ranks shard the weights it is saved alone, for merging
    needs them together; peft's `merge_and_unload` does it afterwards. Every rank must call this.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not hasattr(model, "merge_and_unload") or is_sharded(trainer.model):
        trainer.save_model()
    elif trainer.is_world_process_zero():
        model.merge_and_unload().save_pretrained(trainer.args.output_dir)


def peft_config(options: Mapping[str, Any] | None) -> Any:
    """peft.LoraConfig from the recipe's `peft` options, or None. Raises DependencyError where peft is missing."""
    if options is None:
        return None
    from rlt.errors import DependencyError

    try:
        from peft import LoraConfig
    except ImportError as error:
        raise DependencyError("LoRA needs peft: pip install 'rlt[peft]'") from error
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **options})
    except TypeError as error:
        raise ConfigError(f"`peft`: {error}") from error
