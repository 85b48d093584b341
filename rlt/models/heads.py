"""The output layer of a causal language model: found inside wrappers, projected tile by tile.

Nothing here holds the logits of all positions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlt.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# (positions, vocabulary) projected together. On a CPU, a tile that fits its caches, so that reducing it costs little
# compared with the matrix product. On a GPU, TRL's size.
TILES = {"cpu": (1024, 1024), "cuda": (4096, 32768)}


@dataclass(frozen=True, slots=True)
class Head:
    """A model's output layer: logits = softcap(scale * (hidden @ weight.T + bias)), with `(V, H)` weight."""

    weight: Float[Tensor, "v hidden"]
    bias: Float[Tensor, " v"] | None
    scale: float
    softcap: float | None

    def first(self, tokens: int) -> Head:
        """The output layer restricted to the first `tokens` ids."""
        return Head(self.weight[:tokens], None if self.bias is None else self.bias[:tokens], self.scale, self.softcap)


def head_of(core: PreTrainedModel) -> Head:
    config = core.config.get_text_config()
    layer = output_layer(core)
    bias = getattr(layer, "bias", None)
    # The names that model families give their logit scale, as in TRL's fused head.
    scale = next(
        (getattr(config, name) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
         if getattr(config, name, None) is not None), None,
    )  # fmt: skip
    if scale is None and getattr(config, "logits_scaling", None) is not None:
        scale = config.logits_scaling if config.model_type == "hyperclovax" else 1 / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    weight = _full(cast(Tensor, layer.weight))
    return Head(weight, None if bias is None else _full(bias), 1.0 if scale is None else scale, cap)


