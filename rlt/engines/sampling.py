"""Sampling tokens by inverse transform, with one uniform number per seed and step."""

from __future__ import annotations

import torch

from rlt.engines.base import Sampling

# Tokens whose probabilities are summed before searching among them: no sum runs over a whole vocabulary.
BLOCK = 256
# Most probable tokens tried first for top-p. Sorting a whole vocabulary costs ten times as much.
CANDIDATES = 256


def sample(
    logits: torch.Tensor, sampling: Sampling, seeds: torch.Tensor, step: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(B,)` token ids sampled from `(B, V)` float32 logits, and their `(B,)` log-probs in nats under those logits divided
    by `temperature`.

    The random number depends only on the row's seed `(B,)` and the step. Top-k is applied before top-p, as in vLLM and
    transformers. Neither these nor `sampling.temperature` change the log-probs.
    """
    centred = logits - logits.amax(-1, keepdim=True)
    weights = centred.exp()
    if sampling.temperature == 0:
        chosen = logits.argmax(-1)
    else:
        tempered = weights if sampling.temperature == 1 else (centred / sampling.temperature).exp()
        chosen = _draw(tempered, sampling, uniform(seeds, step))
    if temperature != 1:
        centred = centred / temperature
        weights = centred.exp()
    return chosen, centred.gather(1, chosen[:, None])[:, 0] - weights.sum(-1).log()


def _draw(weights: torch.Tensor, sampling: Sampling, at: torch.Tensor) -> torch.Tensor:
    """`(B,)` tokens at the fraction `at` of the cumulative `(B, V)` weights, after top-k and top-p."""
    if sampling.top_k is None and sampling.top_p >= 1:
        return _invert(weights, at)
    size = weights.shape[-1]
    if sampling.top_k is not None:
        ordered, order = weights.topk(min(sampling.top_k, size))
        total = ordered.sum(-1, keepdim=True)
    else:
        total = weights.sum(-1, keepdim=True)
        ordered, order = weights.topk(min(CANDIDATES, size))
        if bool((ordered.sum(-1, keepdim=True) < sampling.top_p * total).any()):
            ordered, order = weights.sort(-1, descending=True)
    if sampling.top_p < 1:
        # The token that crosses top_p is kept.
        probs = ordered / total
        ordered = ordered.masked_fill(probs.cumsum(-1) - probs >= sampling.top_p, 0.0)
    return order.gather(1, _invert(ordered, at)[:, None])[:, 0]


def _invert(weights: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """`(B,)` indices at which the cumulative `(B, N)` weights exceed the fraction `at`, in [0, 1), of their sum."""
    blocks = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    sums = blocks.sum(-1).double()
    ends = sums.cumsum(-1)
    target = at * ends[:, -1]
    block = _first_above(sums, ends, target)[:, None]
    rest = target - (ends.gather(1, block) - sums.gather(1, block))[:, 0]
    inside = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0].double()
    return block[:, 0] * BLOCK + _first_above(inside, inside.cumsum(-1), rest)


def _first_above(weights: torch.Tensor, cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    found = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    # Rounding can point before the first or past the last index with a positive weight.
    positive = (weights > 0).int()
    first, last = positive.argmax(-1), weights.shape[-1] - 1 - positive.flip(-1).argmax(-1)
    return torch.minimum(torch.maximum(found, first), last)


def uniform(seeds: torch.Tensor, step: int) -> torch.Tensor:
    """`(B,)` float64 in [0, 1): the splitmix64 hash of each seed and the step (Steele, Lea and Flood 2014).

    A hash, because a generator per row would cost a Python call per row and token.
    """
    x = ((seeds << 32) + step + 1) * _GOLDEN
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        x = (x ^ _shifted(x, shift)) * factor
    x = x ^ _shifted(x, 31)
    return _shifted(x, 11).double() * 2.0**-53


# The constants of splitmix64, as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's `>>` is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
