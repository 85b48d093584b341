"""Plans of reinforcement learning: the teacher's, and the student's from a cold start."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rlt.config import SELF, ColdstartConfig, TrainConfig
from rlt.errors import ConfigError
from rlt.planning.context import Context
from rlt.planning.generation import Texts, vllm_engine
from rlt.planning.machine import GB
from rlt.planning.memory import Memory, forward_activations, head_bytes
from rlt.planning.options import FIXED
from rlt.planning.scoring import Scorers, scoring_seconds
from rlt.planning.step_plan import StepPlan
from rlt.planning.throughput import Sampler, cut, longest, sampling_seconds
from rlt.planning.training_setup import TrainingSetup
from rlt.recipe import Step


@dataclass(frozen=True)
class Work:
    """Work of a reinforcement step, in tokens, completions and updates."""

    setup: TrainingSetup
    scorers: Scorers
    servers: int
    """GPUs that serve samples; 0 if the trainers sample."""
    texts: Texts
    updates: int
    generations: int
    iterations: int
    """Updates on each generated batch."""
    teaching: bool

    @property
    def longest_text(self) -> float:
        return self.texts.prompt + self.texts.cap


def plan_reinforcement(context: Context, step: Step, config: TrainConfig | ColdstartConfig) -> StepPlan:
    """The plan of teacher RL or of a student's RL: sampling, scoring and updating take turns."""
    work = _work_of(context, step, config)
    setup, scorers = work.setup, work.scorers
    width = _padded_width(context, work)
    update = setup.update(setup.batch * work.longest_text)
    sampling, sampling_time = _sample(context, work, update)
    completions, group = setup.completions, setup.get("num_generations", 8)
    disk, disk_peak = setup.disk(work.updates)
    return StepPlan(
        step.name,
        step.stage,
        context.name_of(config.model),
        setup.n + work.servers,
        moments=_moments(context, work, config, update, sampling),
        seconds=_seconds(context, work, width, sampling_time),
        disk=disk,
        disk_peak=disk_peak,
        host=setup.host_bytes + scorers.moved * setup.n,  # every process has its own copy
        notes=(
            f"{work.updates:,} steps; {completions:,} completions per generation "
            f"({completions // group} questions x {group}) padded to {width:,.0f} tokens",
            f"{setup.n} GPU(s) train" + (f", {work.servers} serve samples" if work.servers else ""),
        ),
        warnings=(*scorers.warnings, *setup.warnings),
    )