def _full(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is nothing but its matrix product: LoRA, quantized and offloaded layers have their own forward.

    Decided by type, not by a probe: LoRA starts at zero, so a probe would pass before the first step.
    """
    return type(layer).forward is nn.Linear.forward and "forward" not in vars(layer)


def output_layer(core: PreTrainedModel) -> nn.Module:
    layer = core.get_output_embeddings()
    if layer is None:
        raise ModelError(f"{model_name(core)}: no output layer over the vocabulary. Use a causal language model.")
    return layer


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside DDP, FSDP, DeepSpeed, torch.compile and PEFT wrappers."""
    from transformers import PreTrainedModel

    core = model
    while not isinstance(core, PreTrainedModel):
        # In `_modules`, because several wrappers forward every other attribute to what they wrap.
        inside = (core._modules.get(name) for name in ("_orig_mod", "_fsdp_wrapped_module", "module"))
        inner = next((module for module in inside if module is not None), None)
        if inner is None and hasattr(core, "get_base_model"):
            inner = cast(Callable[[], nn.Module], core.get_base_model)()
        if inner is None or inner is core:
            break
        core = inner
    return cast("PreTrainedModel", core)


def vocabulary(core: PreTrainedModel) -> int:
    """The number of token embeddings."""
    return cast(nn.Embedding, core.get_input_embeddings()).num_embeddings


def model_name(core: PreTrainedModel) -> str:
    return f"{core.name_or_path} ({type(core).__name__})" if core.name_or_path else type(core).__name__


def gathered(head: Head) -> AbstractContextManager[object]:
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    parameters = [head.weight] if head.bias is None else [head.weight, head.bias]
    return maybe_gather_lm_head_ctx(*cast(list[nn.Parameter], parameters))


# -- what is projected ------------------------------------------------------------------------------------------------


def project(
    head: Head, hidden: Float[Tensor, "n hidden"], targets: Int[Tensor, " n"], temperature: float
) -> Float[Tensor, " n"]:
    """`(N,)` float32 log-probs of `targets` `(N,)` from hidden states `(N, H)`, with TRL's chunked kernel."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    if hidden.shape[0] == 0:
        return hidden.new_zeros(0, dtype=torch.float32)
    positions, vocabulary = TILES.get(hidden.device.type, TILES["cuda"])
    with gathered(head):
        chunk = min(vocabulary, head.weight.shape[0])
        pieces = [
            ChunkedLogProbFunction.apply(
                states, head.weight, head.bias, wanted, temperature, chunk, head.softcap, head.scale, ()
            )[0]
            for states, wanted in zip(hidden.split(positions), targets.split(positions), strict=True)
        ]
    return torch.cat(pieces)


def chosen_logprobs(
    logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"], temperature: float
) -> Float[Tensor, " n"]:
    positions = max(1, TILES["cpu"][0] * TILES["cpu"][1] // logits.shape[-1])
    pieces = [
        (tile.float() / temperature).log_softmax(-1).gather(1, wanted[:, None])[:, 0]
        for tile, wanted in zip(logits.split(positions), targets.split(positions), strict=True)
    ]
    return torch.cat(pieces) if pieces else logits.new_zeros(0, dtype=torch.float32)


@torch.no_grad()
def exact_kl(
    teacher: Head,
    teacher_hidden: Float[Tensor, "n teacher_hidden"],
    student: Head,
    student_hidden: Float[Tensor, "n student_hidden"],
    temperature: float,
) -> Float[Tensor, " n"]:
    """`(N,)` KL(teacher || student), in nats, of whole next-token distributions, projected tile by tile.

    Takes both models' `(N, H)` hidden states at the same N places of a text (`hidden_states`) and their output layers
    (`output_head`). The models must share a tokenizer. Sizes of one family may pad their output layers differently
    (Qwen2.5: 151,936 rows up to 3B, 152,064 from 7B); both distributions then cover the tokens that both layers have.
    """
    from trl.kernels import chunked_divergence

    tokens = min(teacher.weight.shape[0], student.weight.shape[0])
    teacher, student = teacher.first(tokens), student.first(tokens)
    if teacher_hidden.shape[0] == 0:
        return torch.zeros(0)
    device = student.weight.device
    # TRL takes its tiles' width from a constant of the module, which is made for a GPU.
    positions, chunked_divergence.VOCAB_CHUNK_SIZE = TILES.get(device.type, TILES["cuda"])
    bias = None if teacher.bias is None else teacher.bias.to(device)
    pieces = [
        chunked_divergence.ChunkedDivergenceFunction.apply(
            ours.to(device), student.weight, student.bias, theirs.to(device), teacher.weight.to(device), bias,
            0.0, temperature, student.scale, student.softcap, teacher.scale, teacher.softcap,
        )[0]
        for ours, theirs in zip(student_hidden.split(positions), teacher_hidden.split(positions), strict=True)
    ]  # fmt: skip
    return torch.cat(pieces).float().cpu()


@torch.no_grad()
def token_ranks(head: Head, hidden: Float[Tensor, "n hidden"], targets: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """`(N,)` ranks of `targets` `(N,)` by logit, 1 for the most probable token, from hidden states `(N, H)`.

    Projected tile by tile; equal logits share the better rank. Scale, temperature and softcap do not change ranks.
    """
    positions, vocabulary = TILES.get(hidden.device.type, TILES["cuda"])
    ranks = [hidden.new_zeros(0, dtype=torch.long)]
    for states, wanted in zip(hidden.split(positions), targets.to(hidden.device).split(positions), strict=True):
        own = torch.full((len(states), 1), -torch.inf, device=hidden.device)
        above = torch.zeros(len(states), dtype=torch.long, device=hidden.device)
        tiles = range(0, head.weight.shape[0], vocabulary)
        # The token's own logit comes from the same product as the others', so that rounding cannot put it above itself.
        for tile in tiles:
            inside = (wanted >= tile) & (wanted < tile + vocabulary)
            if inside.any():
                own[inside] = _logits(head, states[inside], tile, vocabulary).gather(1, wanted[inside, None] - tile)
        for tile in tiles:
            above += (_logits(head, states, tile, vocabulary) > own).sum(1)
        ranks.append(above + 1)
    return torch.cat(ranks)


def _logits(head: Head, states: Tensor, tile: int, size: int) -> Tensor:
    weight = head.weight[tile : tile + size]
    bias = None if head.bias is None else head.bias[tile : tile + size]
    return torch.nn.functional.linear(states, weight, bias).float()
