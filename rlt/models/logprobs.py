"""Log-probabilities of chosen tokens: batched by length, in float32, never the logits of all positions.

The model's `forward` is given a second way of being called (`rlt_rows=...`), so that what wraps a model (DDP, FSDP2,
ZeRO-3, PEFT) sees an ordinary forward pass. Only the hidden states that predict a wanted token reach the output
layer, and TRL's chunked kernel projects those tile by tile. That this agrees with the model's own logits is checked once
per model, on two short rows.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from rlt.errors import ModelError

# On a CPU, small enough that activations of a small model stay in its caches.
DEFAULT_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
# (positions, vocabulary) projected together. On a CPU, a tile that stays in its caches: folding it then costs little
# beside the matrix product. On a GPU, what TRL uses.
TILES = {"cpu": (1024, 1024), "cuda": (4096, 32768)}

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids `(T,)` of one text and the ranges of positions whose log-probability is wanted (never position 0)."""

    ids: Sequence[int]
    keep: Sequence[range]

    @property
    def kept(self) -> int:
        return sum(len(span) for span in self.keep)

    @property
    def read(self) -> int:
        """How many tokens the model must read: those before the last kept one."""
        return max((span.stop - 1 for span in self.keep if len(span)), default=1)


def token_logprobs(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    temperature: float = 1.0,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> list[torch.Tensor]:
    """For each row `(n_kept,)` float32 log-probs, in nats, of its kept tokens given all tokens before them.

    `log softmax(logits / temperature)` of `model`, on the CPU, in the order of `rows`; no gradient. The logits are the
    model's own, in its type (bfloat16 weights give bfloat16 logits); all arithmetic on them is float32. A row's numbers
    do not depend on the rows beside it (to float tolerance). `batch_tokens`: padded tokens in one forward pass.
    `progress` is called after each batch with its numbers of rows and tokens. Where the model is sharded, every rank must
    call this, with any number of rows. Raises ModelError for a model whose own logits say something else.
    """
    columns = _over_batches(model, rows, "logprobs", temperature, batch_tokens, progress)
    return [column.float().cpu() for column in columns]


def hidden_states(model: nn.Module, rows: Sequence[Row], *, batch_tokens: int | None = None) -> list[torch.Tensor]:
    """For each row the `(n_kept, H)` hidden states from which its kept tokens are predicted, on the model's device."""
    return _over_batches(model, rows, "hidden", 1.0, batch_tokens, None)


@torch.no_grad()
def exact_kl(
    teacher: Head, teacher_hidden: torch.Tensor, student: Head, student_hidden: torch.Tensor, temperature: float
) -> torch.Tensor:
    """`(N,)` KL(teacher || student), in nats, of whole next-token distributions, projected tile by tile.

    From `(N, H)` hidden states of both models at the same N places in a text (`hidden_states`) and both output layers
    (`output_head`), of models with one tokenizer. Families pad their output layers differently (Qwen2.5: 151,936 rows up
    to 3B, 152,064 from 7B); both distributions are then over the tokens that both layers have.
    """
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    tokens = min(teacher.weight.shape[0], student.weight.shape[0])
    teacher, student = teacher.first(tokens), student.first(tokens)
    if teacher_hidden.shape[0] == 0:
        return torch.zeros(0)
    device = student.weight.device
    positions = TILES.get(device.type, TILES["cuda"])[0]
    bias = None if teacher.bias is None else teacher.bias.to(device)
    pieces = [
        ChunkedDivergenceFunction.apply(
            ours.to(device), student.weight, student.bias, theirs.to(device), teacher.weight.to(device), bias,
            0.0, temperature, student.scale, student.softcap, teacher.scale, teacher.softcap,
        )[0]
        for ours, theirs in zip(student_hidden.split(positions), teacher_hidden.split(positions), strict=True)
    ]  # fmt: skip
    return torch.cat(pieces).float().cpu()


# -- batches ---------------------------------------------------------------------------------------------------------


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices of rows for each forward pass: one row, or at most `batch_tokens` tokens with padding; longest first.

    Longest first, so that a run that does not fit in memory fails at its beginning.
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
    want: str,
    temperature: float,
    batch_tokens: int | None,
    progress: Progress | None,
) -> list[torch.Tensor]:
    for number, row in enumerate(rows):
        if any(span.start < 1 or span.stop > len(row.ids) for span in row.keep if len(span)):
            raise ValueError(
                f"row {number}: kept positions must lie in 1..{len(row.ids) - 1}; nothing predicts the first token"
            )
    device = _device(model)
    limit = batch_tokens or DEFAULT_BATCH_TOKENS.get(device.type, DEFAULT_BATCH_TOKENS["cpu"])
    batches = plan_batches([row.read for row in rows], limit)
    results: list[torch.Tensor] = [torch.zeros(0)] * len(rows)
    was_training = model.training
    model.eval()
    missing = _missing_batches(model, len(batches), device)  # asked first: no rank may be in a forward pass by then
    try:
        add_scoring_forward(model)
        _check_once(model, device)
        for batch in batches:
            inputs = _inputs([rows[i] for i in batch], device)
            flat = model(**inputs, rlt_want=want, rlt_temperature=temperature)
            for i, column in zip(batch, flat.split([rows[i].kept for i in batch]), strict=True):
                results[i] = column
            if progress is not None:
                progress(len(batch), sum(rows[i].read for i in batch))
        for _ in range(missing):
            # Sharded parameters are gathered by all ranks together: a rank with fewer rows must still take part.
            model(**_inputs([Row([0, 0], [range(1, 2)])], device), rlt_want=want, rlt_temperature=temperature)
    finally:
        model.train(was_training)
    return results


