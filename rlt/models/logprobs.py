"""Log-probabilities of chosen tokens: batched by length, float32, without the logits of all positions.

A forward pass is an ordinary call of the model, so DDP, FSDP2, ZeRO-3, PEFT and autocast work as in training. For that
call, a hook on the transformer's body keeps the hidden states that predict a wanted token and drops the others before
the output layer. A plain output layer is then projected tile by tile with TRL's chunked kernel; any other (LoRA on
`lm_head`, layers before it, quantized) runs the model's own code. One probe batch is first compared with its own logits.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlt.errors import ModelError
from rlt.models.heads import (
    Head,
    causal_lm,
    chosen_logprobs,
    gathered,
    head_of,
    is_plain,
    model_name,
    output_layer,
    project,
    vocabulary,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

# On a CPU, small enough that a small model's activations stay in its caches.
DEFAULT_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
# Logits held at once (positions times vocabulary) if the model's own code computes them.
OWN_LOGITS = 2**26

Progress = Callable[[int, int], None]
Want = Literal["logprobs", "hidden"]


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids `(T,)` of one text and the ranges of positions whose log-probs are wanted (never position 0)."""

    ids: Sequence[int]
    keep: Sequence[range]

    @property
    def kept(self) -> int:
        """Number of wanted log-probs."""
        return sum(len(span) for span in self.keep)

    @property
    def read(self) -> int:
        """Number of tokens the model must read: those before the last kept one."""
        return max((span.stop - 1 for span in self.keep if len(span)), default=1)


def token_logprobs(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    temperature: float = 1.0,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> list[Float[Tensor, " kept"]]:
    """For each row, `(n_kept,)` float32 log-probs, in nats, of its kept tokens given all tokens before them.

    `log softmax(logits / temperature)` of `model`, on the CPU, in the order of `rows`; no gradient, no dropout. The logits
    are the model's own, in the type it computes in (bfloat16 weights or autocast give bfloat16 logits); all arithmetic on
    them is float32. Up to rounding, a row's numbers do not depend on the other rows. `batch_tokens`: tokens per forward
    pass, padding included. `progress` is called after each batch with its numbers of rows and tokens. If the model is
    sharded, every rank must call this, with any number of rows.
    Raises ModelError if the numbers differ from the model's own logits by more than rounding (see `_verified_plan`).
    """
    columns = _over_batches(model, rows, "logprobs", temperature, batch_tokens, progress)
    return [column.float().cpu() for column in columns]


def hidden_states(
    model: nn.Module, rows: Sequence[Row], *, batch_tokens: int | None = None
) -> list[Float[Tensor, "kept hidden"]]:
    """For each row, the `(n_kept, H)` hidden states that predict its kept tokens, on the model's device.

    They have the type in which the output layer multiplies them. Raises ModelError if that layer is not a plain one.
    """
    return _over_batches(model, rows, "hidden", 1.0, batch_tokens, None)


# -- batches ---------------------------------------------------------------------------------------------------------


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Row indices of each forward pass: one row, or at most `batch_tokens` tokens with padding.

    Longest rows first, so that a run that does not fit in memory fails at its start.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


@torch.no_grad()
def _over_batches(
    model: nn.Module,
    rows: Sequence[Row],
    want: Want,
    temperature: float,
    batch_tokens: int | None,
    progress: Progress | None,
) -> list[Tensor]:
    _check_kept(rows)
    results = [torch.zeros(0)] * len(rows)
    with _evaluating(model), _uncompiled(model):
        plan = _verified_plan(model)
        if want == "hidden":
            _check_plain(causal_lm(model))
        batches = plan_batches([row.read for row in rows], plan.batch_tokens(_device(model), batch_tokens))
        # Before any forward pass: all ranks communicate here.
        missing = int(_largest(model, float(len(batches)))) - len(batches)
        for batch in batches:
            flat = _forward(model, plan, [rows[i] for i in batch], want, temperature)
            for i, column in zip(batch, flat.split([rows[i].kept for i in batch]), strict=True):
                results[i] = column
            if progress is not None:
                progress(len(batch), sum(rows[i].read for i in batch))
        for _ in range(missing):
            # All ranks gather sharded parameters together, so a rank with fewer rows must still take part.
            _forward(model, plan, [Row([0, 0], [range(1, 2)])], want, temperature)
    return results


def _check_kept(rows: Sequence[Row]) -> None:
    for number, row in enumerate(rows):
        if any(span.start < 1 or span.stop > len(row.ids) for span in row.keep if len(span)):
            raise ValueError(
                f"row {number}: kept positions must lie in 1..{len(row.ids) - 1}; nothing predicts the first token"
            )


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _uncompiled(model: nn.Module) -> AbstractContextManager[object]:
    """A context in which compiled modules run eagerly: a compiled graph would not see hooks attached later."""
    compiled = any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()


def _largest(model: nn.Module, value: float) -> float:
    """The largest `value` over all ranks if the model is sharded; otherwise `value`."""
    if not is_sharded(model):
        return value
    most = torch.tensor(value, device=_device(model))
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return most.item()


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward pass needs every rank: parameters sharded by FSDP2, FSDP1 or ZeRO-3."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and in_shards(model)


def in_shards(model: nn.Module) -> bool:
    """Whether FSDP2, FSDP1 or ZeRO-3 holds the parameters, be it on one rank."""
    kinds = {type(module).__name__ for module in model.modules()}
    return (
        any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters())
        or "FullyShardedDataParallel" in kinds
    )


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


