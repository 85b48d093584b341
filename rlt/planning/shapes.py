"""Model shapes: parameters, FLOPs and KV cache of a decoder, from its `config.json` alone.

Imports no torch. P is a model's number of parameters, V its vocabulary, H its hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rlt.errors import ModelError

SHIPPED_SHAPES = resources.files("rlt") / "shipped" / "shapes"
_BIASED = {"qwen2"}  # q, k and v have biases whatever `attention_bias` says
_NORMED = {"qwen3"}  # q and k are normalised per head
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a dense decoder that determine its cost.

    Example, Qwen2.5-0.5B: Shape(896, 4864, 24, 14, 2, 64, 151936, True, 32768, qkv_bias=True)
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    context: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    weight_bytes: int = 2
    """Bytes per weight of the checkpoint: 4 if `config.json` says float32, else 2."""

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: attention, gated MLP, two norms."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * q + 2 * kv) + self.qkv_bias * (q + 2 * kv) + self.out_bias * self.hidden
        mlp = 3 * self.hidden * self.intermediate + self.mlp_bias * (2 * self.intermediate + self.hidden)
        return attention + mlp + 2 * self.hidden + self.qk_norm * 2 * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        """V * H: the input table; an untied output layer has as many again."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """P: layers, final norm, input table, and an untied output layer."""
        tables = self.embedding_parameters * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + self.hidden + tables

    @property
    def matmul_parameters(self) -> int:
        """Parameters that each token is multiplied with: all except the input table, which is a lookup."""
        return self.layers * self.layer_parameters + self.embedding_parameters

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV cache for one token in bfloat16: keys and values of every layer."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    def forward_flops(self, length: float) -> float:
        """FLOPs of one forward pass over a text of `length` tokens: 2 per parameter and token, plus causal attention.

        Attention: scores and weighted values are 4 * heads * head_dim * length FLOPs per token and layer, half masked.
        """
        attention = 2 * self.layers * self.heads * self.head_dim * length
        return length * (2 * self.matmul_parameters + attention)

    def lora_parameters(self, rank: int, targets: str | list[str] | None) -> int:
        """Trainable parameters of LoRA: rank * (in + out) for each adapted matrix. peft's default adapts q and v."""
        q, kv, h, m = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden, self.intermediate
        sizes = {
            "q_proj": h + q, "k_proj": h + kv, "v_proj": h + kv, "o_proj": q + h,
            "gate_proj": h + m, "up_proj": h + m, "down_proj": m + h,
        }  # fmt: skip
        names = list(sizes) if targets == "all-linear" else ["q_proj", "v_proj"] if targets is None else targets
        unknown = [name for name in names if name not in sizes]
        if isinstance(names, str) or unknown:
            raise ModelError(
                f"`peft.target_modules` {targets!r} cannot be planned; give `all-linear` or some of {', '.join(sizes)}."
            )
        return self.layers * rank * sum(sizes[name] for name in names)


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    """The shape in a `config.json`; `where` names it in errors. Raises ModelError for an unknown kind of model."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(
            f"{where}: model_type {kind!r} cannot be planned; supported are {', '.join(FAMILIES)} (dense decoders)."
        )
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return Shape(
            hidden=hidden,
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocab=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
            context=config.get("max_position_embeddings"),
            qkv_bias=kind in _BIASED or config.get("attention_bias", False),
            out_bias=kind not in _BIASED and config.get("attention_bias", False),
            mlp_bias=config.get("mlp_bias", False),
            qk_norm=kind in _NORMED,
            weight_bytes=4 if str(config.get("dtype") or config.get("torch_dtype")).endswith("float32") else 2,
        )
    except KeyError as error:
        raise ModelError(f"{where}: config.json has no {error.args[0]!r}.") from error


def load_shape(model: str) -> Shape:
    """The shape of a model, from its folder's `config.json`, the shapes shipped with rlt, or the hub.

    Weights are never read. Raises ModelError if none of the three exists.
    """
    local = Path(model).expanduser() / "config.json"
    if local.is_file():
        try:
            return shape_of(json.loads(local.read_text(encoding="utf-8")), str(local))
        except json.JSONDecodeError as error:
            raise ModelError(f"{local}: not valid JSON: {error}") from error
    shipped = SHIPPED_SHAPES / f"{model.replace('/', '--')}.json"
    if shipped.is_file():
        return shape_of(json.loads(shipped.read_text(encoding="utf-8")), model)
    from rlt.models.loading import load_config

    return shape_of(load_config(model).to_dict(), model)