def _inputs(rows: Sequence[Row], device: torch.device) -> dict[str, Any]:
    # Right padding needs no attention mask: with causal attention no real token can see a later one.
    width = max(row.read for row in rows)
    ids: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    for row in rows:
        begin = len(ids)
        ids += row.ids[: row.read]
        # With the row's own last token: whatever the weights of another one are, no row's numbers meet them.
        ids += [row.ids[row.read - 1]] * (width - row.read)
        for span in row.keep:
            sources += range(begin + span.start - 1, begin + span.stop - 1)
            targets += row.ids[span.start : span.stop]
    inputs = {
        "input_ids": torch.tensor(ids, dtype=torch.long).view(len(rows), -1),
        "rlt_rows": torch.tensor(sources, dtype=torch.long),
        "rlt_targets": torch.tensor(targets, dtype=torch.long),
    }
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}


def _check_once(model: nn.Module, device: torch.device) -> None:
    """Raise ModelError if two rows scored together are not what the model's own logits say of each alone.

    Families whose head is more than a matrix, whose layers see padding or the next row, and adapters on the head would
    otherwise give wrong numbers without an error. Every rank of a sharded model makes the same passes.
    """
    core = causal_lm(model)
    if getattr(core, "_rlt_checked", False):
        return
    vocabulary = core.get_input_embeddings().num_embeddings
    ids = [(7919 * i + 13) % vocabulary for i in range(12)]
    rows = [Row(ids, [range(1, 12)]), Row(ids[5:10], [range(1, 5)])]
    flat = model(**_inputs(rows, device), rlt_want="logprobs", rlt_temperature=1.0)
    for row, ours in zip(rows, flat.split([row.kept for row in rows]), strict=True):
        text = torch.tensor([row.ids], device=device)
        logits = model(input_ids=text, use_cache=False).logits[0, :-1]
        theirs = logits.float().log_softmax(-1).gather(1, text[0, 1:, None])[:, 0]
        # Both round each logit to the logits' type, and float32 sums of the layers in another order.
        allowed = 1e-3 + 4 * torch.finfo(logits.dtype).eps * logits.float().abs().amax(-1)
        difference = (ours.float() - theirs).abs()
        wrong = difference > allowed  # never of NaN, which the rows of a broken model have either way
        if wrong.any():
            raise ModelError(
                f"{type(core).__name__}: token log-probs differ from those of the model's own logits by "
                f"{difference[wrong].max().item():.3g} nats. rlt does not know this architecture's output layer (an adapter "
                "on `lm_head`, for example); score with another model, or leave `lm_head` out of LoRA's `target_modules`."
            )
    core._rlt_checked = True


def _missing_batches(model: nn.Module, count: int, device: torch.device) -> int:
    if not is_sharded(model):
        return 0
    most = torch.tensor(count, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most.item()) - count


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward pass needs every rank: parameters sharded by FSDP2, FSDP1 or ZeRO-3."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return False
    kinds = {type(module).__name__ for module in model.modules()}
    return (
        any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters())
        or "FullyShardedDataParallel" in kinds
    )


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


# -- the second way of calling a model -------------------------------------------------------------------------------


