"""Bytes on one GPU, from shapes and placement: weights, gradients, optimiser, activations, logits."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from rlt.planning.machine import GIB, Launch
from rlt.planning.options import FIXED, PlanConfig
from rlt.planning.shapes import Shape


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU at one moment of a step."""

    moment: str
    weights: float = 0.0
    gradients: float = 0.0
    optimiser: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    kv_cache: float = 0.0
    other_models: float = 0.0
    overhead: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, part) for part in PARTS)


PARTS = tuple(f.name for f in fields(Memory) if f.name != "moment")


def with_overhead(memory: Memory, options: PlanConfig) -> Memory:
    """`memory` plus the overhead of driver, libraries and allocator."""
    return replace(memory, overhead=options.overhead_gib * GIB + options.fragmentation * memory.total)


def training_state(
    shape: Shape, trainable: int, launch: Launch, n: int, dtype_bytes: int, moments: int
) -> tuple[dict[str, float], float]:
    """Bytes of weights, gradients and optimiser on one of `n` GPUs, and bytes on the host.

    `trainable` of the P parameters are trained (LoRA: few, in float32). A base weight takes `dtype_bytes`; under DeepSpeed
    it is bfloat16 with a float32 master copy, under FSDP2 float32 (accelerate upcasts trained weights). `moments`: bytes
    of optimiser state per parameter. Without sharding, autocast keeps bfloat16 copies of float32 weights, and DDP has a
    second copy of the gradients in its buckets.
    """
    p, lora = shape.parameters, trainable < shape.parameters
    shard_weights = n if launch.shards_weights else 1
    shard_optimiser = n if launch.shards_optimiser else 1
    deepspeed = launch.kind.startswith("zero")
    if lora:
        weights = dtype_bytes * p / shard_weights + 4 * trainable
        gradients, optimiser = 4.0 * trainable, moments * trainable / shard_optimiser
    elif deepspeed:
        weights = 2 * p / shard_weights
        gradients, optimiser = 2 * p / shard_optimiser, (4 + moments) * p / shard_optimiser
    else:
        own = 4 if launch.kind == "fsdp2" else dtype_bytes
        weights, gradients = own * p / shard_weights, own * p / shard_weights
        optimiser = moments / 4 * own * p / shard_optimiser
    if launch.kind in ("single", "ddp") and dtype_bytes == 4:
        weights += 2 * p
    if launch.kind == "ddp":
        gradients *= 2
    host = 0.0
    if launch.offload_optimiser:
        host += n * (optimiser + gradients * (2 if deepspeed else 1))
        gradients = optimiser = 0.0
    if launch.offload_weights:
        host += n * weights
        weights = 0.0
    return {"weights": weights, "gradients": gradients, "optimiser": optimiser}, host


def gathered_bytes(shape: Shape, launch: Launch) -> float:
    """Bytes of bfloat16 weights gathered at a time: two layers and the tables (FSDP2), up to 1e9 weights (ZeRO-3)."""
    if launch.kind == "fsdp2":
        tables = shape.parameters - shape.layers * shape.layer_parameters
        return 2.0 * (2 * shape.layer_parameters + tables)
    return 2.0 * min(shape.parameters, FIXED.zero3_live) if launch.kind == "zero3" else 0.0


def training_activations(shape: Shape, tokens: float, checkpointing: bool, residual: int = 2) -> float:
    """Bytes that the forward pass of `tokens` keeps for the backward pass, with fused attention.

    Per token, a layer keeps 10 + 5 * `residual` bytes per hidden element, 8 per MLP element (gate, up, activation,
    product in bfloat16) and 4 per KV element. `residual`: bytes per element of the residual stream, 2, or 4 if autocast
    computes with float32 weights. These are the tensors that transformers saves (see the tests); LoRA on every layer
    would add 4 per hidden element. With checkpointing: the input of each layer, and one whole layer twice, for its
    gradients.
    """
    kept = (10 + 5 * residual) * shape.hidden + 8 * shape.intermediate + 4 * shape.kv_heads * shape.head_dim
    if checkpointing:
        return tokens * (residual * shape.hidden * shape.layers + 2 * kept)
    return tokens * shape.layers * kept


def forward_activations(shape: Shape, tokens: float) -> float:
    """Bytes of a forward pass without gradients: inputs and outputs of one layer in bfloat16."""
    return tokens * 2 * (6 * shape.hidden + 3 * shape.intermediate)


def head_bytes(shape: Shape, tokens: float, trained: bool) -> float:
    """Bytes of the fused output layer: one tile of logits; if trained, also gradients of weights and hidden states."""
    tile = 2 * min(FIXED.logits_tile, tokens * 32768, tokens * shape.vocab)
    if not trained:
        return tile + 4 * tokens
    return tile + 6 * shape.embedding_parameters + 6 * tokens * shape.hidden
