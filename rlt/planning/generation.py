"""Plans of generation: engines, their memory, and the stages collect and evaluate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

from rlt.config import CollectConfig, EvaluateConfig
from rlt.errors import ConfigError
from rlt.planning.context import Context
from rlt.planning.machine import GIB
from rlt.planning.memory import Memory, forward_activations
from rlt.planning.options import FIXED
from rlt.planning.shapes import Shape
from rlt.planning.step_plan import StepPlan
from rlt.planning.throughput import Sampler, cut, sampling_seconds
from rlt.recipe import Step

T = TypeVar("T")


class Texts(NamedTuple):
    """Token lengths of the texts that an engine writes: `mean` is that of texts not truncated at `cap`."""

    prompt: float
    mean: float
    cap: float


class Engine(NamedTuple):
    """A sampler, the bytes of KV cache per GPU, and the minimum number of bytes to start."""

    sampler: Sampler
    kv_cache: float
    least: float


def vllm_engine(
    context: Context, shape: Shape, gpus: int, share: float, limit: float, texts: Texts, at_once: float, wide: int = 2
) -> Engine:
    """A vLLM engine on `gpus` GPUs that may use `share` of each; its cache holds at least one sequence of `limit` tokens.

    `wide`: bytes per weight and cache element.
    """
    weights, token = wide * shape.parameters / gpus, wide / 2 * shape.kv_bytes / gpus
    least = limit * token
    room = share * context.gpu.memory - weights - context.options.overhead_gib * GIB
    cache = min(max(room, least), at_once * limit * token)
    running = max(1.0, min(at_once, cache / (token * (texts.prompt + texts.mean / 2))))
    return Engine(Sampler(shape, gpus, running), cache, weights + least)


# -- stages ------------------------------------------------------------------------------------------------------------


def plan_collect(context: Context, step: Step, config: CollectConfig) -> StepPlan:
    """The plan of a collect step: `samples` explanations of each problem."""
    options = context.options
    texts = Texts(options.question_tokens + options.solution_tokens, options.explanation_tokens, config.max_tokens)
    return _plan_generation(context, step, config, context.rows(config.data) * config.samples, texts)


def plan_evaluate(context: Context, step: Step, config: EvaluateConfig) -> StepPlan:
    """The plan of an evaluate step: `samples` responses to each question of its data or benchmarks."""
    names = [config.data] if config.data else config.benchmark
    rows = sum(min(context.rows_at(name), config.limit or math.inf) for name in names)
    samples = config.samples or (8 if config.preset == "robust" else 1)
    options = context.options
    texts = Texts(options.question_tokens, options.response_tokens, config.max_tokens or FIXED.response_limit)
    return _plan_generation(context, step, config, rows * samples, texts)


@dataclass(frozen=True)
class Replicas:
    """Identical engines that share a step's work, and the memory of one GPU."""

    sampler: Sampler
    count: int
    memory: Memory


def _plan_generation(
    context: Context, step: Step, config: CollectConfig | EvaluateConfig, completions: float, texts: Texts
) -> StepPlan:
    shape = context.shape(config.model)
    texts = texts._replace(cap=min(texts.cap, shape.context - 1 if shape.context else texts.cap))
    limit = min(texts.prompt + texts.cap, shape.context or math.inf)
    place = _transformers_replicas if config.engine == "transformers" else _vllm_replicas
    engines = place(context, shape, config, texts, limit)
    sampler, share = engines.sampler, completions / engines.count
    seconds = sampling_seconds(sampler, context.gpu, share, *texts, context.options)
    gpus = engines.count * sampler.gpus
    written = cut(texts.mean, context.options.length_spread, texts.cap)
    note = (
        f"{completions:,.0f} completions; {engines.count} engine(s) of {sampler.gpus} GPU(s), "
        f"{min(sampler.concurrency, share):,.0f} sequences at once, "
        f"{completions * written / seconds / gpus:,.0f} tokens/s per GPU"
    )
    wide = context.float32_warnings([config.model], config.dtype) if config.engine == "transformers" else ()
    return StepPlan(
        step.name,
        step.stage,
        context.name_of(config.model),
        gpus,
        moments=(engines.memory,),
        seconds={"sampling": seconds},
        disk=completions * (texts.prompt + 2 * written) * FIXED.text_bytes,  # text and raw completion
        notes=(note,),
        warnings=tuple(wide),
    )


def _transformers_replicas(
    context: Context, shape: Shape, config: CollectConfig | EvaluateConfig, texts: Texts, limit: float
) -> Replicas:
    batch, wide = config.batch_size, context.weight_bytes(config.model, config.dtype)
    memory = Memory(
        "sampling",
        wide * shape.parameters,
        activations=wide / 2 * forward_activations(shape, batch * texts.prompt),
        logits=(4 + wide) * batch * shape.vocab,  # sampled from in float32
        kv_cache=wide / 2 * batch * limit * shape.kv_bytes,
    )
    return Replicas(Sampler(shape, 1, batch, batched=True), min(_workers(config), context.options.count), memory)


def _vllm_replicas(
    context: Context, shape: Shape, config: CollectConfig | EvaluateConfig, texts: Texts, limit: float
) -> Replicas:
    """vLLM in this process (one engine), on Ray (one per worker), or behind addresses (on every GPU)."""
    options, count = context.options, context.options.count

    def option(name: str, default: T) -> T:
        return cast(T, config.engine_options.get(name, default))

    gpus = option("tensor_parallel_size", 1)
    if gpus > count:
        raise ConfigError(
            f"`engine_options.tensor_parallel_size` is {gpus}, one GPU each; plan with --count {gpus} or more."
        )
    served = config.engine == "openai"
    replicas = min(count // gpus, count if served else _workers(config))
    at_once = option("max_num_seqs", options.max_num_seqs)
    if served:
        at_once = min(at_once, max(1, config.max_in_flight // replicas))
    # With `auto` vLLM computes in 16 bits whatever the checkpoint has.
    wide = 4 if config.dtype == "float32" and config.engine == "vllm" else 2
    share = option("gpu_memory_utilization", FIXED.vllm_share)
    engine = vllm_engine(context, shape, gpus, share, option("max_model_len", limit), texts, at_once, wide)
    memory = Memory("sampling", wide * shape.parameters / gpus, kv_cache=engine.kv_cache)
    return Replicas(engine.sampler, replicas, memory)


def _workers(config: CollectConfig | EvaluateConfig) -> int:
    return config.ray_workers if config.ray else 1