def add_scoring_forward(model: nn.Module) -> None:
    """Let the causal language model inside `model` be called with `rlt_rows`; calls without it are unchanged.

    Idempotent. Patches the innermost `PreTrainedModel`, as TRL's own fused head does, so that hooks of wrappers run.
    """
    core = causal_lm(model)
    if getattr(core, "_rlt_scoring", False):
        return
    others = core.__dict__.get("forward")  # a patch of somebody else's, such as TRL's

    def forward(self: Any, *args: Any, rlt_rows: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if rlt_rows is not None:
            return _scoring_forward(self, rlt_rows, **kwargs)
        # Through `self`: a deep copy of a model must run its own weights.
        inner = self.__dict__.get("_rlt_forward")
        return type(self).forward(self, *args, **kwargs) if inner is None else inner(*args, **kwargs)

    signature = getattr(others, "__func__", others) or type(core).forward
    forward.__wrapped__ = signature  # type: ignore[attr-defined]  # `generate` reads it
    if others is not None:
        core._rlt_forward = others
    core.forward = types.MethodType(forward, core)
    core._rlt_scoring = True


def _scoring_forward(
    core: Any,
    rows: torch.Tensor,
    rlt_targets: torch.Tensor,
    rlt_want: str,
    rlt_temperature: float,
    input_ids: torch.Tensor,
    **of_wrappers: Any,
) -> torch.Tensor:
    given = [name for name, value in of_wrappers.items() if isinstance(value, torch.Tensor)]
    if given:  # peft hands on arguments that were not given, as None
        raise TypeError(f"a scoring pass takes no {', '.join(given)}")
    hidden = _backbone(core)(input_ids=input_ids, use_cache=False).last_hidden_state
    hidden = hidden.reshape(-1, hidden.shape[-1])[rows]
    if rlt_want == "hidden":
        return hidden
    return project(_head(core), hidden, rlt_targets, rlt_temperature)


def _backbone(core: Any) -> Any:
    """The layers below the output layer. A family that names them otherwise (Llama 4) has itself as its `base_model`."""
    for found in (core.base_model, getattr(core, "model", None)):
        if found is not None and found is not core:
            return found
    raise ModelError(f"{type(core).__name__}: rlt does not know where its layers end and its output layer begins.")


def project(head: Head, hidden: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """`(N,)` float32 log-probs of `targets` `(N,)` from hidden states `(N, H)`, by TRL's chunked kernel."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    if hidden.shape[0] == 0:
        return hidden.new_zeros(0, dtype=torch.float32)
    positions, vocabulary = TILES.get(hidden.device.type, TILES["cuda"])
    with _gathered(head):
        chunk = min(vocabulary, head.weight.shape[0])
        pieces = [
            ChunkedLogProbFunction.apply(
                states, head.weight, head.bias, wanted, temperature, chunk, head.softcap, head.scale, ()
            )[0]
            for states, wanted in zip(hidden.split(positions), targets.split(positions), strict=True)
        ]
    return torch.cat(pieces)


@dataclass(frozen=True, slots=True)
class Head:
    """A model's output layer: logits = softcap(scale * (hidden @ weight.T + bias)), with `(V, H)` weight."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    softcap: float | None

    def first(self, tokens: int) -> Head:
        """The output layer of the first `tokens` ids alone."""
        return Head(self.weight[:tokens], None if self.bias is None else self.bias[:tokens], self.scale, self.softcap)


def output_head(model: nn.Module) -> Head:
    """The whole output layer of a model, gathered from its shards where it has any (then every rank must call this)."""
    head = _head(model)
    if not hasattr(head.weight, "ds_id"):
        return head
    with _gathered(head):
        bias = None if head.bias is None else head.bias.detach().clone()
        return Head(head.weight.detach().clone(), bias, head.scale, head.softcap)


def _gathered(head: Head) -> AbstractContextManager[Any]:
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    parameters: list[Any] = [head.weight] if head.bias is None else [head.weight, head.bias]
    return maybe_gather_lm_head_ctx(*parameters)


def _head(model: nn.Module) -> Head:
    core = causal_lm(model)
    config = core.config.get_text_config()
    layer: Any = core.get_output_embeddings()
    weight, bias = _full(layer.weight), getattr(layer, "bias", None)
    bias = None if bias is None else _full(bias)
    # The names under which model families scale their logits; the same ones TRL's fused head reads.
    scale = next(
        (getattr(config, name) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
         if getattr(config, name, None) is not None), None,
    )  # fmt: skip
    if scale is None and getattr(config, "logits_scaling", None) is not None:
        scale = config.logits_scaling if config.model_type == "hyperclovax" else 1 / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return Head(weight, bias, 1.0 if scale is None else scale, cap)


def _full(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def causal_lm(model: nn.Module) -> Any:
    """The transformers model inside DDP, FSDP, DeepSpeed, torch.compile and PEFT wrappers."""
    core = model
    while not hasattr(core, "get_output_embeddings") or hasattr(core, "peft_config"):
        inner = getattr(core, "module", None) or getattr(core, "_orig_mod", None)
        if inner is None and hasattr(core, "get_base_model"):
            inner = core.get_base_model()  # type: ignore[operator]
        if inner is None or inner is core:
            break
        core = inner
    return core
