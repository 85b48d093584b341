"""LoRA: the adapter's options, and saving it merged, loadable without the base model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, cast

import torch

from rlt.errors import ConfigError
from rlt.models.logprobs import is_sharded
from rlt.types import AnyRow

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, Trainer


def save_whole(trainer: Trainer, dtype: str | None = None) -> dict[str, float | str]:
    """Save the trainer's model to its output folder, with LoRA adapters merged; returns metrics of the merge.

    `dtype`: type of the merged weights; None: as trained. The adapter itself stays in the checkpoints. Weights sharded
    over ranks cannot be merged here; then only the adapter is saved, for peft's `merge_and_unload`. Every rank must call
    this.
    """
    trained, output = cast(torch.nn.Module, trainer.model), str(trainer.args.output_dir)
    model = trainer.accelerator.unwrap_model(trained)
    if not hasattr(model, "merge_and_unload") or is_sharded(trained):
        trainer.save_model()
        return {}
    if not trainer.is_world_process_zero():
        return {}
    if getattr(model.get_base_model(), "is_quantized", False):
        model.merge_and_unload().save_pretrained(output)  # peft knows how to dequantize
        return {}
    kind = model.get_base_model().dtype if dtype is None else getattr(torch, dtype)
    whole, loss = merged(model, kind)
    whole.save_pretrained(output)
    name = str(kind).removeprefix("torch.")
    hint = "" if loss < 0.01 else "; set `merge_dtype: float32` to keep all of it"
    print(f"LoRA: merged in float32, saved as {name}; rounding costs {loss:.1%} of the update{hint}.", flush=True)
    return {"merged_dtype": name, "merge_loss": round(loss, 6)}


@torch.no_grad()
def merged(model: PeftModel, dtype: torch.dtype) -> tuple[PreTrainedModel, float]:
    """The base model with merged adapters, on the CPU in `dtype`, and the share of the update lost to rounding.

    Merged in float32 and rounded once. The share is |rounded - exact| / |exact - base| over all adapted weights: a
    bfloat16 weight has 8 bits, so an update below 1/256 of it is rounded away.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    model.to("cpu", torch.float32)  # twice the memory of bfloat16, which the GPU may not have
    update = lost = 0.0
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and hasattr(layer.get_base_layer(), "weight"):
            weight = cast(torch.Tensor, layer.get_base_layer().weight)
            before = weight.clone()
            layer.merge()
            update += float((weight - before).square().sum())
            lost += float((weight - weight.to(dtype)).square().sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about layers that are already merged
        whole = model.merge_and_unload()  # type: ignore[operator]
    return whole.to(dtype), (lost / update) ** 0.5 if update else 0.0


def peft_config(options: AnyRow | None) -> LoraConfig | None:
    """peft.LoraConfig from the recipe's `peft` options, or None. Raises DependencyError if peft is missing."""
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
