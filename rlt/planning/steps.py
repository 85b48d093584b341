"""One step of a recipe: which models, how many tokens, and so its memory, seconds and disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from rlt.config import (
    ColdstartConfig,
    CollectConfig,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ModelOptions,
    PretrainConfig,
    ProblemsConfig,
    ScoreConfig,
    SelectConfig,
    TrainConfig,
    WarmupConfig,
)
from rlt.data.rows import read_rows
from rlt.errors import ConfigError
from rlt.planning.machine import GB, GIB, Launch, load_gpu, load_launch
from rlt.planning.memory import Memory, forward_activations, head_bytes, with_overhead
from rlt.planning.options import FIXED, PlanConfig
from rlt.planning.shapes import Shape, load_shape, shape_of
from rlt.planning.throughput import Sampler, cut, fitting, longest, sampling_seconds
from rlt.planning.training import Training
from rlt.recipe import Recipe, Step


@dataclass(frozen=True)
class StepPlan:
    """What one step needs. `moments`: memory of one GPU at each of its moments; `seconds`: of each part of its work."""

    name: str
    stage: str
    model: str = ""
    gpus: int = 0
    moments: tuple[Memory, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    disk: float = 0.0
    """Bytes that stay."""
    disk_peak: float = 0.0
    """Bytes that there are at most while it runs, where that is more."""
    host: float = 0.0
    """Bytes of host memory, of all its GPUs' processes."""
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> float:
        """Bytes on the fullest GPU at the fullest moment."""
        return max((memory.total for memory in self.moments), default=0.0)

    @property
    def hours(self) -> float:
        return sum(self.seconds.values()) / 3600


class Engine(NamedTuple):
    """A sampler and what it holds on each of its GPUs: bytes of KV cache, and the least with which it starts."""

    sampler: Sampler
    kv_cache: float
    least: float