# -- one forward pass ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """How to read one model: the module whose output enters the output layer, and who computes that layer."""

    body: nn.Module
    layer: nn.Module
    vocabulary: int
    tiled: bool
    """Project in tiles from the layer's weight; otherwise the model's own code computes the logits of kept states."""

    def batch_tokens(self, device: torch.device, wanted: int | None) -> int:
        tokens = wanted or DEFAULT_BATCH_TOKENS.get(device.type, DEFAULT_BATCH_TOKENS["cpu"])
        return tokens if self.tiled else min(tokens, max(1, OWN_LOGITS // self.vocabulary))


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows of one forward pass, right-padded: `ids` `(B, T)`, kept places in `(B * T)`, the tokens predicted there."""

    ids: Int[Tensor, "b t"]
    sources: Int[Tensor, " kept"]
    targets: Int[Tensor, " kept"]

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> _Batch:
        # Right padding needs no attention mask: in causal attention, no real token sees a later one.
        width = max(row.read for row in rows)
        ids: list[int] = []
        sources: list[int] = []
        targets: list[int] = []
        for row in rows:
            begin = len(ids)
            ids += row.ids[: row.read]
            # Padded with the row's own last token: the weights of no other token can touch its numbers.
            ids += [row.ids[row.read - 1]] * (width - row.read)
            for span in row.keep:
                sources += range(begin + span.start - 1, begin + span.stop - 1)
                targets += row.ids[span.start : span.stop]
        columns = (torch.tensor(column, dtype=torch.long) for column in (ids, sources, targets))
        ids_, sources_, targets_ = (column.to(device, non_blocking=True) for column in columns)
        return cls(ids_.view(len(rows), -1), sources_, targets_)


def _forward(
    model: nn.Module, plan: _Plan, rows: Sequence[Row], want: Want, temperature: float
) -> Float[Tensor, " kept"] | Float[Tensor, "kept hidden"]:
    batch = _Batch.of(rows, _device(model))
    core = causal_lm(model)
    own = not plan.tiled and want == "logprobs"
    found: list[Tensor] = []

    def take(_module: nn.Module, _arguments: object, output: ModelOutput | tuple[Tensor, ...]) -> object:
        # Runs inside the model's own forward: under its autocast, while a sharded output layer is gathered.
        hidden = output[0]
        if hidden.shape[:2] != batch.ids.shape:
            raise ModelError(
                f"{model_name(core)}: {batch.ids.shape[1]} tokens give {hidden.shape[1]} hidden states, so log-probs cannot "
                "be assigned to tokens. Models with prompt tuning or prefix tuning are not supported."
            )
        kept = hidden.reshape(-1, hidden.shape[-1])[batch.sources]
        if own:
            return _replaced(output, kept[None] if len(kept) else hidden[:1, :1])
        kept = kept.to(_compute_dtype(kept))
        found.append(kept if want == "hidden" else project(head_of(core), kept, batch.targets, temperature))
        return _replaced(output, hidden[:1, :1])

    with contextlib.closing(_Hooks([(plan.body, take)])):
        logits = _logits(model, batch.ids)
    if not own:
        return found[0]
    return chosen_logprobs(logits[0][: len(batch.targets)], batch.targets, temperature)


class _Hooks:
    """Forward hooks, removed by `close`."""

    def __init__(self, hooks: Sequence[tuple[nn.Module, Callable[..., object]]]) -> None:
        self._handles = [module.register_forward_hook(hook) for module, hook in hooks]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def _logits(model: nn.Module, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
    output = model(input_ids=ids, use_cache=False)
    return output.logits if hasattr(output, "logits") else output[0]


def _replaced(output: ModelOutput | tuple[Tensor, ...], hidden: Tensor) -> ModelOutput | tuple[Tensor, ...]:
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    output["last_hidden_state"] = hidden
    return output


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


# -- the output layer ------------------------------------------------------------------------------------------------


def output_head(model: nn.Module) -> Head:
    """The whole output layer of a model; if it is sharded, it is gathered, and every rank must call this.

    Raises ModelError for an output layer that is not a plain one, such as `lm_head` with LoRA.
    """
    core = causal_lm(model)
    _check_plain(core)
    head = head_of(core)
    if not hasattr(head.weight, "ds_id"):
        return head
    with gathered(head):
        bias = None if head.bias is None else head.bias.detach().clone()
        return Head(head.weight.detach().clone(), bias, head.scale, head.softcap)


def has_plain_head(model: nn.Module) -> bool:
    """Whether the model's output layer is one matrix product, so that it has an `output_head`."""
    core = causal_lm(model)
    return is_plain(output_layer(core)) and (core not in _PLANS or _PLANS[core].tiled)


def _check_plain(core: PreTrainedModel) -> None:
    if not has_plain_head(core):
        raise ModelError(
            f"{model_name(core)}: the estimator `exact` needs a plain output layer, but this one has LoRA, is quantized, or "
            "has layers before it. Use `k1` or `k3`, or remove `lm_head` from LoRA's targets."
        )


# -- the probe -------------------------------------------------------------------------------------------------------

# What the probe found, per model. Not an attribute of the model: a copy must be probed again.
_PLANS: WeakKeyDictionary[nn.Module, _Plan] = WeakKeyDictionary()

# Roundings to the compute type between a dot product and its logit: the product in both computations; scale, division by
# the cap, tanh and multiplication by the cap in one of them.
ROUNDINGS = 6


def _verified_plan(model: nn.Module) -> _Plan:
    """How to read `model`, chosen by comparing log-probs of a probe batch with those of the model's own logits.

    Done once per model and output layer; all ranks of a sharded model take part. The probe has two rows of different
    lengths. Raises ModelError with the difference if even the model's own output layer differs by more than rounding
    explains, or if later tokens change a row's numbers.
    """
    core = causal_lm(model)
    layer = output_layer(core)
    known = _PLANS.get(core)
    if known is not None and known.layer is layer and (is_plain(layer) or not known.tiled):
        return known
    rows = _probe_rows(core)
    batch = _Batch.of(rows, _device(model))
    body, size, dtype, logits = _observe(model, core, batch)
    logits = logits.reshape(-1, logits.shape[-1])[batch.sources].float()
    expected = chosen_logprobs(logits, batch.targets, 1.0)
    allowed = _rounding(logits, batch.targets, size, dtype)
    worst = math.inf
    for tiled in (True, False) if is_plain(layer) else (False,):
        plan = _Plan(body, layer, logits.shape[-1], tiled)
        worst = _largest(model, _difference(_forward(model, plan, rows, "logprobs", 1.0), expected))
        if worst <= allowed:
            _check_causal(model, plan, rows, expected, allowed)
            _PLANS[core] = plan
            return plan
    raise ModelError(
        f"{model_name(core)}: log-probs differ from those of the model's own logits by {worst:.3g} nats on a probe row; "
        f"rounding in {str(dtype).removeprefix('torch.')} explains {allowed:.2g}. This architecture cannot be scored."
    )


def _rounding(logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"], size: int, dtype: torch.dtype) -> float:
    """The largest difference, in nats, that rounding explains between two computations of log-probs from hidden states.

    To first order, a log-prob changes with the logits z by dz_target - sum(p * dz). Each dz is at most |z| times
    ROUNDINGS / 2 * eps(dtype) for numbers stored in `dtype`, plus `size` * eps(float32) for the sum of the dot product.
    Sums of exponentials, tile by tile, add a few eps(float32).
    """
    single = torch.finfo(torch.float32).eps
    logprobs = logits.log_softmax(-1)
    weight = (logprobs.exp() * logits.abs()).nan_to_num(0.0).sum(-1)
    target = logits.gather(1, targets[:, None])[:, 0].abs().nan_to_num(0.0, 0.0, 0.0)
    depth = logprobs.gather(1, targets[:, None])[:, 0].abs().nan_to_num(0.0, 0.0, 0.0)
    of_logits = (target + weight) * (ROUNDINGS / 2 * torch.finfo(dtype).eps + size * single)
    return (of_logits + 32 * single * (1 + depth)).max().item()


def _probe_rows(core: PreTrainedModel) -> list[Row]:
    """Two rows of ordinary tokens, the same on every rank: ids spread over the vocabulary, no special tokens."""
    config = core.config.get_text_config()
    special = {value for name, value in vars(config).items() if name.endswith("token_id") and isinstance(value, int)}
    size = min(vocabulary(core), getattr(config, "vocab_size", None) or 2**30)
    ordinary = [token for token in range(size) if token not in special] or [0]
    ids = [ordinary[i * 7919 % len(ordinary)] for i in range(1, 17)]
    return [Row(ids[:6], [range(1, 6)]), Row(ids[6:], [range(1, 10)])]


def _observe(model: nn.Module, core: PreTrainedModel, batch: _Batch) -> tuple[nn.Module, int, torch.dtype, Tensor]:
    """The model's body, its hidden size, the type in which it computes logits, and its own logits `(B, T, V)`."""
    from transformers import PreTrainedModel

    seen: list[tuple[nn.Module, int, torch.dtype]] = []

    def see(module: nn.Module, _arguments: object, output: ModelOutput | tuple[Tensor, ...]) -> None:
        hidden = output[0]
        seen.append((module, hidden.shape[-1], _compute_dtype(hidden)))

    inside = [module for module in core.modules() if isinstance(module, PreTrainedModel) and module is not core]
    with contextlib.closing(_Hooks([(module, see) for module in inside])):
        logits = _logits(model, batch.ids)
    if not seen:
        raise ModelError(f"{model_name(core)}: the model calls no transformer body, so it cannot be scored.")
    return (*seen[-1], logits)  # the outermost body finishes last


def _difference(ours: Float[Tensor, " n"], expected: Float[Tensor, " n"]) -> float:
    """The largest difference in nats; NaN in both counts as equal, NaN in one as infinite."""
    off = (ours.float() - expected).abs()
    off[(ours == expected) | (ours.isnan() & expected.isnan())] = 0.0
    return off.nan_to_num(math.inf).max().item()


def _check_causal(
    model: nn.Module, plan: _Plan, rows: Sequence[Row], expected: Float[Tensor, " n"], allowed: float
) -> None:
    """Raise ModelError if the tokens after a row change its numbers: padding would change them too.

    Compares medians: a mixture of experts rounds differently with other tokens in the batch, and a single token may then
    be routed to another expert.
    """
    first, second = rows
    end = len(second.ids)
    followed = Row([*first.ids, *second.ids[: end - len(first.ids)]], [*first.keep, range(end - 1, end)])
    ours = _forward(model, plan, [followed, second], "logprobs", 1.0)[: first.kept]
    changed = _largest(model, (ours - expected[: first.kept]).abs().nan_to_num(0.0).median().item())
    if changed > allowed:
        raise ModelError(
            f"{model_name(causal_lm(model))}: later tokens change the log-probs of earlier ones by {changed:.3g} nats, so "
            "this model is not causal and cannot be scored."
        )
