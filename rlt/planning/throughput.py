"""Seconds of sampling: lengths, decoding steps, bytes read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from rlt.planning.machine import Gpu
from rlt.planning.options import FIXED, PlanConfig
from rlt.planning.shapes import Shape


def _log_normal(mean: float, spread: float) -> tuple[float, float]:
    """mu and sigma of log-normal lengths; `spread`: standard deviation over mean."""
    sigma = math.sqrt(math.log1p(spread**2))
    return math.log(mean) - sigma**2 / 2, sigma


def cut(mean: float, spread: float, cap: float) -> float:
    """Mean length of texts that end on their own or at `cap` tokens."""
    if spread == 0 or math.isinf(cap):
        return min(mean, cap)
    mu, sigma = _log_normal(mean, spread)
    z = (math.log(cap) - mu) / sigma
    normal = NormalDist()
    return mean * normal.cdf(z - sigma) + cap * (1 - normal.cdf(z))


def up_to_cap(mean: float, spread: float, cap: float) -> tuple[float, float]:
    """Share of texts with at most `cap` tokens, and their mean length."""
    if spread == 0 or math.isinf(cap):
        return 1.0, min(mean, cap)
    mu, sigma = _log_normal(mean, spread)
    z = (math.log(cap) - mu) / sigma
    share = NormalDist().cdf(z)
    if share < 1e-6:
        return 1e-6, cap
    return share, mean * NormalDist().cdf(z - sigma) / share


def longest(mean: float, count: float, spread: float, cap: float) -> float:
    """Expected length of the longest of `count` log-normal texts (Blom's quantile), at most `cap`."""
    if count <= 1 or spread == 0:
        return min(mean, cap)
    mu, sigma = _log_normal(mean, spread)
    z = NormalDist().inv_cdf((count - 0.375) / (count + 0.25))
    return min(cap, math.exp(mu + sigma * z))


@dataclass(frozen=True, slots=True)
class Sampler:
    """One engine: a model spread over `gpus` GPUs that decodes `concurrency` sequences at once."""

    shape: Shape
    gpus: int
    concurrency: float
    batched: bool = False  # in this process: a batch ends with its longest row


def sampling_seconds(
    sampler: Sampler, gpu: Gpu, completions: float, prompt: float, mean: float, cap: float, options: PlanConfig
) -> float:
    """Seconds for one engine to write `completions` texts. `mean`: tokens of a text that is not truncated at `cap`.

    Every decoding step reads all weights and the KV cache of the running sequences. `concurrency` sequences run until
    the queue is empty; then the longest one finishes.
    """
    shape, spread = sampler.shape, options.length_spread
    written = cut(mean, spread, cap)
    at_once = min(sampler.concurrency, completions)
    if sampler.batched:
        steps = completions / at_once * longest(mean, at_once, spread, cap)
    else:
        steps = completions / at_once * written + longest(mean, completions, spread, cap) - written
    context = prompt * written + written**2 * (1 + spread**2) / 2  # positions read over one completion
    read = 2 * shape.parameters * steps + shape.kv_bytes * completions * context
    computed = completions * written * 2 * shape.matmul_parameters
    decoding = max(read / gpu.bandwidth, computed / gpu.flops) / sampler.gpus / options.decode_efficiency
    if sampler.batched:
        decoding = max(decoding, steps * shape.layers * FIXED.layer_launch_ms / 1000)
    else:
        decoding += steps * options.step_overhead_ms / 1000
    return decoding + completions * shape.forward_flops(prompt) / (gpu.flops * sampler.gpus * options.utilisation)
