"""Loading models and tokenizers; unusable ones are rejected in one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict, cast

from rlt.errors import ConfigError, ModelError
from rlt.models.hub import check_can_be_had, is_folder_name

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SHOWN = 3  # weights named in an error


class _LoadingInfo(TypedDict):
    """What transformers reports of a checkpoint, as far as it is read here."""

    missing_keys: Iterable[str]
    mismatched_keys: Iterable[tuple[str, Iterable[int], Iterable[int]]]


def load_config(model: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model folder or hub name; raises ModelError if it cannot be loaded."""
    from transformers import AutoConfig

    check_can_be_had(model)
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{model}: cannot load this model: {_first_line(error)}") from error


def load_tokenizer(model: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name, with a padding token; raises ModelError if it cannot be loaded."""
    from transformers import AutoTokenizer

    if not is_folder_name(model):
        check_can_be_had(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{model}: cannot load its tokenizer: {_first_line(error)}") from error
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: str,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    **options: object,
) -> PreTrainedModel:
    """The causal language model of a folder or hub name, from safetensors only, in evaluation mode, on `device`.

    `dtype` `auto`: float32 on a CPU, the checkpoint's own type elsewhere. `device` None: this process's GPU, or the CPU if
    there is none. Raises ModelError for missing, misshapen, corrupt or non-finite weights, and ConfigError for a GPU that
    does not exist.
    """
    import torch

    load_config(model, trust_remote_code)
    place = torch.device(device) if device is not None else default_device()
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{model}: no device {place}: this machine has {torch.cuda.device_count()} GPUs.")
    if dtype == "auto" and place.type == "cpu":
        dtype = "float32"
    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    loaded = _weights_of(model, dtype=kind, trust_remote_code=trust_remote_code, **options).to(place).eval()  # type: ignore[arg-type]
    check_finite(loaded, model)
    return loaded


def check_weights(model: str, trust_remote_code: bool = False) -> None:
    """Raise ModelError if a model's safetensors files cannot be read or lack weights; reads only their headers.

    transformers would warn and give missing weights random values.
    """
    load_config(model, trust_remote_code)
    _weights_of(model, device_map="meta", trust_remote_code=trust_remote_code)


def check_finite(model: torch.nn.Module, name: str) -> None:
    """Raise ModelError, naming the weight, if any of this process's weights is NaN or infinite."""
    import torch
    from torch.distributed.tensor import DTensor

    for key, parameter in model.named_parameters():
        weight = parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()
        if not weight.is_floating_point() or weight.element_size() == 1 or not weight.numel():
            continue
        # Both are NaN where any value is; no copy of the weight is made.
        if not torch.stack(weight.aminmax()).isfinite().all():
            raise ModelError(f"{name}: weight {key} has NaN or infinite values. Use another checkpoint.")


def _weights_of(model: str, **options: object) -> PreTrainedModel:
    """transformers' model, every weight from the checkpoint; raises a ModelError of one line otherwise."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logger = logging.getLogger("transformers.modeling_utils")
    # Hides its table of weights; what matters is checked below. A filter, because at a level of WARNING or above
    # transformers 5.19 lists the layers that tensor parallelism leaves whole (`verify_tp_plan` in modeling_utils).
    logger.addFilter(_errors_only)
    try:
        loaded, info = cast(
            "tuple[PreTrainedModel, _LoadingInfo]",
            AutoModelForCausalLM.from_pretrained(
                model, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
            ),
        )
    except SafetensorError as error:
        raise ModelError(
            f"{model}: a safetensors file is truncated or corrupt ({_first_line(error)}). Copy or download it again."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{model}: cannot load its weights (safetensors only): {_first_line(error)}") from error
    finally:
        logger.removeFilter(_errors_only)
    _refuse_random(model, info)
    return loaded


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _refuse_random(model: str, info: _LoadingInfo) -> None:
    """Raise ModelError for weights to which transformers gave random values."""
    shapes = sorted(
        f"{name} {list(given)} instead of {list(needed)}" for name, given, needed in info["mismatched_keys"]
    )
    for problem, names in (("lacks", sorted(info["missing_keys"])), ("has the wrong shape for", shapes)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise ModelError(
                f"{model}: its checkpoint {problem} {len(names)} weight{'s' if len(names) > 1 else ''}: "
                f"{', '.join(names[:SHOWN])}{more}. Copy or download it again, or check `config.json`."
            )


def default_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def shard(model: PreTrainedModel) -> None:
    """Shard a model's weights over all processes of this launch (torch's FSDP2); layers are gathered while in use.

    Raises ConfigError if there is only one process.
    """
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized() or dist.get_world_size() == 1:
        raise ConfigError(
            "`student_placement: sharded` needs several processes, but there is only one. Use `same` or `offload`, or "
            "`launch: ddp`."
        )
    mesh = init_device_mesh(default_device().type, (dist.get_world_size(),))
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh)
            break
    fully_shard(model, mesh=mesh)


def context_length(config: PretrainedConfig) -> int | None:
    """The model's context length in tokens, or None if its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
