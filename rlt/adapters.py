"""Saving what LoRA trained as a whole model: the next stage, a sampler or anyone else needs no base beside it."""

from __future__ import annotations

from typing import Any

from rlt.logprobs import is_sharded


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
