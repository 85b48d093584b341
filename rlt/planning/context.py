"""A recipe on a machine: models, rows and processes of its steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rlt.config import (
    AnyData,
    BestConfig,
    ColdstartConfig,
    CollectConfig,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    PretrainConfig,
    ProblemsConfig,
    ScoreConfig,
    SelectConfig,
    TrainConfig,
    WarmupConfig,
)
from rlt.data.rows import read_rows
from rlt.errors import ConfigError
from rlt.planning.machine import Gpu, Launch, load_gpu, load_launch
from rlt.planning.options import FIXED, PlanConfig
from rlt.planning.shapes import Shape, load_shape, shape_of
from rlt.planning.training_setup import TrainingSetup
from rlt.recipe import Recipe, Step


@dataclass(frozen=True)
class Context:
    """The machine, and the recipe's steps by output folder. Paths of outputs resolve to the steps that make them."""

    gpu: Gpu
    options: PlanConfig
    steps: Mapping[str, Step]

    @classmethod
    def of(cls, recipe: Recipe, options: PlanConfig) -> Context:
        """The context of a recipe. Raises ConfigError for an unknown GPU."""
        return cls(load_gpu(options.gpu), options, {str(step.config.output): step for step in recipe.steps})

    def speed(self, n: int) -> float:
        """FLOP/s of `n` GPUs in training and scoring."""
        return self.gpu.flops * n * self.options.utilisation

    def processes(self, launch: str | None, step: Step) -> tuple[Launch, int]:
        """The launch configuration and its number of processes. Raises ConfigError if it needs too many GPUs."""
        placement = load_launch(launch)
        n = placement.processes or self.options.count
        if n > self.options.count:
            raise ConfigError(
                f"step `{step.name}`: `launch` starts {n} processes, one per GPU; plan with --count {n} or more."
            )
        return placement, n

    def step_of(self, path: str) -> Step | None:
        """The step that writes `path`, or None. `best` copies a model: the step of the first one it may copy."""
        inside = (step for output, step in self.steps.items() if path.startswith(output + "/"))
        found = self.steps.get(path) or next(inside, None)
        if found is not None and isinstance(found.config, BestConfig):
            return self.step_of(str(found.config.models[0]))
        return found

    def name_of(self, model: str) -> str:
        """`@step` for the output of a step, else the model as given."""
        step = self.step_of(model)
        return model if step is None else f"@{step.name}"

    # -- models ----------------------------------------------------------------------------------------------------

    def shape(self, model: str) -> Shape:
        """The shape of a model; for the output of a step, that of the model it starts from."""
        step = self.step_of(model)
        if step is None:
            return _load_shape(model)
        if isinstance(step.config, PretrainConfig):
            from rlt.models.tiny import DEFAULT_SHAPE

            config = {"model_type": "llama", "vocab_size": 100, **DEFAULT_SHAPE, **step.config.model}
            return shape_of(config, f"step `{step.name}`")
        start = getattr(step.config, "model", None)
        if start is None:
            raise ConfigError(f"{model}: step `{step.name}` does not make a model.")
        return self.shape(start)

    def weight_bytes(self, model: str, dtype: str) -> int:
        """Bytes per weight of a model that is not trained; `auto` is the checkpoint's type."""
        if dtype != "auto":
            return 4 if dtype == "float32" else 2
        step = self.step_of(model)
        if step is None:
            return self.shape(model).weight_bytes
        if isinstance(step.config, WarmupConfig | DistillConfig | TrainConfig | ColdstartConfig):
            launch, n = self.processes(step.config.launch, step)
            return TrainingSetup.of(step, step.config, self.shape(model), launch, n).saved_bytes
        return 4

    def float32_warnings(self, models: Iterable[str], dtype: str) -> list[str]:
        """A warning for each model that would be loaded in float32."""
        return [
            f"{self.name_of(model)} is loaded in float32, but hours assume bfloat16: set `dtype: bfloat16`"
            for model in models
            if self.weight_bytes(model, dtype) == 4
        ]

    # -- rows ------------------------------------------------------------------------------------------------------

    def rows(self, data: AnyData) -> int:
        """Number of rows: of the step that makes them, of the file, or known. Raises ConfigError."""
        return sum(self._rows_of(source) for source in data.sources)

    def _rows_of(self, data: DataConfig) -> int:
        step = self.step_of(data.path)
        if step is not None:
            found = self._rows_made(step)
        elif Path(data.path).is_file():
            found = sum(1 for _ in read_rows(Path(data.path)))
        elif data.path in FIXED.known_rows:
            found = FIXED.known_rows[data.path]
        elif self.options.rows is not None:
            found = self.options.rows
        else:
            raise ConfigError(f"{data.path}: unknown number of rows; set --rows.")
        return max(1, min(found - data.skip, data.limit or found))

    def rows_at(self, path: str) -> int:
        """Rows of all data at `path`."""
        return self.rows(DataConfig.model_validate({"path": path}))

    def _rows_made(self, step: Step) -> int:
        config = step.config
        if isinstance(config, ProblemsConfig):
            return config.count or _limit(config.data) or 1000
        if isinstance(config, CollectConfig):
            return self.rows(config.data) * config.samples
        if isinstance(config, EvaluateConfig):
            return (config.limit or self.rows_at(config.benchmark[0])) * (config.samples or 1)
        if isinstance(config, ScoreConfig):
            return self.rows_at(str(config.data))
        if isinstance(config, SelectConfig):
            rows = self.rows(config.data)
            if config.keep == "bands":
                return rows // config.bands
            if config.keep not in ("random", "best", "correct"):
                return rows
            return sum(self._rows_of(source) // self._samples(source.path) for source in config.data.sources)
        raise ConfigError(f"step `{step.name}` does not make rows.")

    def _samples(self, path: str) -> int:
        """Rows per problem in the output of a collect or evaluate step; 1 for other data."""
        step = self.step_of(path)
        samples = step.config.samples if step and isinstance(step.config, CollectConfig | EvaluateConfig) else None
        return samples or 1


def _limit(data: AnyData | None) -> int:
    """The data's limit of rows; 0 without one."""
    return sum(source.limit or 0 for source in data.sources) if data is not None else 0


@lru_cache
def _load_shape(model: str) -> Shape:
    return load_shape(model)