def _work_of(context: Context, step: Step, config: TrainConfig | ColdstartConfig) -> Work:
    options, shape = context.options, context.shape(config.model)
    setup = TrainingSetup.of(step, config, shape, *context.processes(config.launch, step))
    servers = 0
    if setup.vllm == "server":
        setup = replace(setup, n=_trainers(context, step, setup))
        servers = options.count - setup.n
    teaching = isinstance(config, TrainConfig)
    prompt = options.question_tokens + (options.solution_tokens if teaching else 0)
    mean = float(options.explanation_tokens if teaching else options.response_tokens)
    updates, iterations = setup.updates(context.rows(config.data)), setup.get("num_iterations", 1)
    generations = math.ceil(updates / max(1, setup.completions // setup.rows_per_step * iterations))
    scorers = Scorers()
    if isinstance(config, TrainConfig):
        # The live policy as its own student needs no extra weights; its pass is planned like any student's.
        students = [config.model if name == SELF else name for name in config.student]
        scorers = Scorers.of(context, students, config.student_placement, config.dtype)
    texts = Texts(prompt, mean, setup.get("max_completion_length", 512))
    return Work(setup, scorers, servers, texts, updates, generations, iterations, teaching)


def _padded_width(context: Context, work: Work) -> float:
    """Tokens of prompt and completion, padded to the longest completion that is computed together."""
    options, setup, (prompt, mean, cap) = context.options, work.setup, work.texts
    together = setup.completions / setup.n if options.padding == "generation" else setup.batch
    if together > 1:
        return prompt + longest(mean, together, options.length_spread, cap)
    return prompt + cut(mean, options.length_spread, cap)


def _trainers(context: Context, step: Step, setup: TrainingSetup) -> int:
    """GPUs that train while the others serve samples: those that `sampler_gpus` leaves; else as many as make
    `generation_batch_size` one update; else half."""
    count, servers = context.options.count, context.options.sampler_gpus
    if setup.launch.processes == 1:
        trainers = 1
    elif servers is not None:
        trainers = count - servers
    elif setup.get("generation_batch_size", 0):
        trainers = setup.get("generation_batch_size", 0) // (setup.batch * setup.accumulation)
    else:
        trainers = count // 2
    if not 0 < trainers < count:
        raise ConfigError(
            f"step `{step.name}`: of {count} GPUs, {trainers} would train and the rest would serve samples (`vllm_mode: "
            "server`). Plan with more GPUs (--count), set how many serve (--sampler-gpus), or use `vllm_mode: colocate`."
        )
    return trainers


# -- memory ------------------------------------------------------------------------------------------------------------


def _moments(
    context: Context, work: Work, config: TrainConfig | ColdstartConfig, update: Memory, sampling: Memory
) -> tuple[Memory, Memory, Memory]:
    """Memory of one GPU while sampling, scoring and updating."""
    setup, scorers = work.setup, work.scorers
    asleep = _idle_vllm(context, setup)
    tokens = max(getattr(config, "batch_tokens", None) or FIXED.score_tokens, work.longest_text)
    widest = max([setup.shape, *scorers.shapes], key=lambda each: each.hidden)
    scoring = Memory(
        "scoring",
        weights=update.weights,
        optimiser=update.optimiser,
        kv_cache=asleep,
        activations=forward_activations(widest, tokens),
        logits=head_bytes(widest, tokens, False),
        other_models=setup.reference_bytes + scorers.in_use,
    )
    resident = setup.reference_bytes + scorers.resident
    if setup.vllm != "server":
        sampling = replace(sampling, other_models=sampling.other_models + resident)
    return sampling, scoring, replace(update, other_models=resident, kv_cache=asleep)


def _idle_vllm(context: Context, setup: TrainingSetup) -> float:
    """Bytes that a colocated vLLM keeps during training: its whole share, unless it sleeps."""
    if setup.vllm != "colocate" or setup.get("vllm_enable_sleep_mode", False):
        return 0.0
    return setup.get("vllm_gpu_memory_utilization", FIXED.colocated_share) * context.gpu.memory


def _sample(context: Context, work: Work, update: Memory) -> tuple[Memory, float]:
    """Memory while one generation is sampled, and the seconds it takes."""
    return _sample_locally(context, work, update) if work.setup.vllm is None else _sample_vllm(context, work, update)


def _sample_locally(context: Context, work: Work, update: Memory) -> tuple[Memory, float]:
    setup, shape = work.setup, work.setup.shape
    local = setup.completions / setup.n
    memory = Memory(
        "sampling",
        weights=update.weights,
        optimiser=update.optimiser,
        activations=forward_activations(shape, local * work.texts.prompt),
        logits=6 * local * shape.vocab,
        kv_cache=local * work.longest_text * shape.kv_bytes,
        other_models=2.0 * shape.parameters if setup.launch.shards_weights else 0.0,  # gathered whole
    )
    sampler = Sampler(shape, 1, local, batched=True)
    return memory, sampling_seconds(sampler, context.gpu, local, *work.texts, context.options)


def _sample_vllm(context: Context, work: Work, update: Memory) -> tuple[Memory, float]:
    setup, shape = work.setup, work.setup.shape
    gpus = setup.get("vllm_tensor_parallel_size", 1)
    server = setup.vllm == "server"
    share = FIXED.vllm_share if server else setup.get("vllm_gpu_memory_utilization", FIXED.colocated_share)
    limit = setup.get("vllm_max_model_length", work.longest_text)
    engine = vllm_engine(context, shape, gpus, share, limit, work.texts, context.options.max_num_seqs)
    if server:
        memory = Memory("vLLM server", 2.0 * shape.parameters / gpus, kv_cache=engine.kv_cache)
    else:
        memory = Memory(
            "sampling",
            weights=update.weights,
            optimiser=update.optimiser,
            kv_cache=max(share * context.gpu.memory, engine.least),
        )
    part = setup.completions / max(1, (work.servers or setup.n) // gpus)
    return memory, sampling_seconds(engine.sampler, context.gpu, part, *work.texts, context.options)


# -- time --------------------------------------------------------------------------------------------------------------


def _seconds(context: Context, work: Work, width: float, sampling: float) -> dict[str, float]:
    """Seconds of each part of the work; `sampling`: of one generation."""
    setup, scorers, generations = work.setup, work.scorers, work.generations
    # Besides the update: one pass of the policy without gradients, for importance sampling and the KL to the student, and
    # one of the reference. Students read texts batched by length, without padding.
    extra = int(setup.vllm is not None or work.teaching) + int(bool(setup.get("beta", 0.0)))
    flops = setup.completions * setup.shape.forward_flops(width) * (setup.passes * work.iterations + extra)
    moved = generations * scorers.moved / (context.options.pcie_gb_per_s * GB)
    return {
        "sampling": generations * sampling,
        "policy and reference": generations * flops / context.speed(setup.n),
        "scoring": scoring_seconds(context, scorers.names, setup.completions * generations, setup.n, work.texts.cap),
        "offload": setup.offload_seconds(work.updates, context.options) + moved,
    }