class Planner:
    """Plans the steps of one recipe; rows and shapes of earlier steps' outputs are looked up by their paths."""

    def __init__(self, recipe: Recipe, options: PlanConfig) -> None:
        self.options = options
        self.gpu = load_gpu(options.gpu)
        self.steps = {str(step.config.output): step for step in recipe.steps}

    def plan(self, step: Step) -> StepPlan:
        """The plan of one step. Raises ConfigError or ModelError for what cannot be planned."""
        config = step.config
        if isinstance(config, TrainConfig | ColdstartConfig):
            planned = self._reinforce(step, config)
        elif isinstance(config, WarmupConfig | DistillConfig):
            planned = self._supervise(step, config)
        elif isinstance(config, CollectConfig):
            planned = self._collect(step, config)
        elif isinstance(config, EvaluateConfig):
            planned = self._evaluate(step, config)
        elif isinstance(config, ScoreConfig):
            planned = self._score(step, config)
        elif isinstance(config, PretrainConfig):
            planned = self._base(step, config)
        else:
            return StepPlan(step.name, step.stage, notes=("runs on the CPU",))
        return replace(planned, moments=tuple(with_overhead(moment, self.options) for moment in planned.moments))

    # -- training --------------------------------------------------------------------------------------------------

    def _supervise(self, step: Step, config: WarmupConfig | DistillConfig) -> StepPlan:
        options, shape = self.options, self.shape(config.model)
        training = Training.of(step, config, shape, *self._processes(config.launch, step))
        cap = config.max_length or shape.context or math.inf
        written = options.trace_tokens if self._step_of(config.data.path) is None else options.explanation_tokens
        length = options.question_tokens + options.solution_tokens + written
        share, mean = fitting(length, options.length_spread, cap)  # longer rows are left out, never cut
        rows = max(1, round(share * self.rows(config.data)))
        epochs = training.get("num_train_epochs", 3)
        examples = rows * epochs
        if training.get("max_steps", -1) > 0:
            examples = training.trainer["max_steps"] * training.rows_a_step
        elif isinstance(config, DistillConfig) and isinstance(config.token_budget, int):
            examples = min(examples, epochs * config.token_budget / written)
        steps = max(1, math.ceil(examples / training.rows_a_step))
        padded = max(mean, longest(length, training.batch, options.length_spread, cap)) if training.batch > 1 else mean
        flops = examples * shape.forward_flops(padded) * training.passes
        return StepPlan(
            step.name,
            step.stage,
            self._named(config.model),
            training.n,
            (training.update(training.batch * longest(length, rows, options.length_spread, cap)),),
            {
                "training": flops / self._speed(training.n),
                "offload": training.offload_seconds(steps, options),
            },
            *training.disk(steps),
            training.host_bytes,
            (f"{rows:,} rows, {steps:,} steps of {training.rows_a_step} rows", *training.warnings),
        )

    def _reinforce(self, step: Step, config: TrainConfig | ColdstartConfig) -> StepPlan:
        options, shape = self.options, self.shape(config.model)
        teaching = isinstance(config, TrainConfig)
        launch, n = self._processes(config.launch, step)
        training = Training.of(step, config, shape, launch, n)
        if training.vllm == "server":
            training = replace(training, n=self._trainers(step, training))
        n, servers = training.n, options.count - training.n if training.vllm == "server" else 0
        completions, group = training.completions, training.get("num_generations", 8)
        cap = training.get("max_completion_length", 512)
        prompt = options.question_tokens + (options.solution_tokens if teaching else 0)
        mean = float(options.explanation_tokens if teaching else options.response_tokens)
        written = cut(mean, options.length_spread, cap)
        updates = training.updates(self.rows(config.data))
        iterations = training.get("num_iterations", 1)
        generations = math.ceil(updates / max(1, completions // training.rows_a_step * iterations))
        together = completions / n if options.padding == "generation" else training.batch
        width = prompt + (longest(mean, together, options.length_spread, cap) if together > 1 else written)

        students = (
            Students.of(self, config.student, config.student_placement, config.dtype)
            if isinstance(config, TrainConfig)
            else Students()
        )
        update = training.update(training.batch * (prompt + cap))
        sampling, sample_seconds = self._sample(training, update, servers, prompt, mean, cap)
        kept = {"weights": update.weights, "optimiser": update.optimiser, "kv_cache": self._asleep(training)}
        tokens = max(getattr(config, "batch_tokens", None) or FIXED.score_tokens, prompt + cap)
        widest = max([shape, *students.shapes], key=lambda each: each.hidden)
        scoring = Memory(
            "scoring",
            **kept,
            activations=forward_activations(widest, tokens),
            logits=head_bytes(widest, tokens, False),
            other_models=training.reference_bytes + students.in_use,
        )
        resident = training.reference_bytes + students.resident
        if training.vllm != "server":
            sampling = replace(sampling, other_models=sampling.other_models + resident)
        # Beside the update: the policy once without gradient, for the sampler's correction and the KL to the student,
        # and the reference model. Students read texts batched by length, without padding.
        extra = int(training.vllm is not None or teaching) + int(bool(training.get("beta", 0.0)))
        flops = completions * shape.forward_flops(width) * (training.passes * iterations + extra)
        seconds = {
            "sampling": generations * sample_seconds,
            "policy and reference": generations * flops / self._speed(n),
            "scoring": self._scoring_seconds(students.names, completions * generations, n, cap),
            "offload": training.offload_seconds(updates, options)
            + generations * students.moved / (options.pcie_gb_per_s * GB),
        }
        notes = [
            f"{updates:,} steps; {completions:,} completions a generation ({completions // group} questions x {group}) "
            f"padded to {width:,.0f} tokens",
            f"{n} GPU(s) train" + (f", {servers} serve samples" if servers else ""),
        ]
        if students.served:
            notes.append(f"{students.served} student(s) behind an address, on other machines: not counted")
        return StepPlan(
            step.name,
            step.stage,
            self._named(config.model),
            n + servers,
            (sampling, scoring, replace(update, other_models=resident, kv_cache=self._asleep(training))),
            seconds,
            *training.disk(updates),
            training.host_bytes + students.moved * n,  # every process has its own copy
            (*notes, *training.warnings),
        )

    def _sample(
        self, training: Training, update: Memory, servers: int, prompt: float, mean: float, cap: float
    ) -> tuple[Memory, float]:
        """Memory while one generation is sampled, and the seconds that this takes."""
        shape, options = training.shape, self.options
        kept = {"weights": update.weights, "optimiser": update.optimiser}
        if training.vllm is None:
            local = training.completions / training.n
            memory = Memory(
                "sampling",
                **kept,
                activations=forward_activations(shape, local * prompt),
                logits=6 * local * shape.vocab,
                kv_cache=local * (prompt + cap) * shape.kv_bytes,
                other_models=2.0 * shape.parameters if training.launch.shards_weights else 0.0,  # gathered whole
            )
            sampler = Sampler(shape, 1, local, batched=True)
            return memory, sampling_seconds(sampler, self.gpu, local, prompt, mean, cap, options)
        server = training.vllm == "server"
        gpus = training.get("vllm_tensor_parallel_size", 1)
        share = FIXED.vllm_share if server else training.get("vllm_gpu_memory_utilization", FIXED.colocated_share)
        limit = training.get("vllm_max_model_length", prompt + cap)
        engine = self._vllm(shape, gpus, share, limit, prompt, mean, options.max_num_seqs)
        if server:
            memory = Memory("vLLM server", 2.0 * shape.parameters / gpus, kv_cache=engine.kv_cache)
        else:
            memory = Memory("sampling", **kept, kv_cache=max(share * self.gpu.memory, engine.least))
        part = training.completions / max(1, (servers or training.n) // gpus)
        return memory, sampling_seconds(engine.sampler, self.gpu, part, prompt, mean, cap, options)

    def _asleep(self, training: Training) -> float:
        """Bytes that a colocated vLLM keeps while the trainer works: its whole share, unless it sleeps."""
        if training.vllm != "colocate" or training.get("vllm_enable_sleep_mode", False):
            return 0.0
        return training.get("vllm_gpu_memory_utilization", FIXED.colocated_share) * self.gpu.memory

    def _processes(self, launch: str | None, step: Step) -> tuple[Launch, int]:
        placement = load_launch(launch)
        n = placement.processes or self.options.count
        if n > self.options.count:
            raise ConfigError(
                f"step `{step.name}`: `launch` wants {n} processes; give at least that many GPUs (--count)."
            )
        return placement, n

    def _trainers(self, step: Step, training: Training) -> int:
        """GPUs that train beside vLLM servers: the rest of `sampler_gpus`; else so many that `generation_batch_size` is
        one update; else half."""
        count, servers = self.options.count, self.options.sampler_gpus
        if training.launch.processes == 1:
            trainers = 1
        elif servers is not None:
            trainers = count - servers
        elif training.get("generation_batch_size", None):
            trainers = training.trainer["generation_batch_size"] // (training.batch * training.accumulation)
        else:
            trainers = count // 2
        if not 0 < trainers < count:
            raise ConfigError(
                f"step `{step.name}`: of {count} GPUs, {trainers} would train and the rest serve samples (`vllm_mode: "
                "server`). Give more GPUs (--count), say how many serve (--sampler-gpus), or use `vllm_mode: colocate`."
            )
        return trainers

    def _base(self, step: Step, config: PretrainConfig) -> StepPlan:
        shape = self.shape(str(config.output))
        rows = sum(phase.get("max_steps", 1000) * phase.get("batch_size", 64) for phase in config.phases)
        flops = rows * shape.forward_flops((shape.context or 512) / 4) * 3
        p = float(shape.parameters)
        memory = Memory("update", weights=4 * p, gradients=4 * p, optimiser=8 * p)
        note = "so small that a CPU does it; hours on a GPU would be those of launching kernels, which are not counted"
        return StepPlan(
            step.name,
            step.stage,
            "from nothing",
            1,
            (memory,),
            {"training": flops / self._speed(1)},
            8 * p,
            notes=(note,),
        )

    # -- sampling and scoring --------------------------------------------------------------------------------------

    def _collect(self, step: Step, config: CollectConfig) -> StepPlan:
        options = self.options
        completions = self.rows(config.data) * config.samples
        prompt = options.question_tokens + options.solution_tokens
        return self._generate(step, config, completions, prompt, options.explanation_tokens, config.max_tokens)

    def _evaluate(self, step: Step, config: EvaluateConfig) -> StepPlan:
        names = [config.data] if config.data else config.benchmark
        rows = sum(min(self.rows(_data(name)), config.limit or math.inf) for name in names)
        samples = config.samples or (8 if config.preset == "robust" else 1)
        options = self.options
        cap = config.max_tokens or FIXED.response_limit
        return self._generate(step, config, rows * samples, options.question_tokens, options.response_tokens, cap)

    def _generate(
        self,
        step: Step,
        config: CollectConfig | EvaluateConfig,
        completions: float,
        prompt: float,
        mean: float,
        cap: float,
    ) -> StepPlan:
        shape = self.shape(config.model)
        cap = min(cap, shape.context - 1 if shape.context else cap)
        engine, replicas, memory = self._engine(shape, config, prompt, mean, cap)
        sampler = engine.sampler
        seconds = sampling_seconds(sampler, self.gpu, completions / replicas, prompt, mean, cap, self.options)
        gpus = replicas * sampler.gpus
        at_once = min(sampler.concurrency, completions / replicas)
        written = cut(mean, self.options.length_spread, cap)
        note = (
            f"{completions:,.0f} completions; {replicas} engine(s) of {sampler.gpus} GPU(s), {at_once:,.0f} sequences "
            f"at once, {completions * written / seconds / gpus:,.0f} tokens/s a GPU"
        )
        text = completions * (prompt + 2 * written) * FIXED.text_bytes  # explanation and raw completion
        notes = (note, *self._in_float32([config.model], config)) if config.engine == "transformers" else (note,)
        return StepPlan(
            step.name, step.stage, self._named(config.model), gpus, (memory,), {"sampling": seconds}, text, notes=notes
        )

    def _engine(
        self, shape: Shape, config: CollectConfig | EvaluateConfig, prompt: float, mean: float, cap: float
    ) -> tuple[Engine, int, Memory]:
        """The engine of a collecting or evaluating step, how many of them work, and the memory of one GPU."""
        options, count = self.options, self.options.count
        workers = config.ray_workers if config.ray else 1
        limit = min(prompt + cap, shape.context or math.inf)
        if config.engine == "transformers":
            batch, wide = config.batch_size, self.weight_bytes(config.model, config.dtype)
            memory = Memory(
                "sampling",
                wide * shape.parameters,
                activations=wide / 2 * forward_activations(shape, batch * prompt),
                logits=(4 + wide) * batch * shape.vocab,  # sampled from in float32
                kv_cache=wide / 2 * batch * limit * shape.kv_bytes,
            )
            return Engine(Sampler(shape, 1, batch, batched=True), 0.0, 0.0), min(workers, count), memory
        extra = config.engine_options
        gpus = extra.get("tensor_parallel_size", 1)
        if gpus > count:
            raise ConfigError(f"`engine_options.tensor_parallel_size` {gpus}: give at least that many GPUs (--count).")
        # Servers are taken to hold every GPU; in this process there is one engine, and with Ray one a worker.
        replicas = min(count // gpus, count if config.engine == "openai" else workers)
        at_once = extra.get("max_num_seqs", options.max_num_seqs)
        if config.engine == "openai":
            at_once = min(at_once, max(1, config.max_in_flight // replicas))
        share = extra.get("gpu_memory_utilization", FIXED.vllm_share)
        # With `auto` vLLM computes in 16 bits whatever the checkpoint has.
        wide = 4 if config.dtype == "float32" and config.engine == "vllm" else 2
        engine = self._vllm(shape, gpus, share, extra.get("max_model_len", limit), prompt, mean, at_once, wide)
        return engine, replicas, Memory("sampling", wide * shape.parameters / gpus, kv_cache=engine.kv_cache)

    def _vllm(
        self,
        shape: Shape,
        gpus: int,
        share: float,
        limit: float,
        prompt: float,
        mean: float,
        at_once: float,
        wide: int = 2,
    ) -> Engine:
        """A vLLM engine that may have `share` of each of its `gpus`; it never has less cache than one full sequence."""
        weights, token = wide * shape.parameters / gpus, wide / 2 * shape.kv_bytes / gpus
        least = limit * token
        room = share * self.gpu.memory - weights - self.options.overhead_gib * GIB
        cache = min(max(room, least), at_once * limit * token)
        running = max(1.0, min(at_once, cache / (token * (prompt + mean / 2))))
        return Engine(Sampler(shape, gpus, running), cache, weights + least)

    def _score(self, step: Step, config: ScoreConfig) -> StepPlan:
        options = self.options
        models = [*config.student, *([config.teacher] if config.teacher else [])]
        rows = self.rows(_data(str(config.data)))
        gpus, memory, seconds, host, notes = self._scored(config, models, rows, math.inf)
        times = 3 if config.placebos else 1
        tokens = options.question_tokens + options.solution_tokens + options.explanation_tokens
        return StepPlan(
            step.name,
            step.stage,
            ", ".join(map(self._named, models)),
            gpus,
            (memory,),
            {"scoring": times * seconds},
            rows * FIXED.text_bytes * tokens,
            host=host,
            notes=(f"{rows:,} rows", *notes),
        )

    def _scored(
        self, config: ScoreConfig, names: list[str], rows: float, cap: float
    ) -> tuple[int, Memory, float, float, tuple[str, ...]]:
        """GPUs, memory of one, seconds, bytes of host memory and notes of one pass of each model over `rows` texts."""
        workers = min(config.ray_workers, self.options.count) if config.ray else 1
        models = Students.of(self, names, config.student_placement, config.dtype)
        tokens = config.batch_tokens or FIXED.score_tokens
        wide = models.widest / 2
        memory = Memory(
            "scoring",
            models.in_use,
            activations=wide * max((forward_activations(shape, tokens) for shape in models.shapes), default=0.0),
            logits=wide * max((head_bytes(shape, tokens, False) for shape in models.shapes), default=0.0),
        )
        seconds = self._scoring_seconds(models.names, rows, workers, cap)
        notes = [f"scoring on {workers} GPU(s)", *self._in_float32(models.names, config)]
        if models.served:
            notes.append(f"{models.served} student(s) behind an address, on other machines: not counted")
        return workers, memory, seconds, models.moved * workers, tuple(notes)

    def _scoring_seconds(self, models: Iterable[str], rows: float, n: int, cap: float) -> float:
        """Seconds for one pass of each model over `rows` whole texts on `n` GPUs; explanations end at `cap`."""
        options = self.options
        written = cut(options.explanation_tokens, options.length_spread, cap)
        length = options.question_tokens + options.solution_tokens + written
        shapes = [self.shape(name) for name in models]
        return rows * sum(s.forward_flops(min(length, s.context or length)) for s in shapes) / self._speed(n)

    def _speed(self, n: int) -> float:
        """FLOP/s that `n` GPUs reach in training and scoring."""
        return self.gpu.flops * n * self.options.utilisation

    def _in_float32(self, names: Iterable[str], config: ModelOptions) -> list[str]:
        wide = [self._named(name) for name in names if self.weight_bytes(name, config.dtype) == 4]
        return [
            f"{name} is loaded in float32, and the hours are those of bfloat16: set `dtype: bfloat16`" for name in wide
        ]

    # -- what steps refer to ---------------------------------------------------------------------------------------

    def shape(self, model: str) -> Shape:
        """The shape of a model, or of the model from which the step starts whose output it is."""
        step = self._step_of(model)
        if step is None:
            return _load_shape(model)
        if isinstance(step.config, PretrainConfig):
            from rlt.models.tiny import DEFAULT_SHAPE

            config = {"model_type": "llama", "vocab_size": 100, **DEFAULT_SHAPE, **step.config.model}
            return shape_of(config, f"step `{step.name}`")
        start = getattr(step.config, "model", None)
        if start is None:
            raise ConfigError(f"{model}: the step `{step.name}` makes no model.")
        return self.shape(start)

    def weight_bytes(self, model: str, dtype: str) -> int:
        """Bytes of a weight of a model that is loaded without training it; `auto` is what its checkpoint has."""
        if dtype != "auto":
            return 4 if dtype == "float32" else 2
        step = self._step_of(model)
        if step is None:
            return self.shape(model).weight_bytes
        if isinstance(step.config, WarmupConfig | DistillConfig | TrainConfig | ColdstartConfig):
            launch, n = self._processes(step.config.launch, step)
            return Training.of(step, step.config, self.shape(model), launch, n).saved_bytes
        return 4

    def _named(self, model: str) -> str:
        step = self._step_of(model)
        return model if step is None else f"@{step.name}"

    def rows(self, data: DataConfig) -> int:
        """Rows of a data set: of the step that makes it, counted in its file, or looked up. Raises ConfigError."""
        step = self._step_of(data.path)
        if step is not None:
            found = self._made(step)
        elif Path(data.path).is_file():
            found = sum(1 for _ in read_rows(Path(data.path)))
        elif data.path in FIXED.known_rows:
            found = FIXED.known_rows[data.path]
        elif self.options.rows is not None:
            found = self.options.rows
        else:
            raise ConfigError(f"{data.path}: how many rows it has is not known here; give --rows.")
        return max(1, min(found - data.skip, data.limit or found))

    def _made(self, step: Step) -> int:
        config: Any = step.config
        if isinstance(config, ProblemsConfig):
            return config.count or 1000
        if isinstance(config, CollectConfig):
            return self.rows(config.data) * config.samples
        if isinstance(config, ScoreConfig):
            return self.rows(_data(str(config.data)))
        if isinstance(config, SelectConfig):
            rows = self.rows(config.data)
            one_each = config.keep in ("random", "best")
            return rows // (
                config.bands if config.keep == "bands" else self._samples(config.data.path) if one_each else 1
            )
        raise ConfigError(f"step `{step.name}` makes no rows.")

    def _samples(self, path: str) -> int:
        """Explanations of each problem in the output of a collect step; 1 for other data."""
        step = self._step_of(path)
        return step.config.samples if step is not None and isinstance(step.config, CollectConfig) else 1

    def _step_of(self, path: str) -> Step | None:
        inside = (step for output, step in self.steps.items() if path.startswith(output + "/"))
        return self.steps.get(path) or next(inside, None)


@dataclass(frozen=True)
class Students:
    """Models that score and are loaded here, with the bytes of their weights, and how many are behind an address."""

    names: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = ()
    weights: tuple[float, ...] = ()
    placement: str = "same"
    served: int = 0

    @classmethod
    def of(cls, planner: Planner, names: Iterable[str], placement: str, dtype: str) -> Students:
        listed = tuple(names)
        local = tuple(name for name in listed if not _is_address(name))
        shapes = tuple(planner.shape(name) for name in local)
        weights = tuple(float(planner.weight_bytes(name, dtype) * planner.shape(name).parameters) for name in local)
        return cls(local, shapes, weights, placement, len(listed) - len(local))

    @property
    def widest(self) -> float:
        """Bytes of a weight of the model with the widest ones; 2 where there is none."""
        return max((w / s.parameters for w, s in zip(self.weights, self.shapes, strict=True)), default=2.0)

    @property
    def resident(self) -> float:
        """Bytes on a GPU all the time."""
        return sum(self.weights) if self.placement == "same" else 0.0

    @property
    def in_use(self) -> float:
        """Bytes on a GPU while the reward is computed: all that are there, or have been moved there for it."""
        return sum(self.weights) if self.placement in ("same", "offload") else 0.0

    @property
    def moved(self) -> float:
        """Bytes that wait on the host and go to the GPU for each use, of one process."""
        return sum(self.weights) if self.placement == "offload" else 0.0


def _is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _data(path: str) -> DataConfig:
    return DataConfig.model_validate({"path": path})


@lru_cache
def _load_shape(model: str) -> Shape:
    return load_shape(model)
