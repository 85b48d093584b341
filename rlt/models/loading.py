"""Loading models and tokenizers, with errors that say what is wrong before any weights are read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rlt.errors import ConfigError, ModelError
from rlt.models.hub import check_can_be_had, is_folder_name

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_config(model: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model folder or hub name; raises ModelError for what is not a model."""
    from transformers import AutoConfig

    check_can_be_had(model)
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{model}: not a model that can be loaded: {_first_line(error)}") from error


def load_tokenizer(model: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name, with a padding token; raises ModelError where there is none."""
    from transformers import AutoTokenizer

    if not is_folder_name(model):
        check_can_be_had(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{model}: no tokenizer that can be loaded: {_first_line(error)}") from error
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: str,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    **options: Any,
) -> PreTrainedModel:
    """The causal language model of a folder or hub name, from safetensors only, in evaluation mode, on `device`.

    `dtype` `auto` is float32 where the device is a CPU and the checkpoint's own type elsewhere; `device` None is the
    first GPU, or the CPU where there is none. Raises ModelError, and ConfigError for a GPU that is not there.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for each file of weights says nothing
    load_config(model, trust_remote_code)
    place = torch.device(device) if device is not None else default_device()
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{model}: is to be placed on {place}, and this machine has {torch.cuda.device_count()} GPUs."
        )
    kind: Any = "auto" if dtype == "auto" else getattr(torch, dtype)
    if dtype == "auto" and place.type == "cpu":
        kind = torch.float32
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            model, dtype=kind, use_safetensors=True, trust_remote_code=trust_remote_code, **options
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{model}: weights cannot be loaded (safetensors only): {_first_line(error)}") from error
    return loaded.to(place).eval()  # type: ignore[arg-type]


def default_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def shard(model: PreTrainedModel) -> None:
    """Shard a model's weights over all processes of this launch (torch's FSDP2), each layer gathered while it is used.

    Raises ConfigError where there is only one process.
    """
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized() or dist.get_world_size() == 1:
        raise ConfigError(
            "`student_placement: sharded` spreads the student over several processes, and there is one. Use `same` or "
            "`offload`, or start several (`launch: ddp`)."
        )
    mesh = init_device_mesh(default_device().type, (dist.get_world_size(),))
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh)
            break
    fully_shard(model, mesh=mesh)


def context_length(config: PretrainedConfig) -> int | None:
    """Tokens that a text may have for this model, or None where its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
