"""Loading models and tokenizers. What cannot be used is refused in one line, before weights are read where possible."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from rlt.errors import ConfigError, ModelError
from rlt.models.hub import check_can_be_had, is_folder_name
from rlt.types import AnyRow

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SHOWN = 3  # weights that an error names


def load_config(model: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model folder or hub name; raises ModelError if it is missing."""
    from transformers import AutoConfig

    check_can_be_had(model)
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{model}: not a model that can be loaded: {_first_line(error)}") from error


def load_tokenizer(model: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name, with a padding token; raises ModelError if it is missing."""
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

    `dtype` `auto` is float32 on a CPU and the checkpoint's own type elsewhere; `device` None is the first GPU, or the CPU
    where there is none. Raises ModelError for missing, misshapen, corrupt or non-finite weights, and ConfigError for a GPU
    that is not there.
    """
    import torch

    load_config(model, trust_remote_code)
    place = torch.device(device) if device is not None else default_device()
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{model}: cannot be placed on {place}: this machine has {torch.cuda.device_count()} GPUs.")
    kind: Any = "auto" if dtype == "auto" else getattr(torch, dtype)
    if dtype == "auto" and place.type == "cpu":
        kind = torch.float32
    loaded = _weights_of(model, dtype=kind, trust_remote_code=trust_remote_code, **options).to(place).eval()  # type: ignore[arg-type]
    check_finite(loaded, model)
    return loaded


def check_weights(model: str, trust_remote_code: bool = False) -> None:
    """Raise ModelError if a model's safetensors files cannot be read or lack weights; reads their headers only.

    transformers would give missing weights random values and warn.
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
            raise ModelError(f"{name}: the weight {key} has NaN or infinite values. Use another checkpoint.")


def _weights_of(model: str, **options: Any) -> PreTrainedModel:
    """transformers' model, each weight of it from the checkpoint; raises ModelError in one line otherwise."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logger = logging.getLogger("transformers.modeling_utils")
    # Its table of weights: what matters of it is refused below. A filter, because transformers 5.19 takes a level of WARNING
    # or above for the wish to hear which layers tensor parallelism leaves whole (`verify_tp_plan` in modeling_utils).
    logger.addFilter(_errors_only)
    try:
        answer: Any = AutoModelForCausalLM.from_pretrained(
            model, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except SafetensorError as error:
        raise ModelError(
            f"{model}: a safetensors file is truncated or corrupt ({_first_line(error)}). Copy or download it again."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{model}: weights cannot be loaded (safetensors only): {_first_line(error)}") from error
    finally:
        logger.removeFilter(_errors_only)
    loaded: PreTrainedModel = answer[0]
    _refuse_random(model, answer[1])
    return loaded


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _refuse_random(model: str, found: AnyRow) -> None:
    """Raise ModelError for weights to which transformers gave random values; `found` is its loading info."""
    shapes = sorted(
        f"{name} {list(there)} instead of {list(needed)}" for name, there, needed in found["mismatched_keys"]
    )
    for problem, names in (("lacks", sorted(found["missing_keys"])), ("has the wrong shape for", shapes)):
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
    """Shard a model's weights over all processes of this launch (torch's FSDP2), each layer gathered while it is used.

    Raises ConfigError where there is only one process.
    """
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized() or dist.get_world_size() == 1:
        raise ConfigError(
            "`student_placement: sharded` needs several processes, and there is one. Use `same` or `offload`, or start "
            "several (`launch: ddp`)."
        )
    mesh = init_device_mesh(default_device().type, (dist.get_world_size(),))
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh)
            break
    fully_shard(model, mesh=mesh)


def context_length(config: PretrainedConfig) -> int | None:
    """The most tokens of a text for this model, or None where its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
