"""Plans of scoring: the models that score explanations, and the stage score."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rlt.config import ScoreConfig, is_url
from rlt.planning.context import Context
from rlt.planning.memory import Memory, forward_activations, head_bytes
from rlt.planning.options import FIXED
from rlt.planning.shapes import Shape
from rlt.planning.step_plan import StepPlan
from rlt.planning.throughput import cut
from rlt.recipe import Step


@dataclass(frozen=True)
class Scorers:
    """Models loaded for scoring, the bytes of their weights, and the number of models served elsewhere."""

    names: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = ()
    weights: tuple[float, ...] = ()
    placement: str = "same"
    served: int = 0

    @classmethod
    def of(cls, context: Context, names: Iterable[str], placement: str, dtype: str) -> Scorers:
        """The models `names`; served ones are only counted."""
        listed = tuple(names)
        local = tuple(name for name in listed if not is_url(name))
        shapes = tuple(context.shape(name) for name in local)
        weights = tuple(float(context.weight_bytes(name, dtype) * context.shape(name).parameters) for name in local)
        return cls(local, shapes, weights, placement, len(listed) - len(local))

    @property
    def widest(self) -> float:
        """Bytes per weight of the model with the widest weights; 2 without a model."""
        return max((w / s.parameters for w, s in zip(self.weights, self.shapes, strict=True)), default=2.0)

    @property
    def resident(self) -> float:
        """Bytes on a GPU at all times."""
        return sum(self.weights) if self.placement == "same" else 0.0

    @property
    def in_use(self) -> float:
        """Bytes on a GPU during scoring: models that stay there or are moved there for it."""
        return sum(self.weights) if self.placement in ("same", "offload") else 0.0

    @property
    def moved(self) -> float:
        """Bytes that a process keeps on the host and moves to the GPU for each use."""
        return sum(self.weights) if self.placement == "offload" else 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        return (f"not counted: {self.served} student(s) served from other machines",) if self.served else ()


def scoring_seconds(context: Context, models: Iterable[str], rows: float, n: int, cap: float) -> float:
    """Seconds for one pass of each model over `rows` texts on `n` GPUs; explanations end at `cap` tokens."""
    options = context.options
    written = cut(options.explanation_tokens, options.length_spread, cap)
    length = options.question_tokens + options.solution_tokens + written
    shapes = [context.shape(name) for name in models]
    return rows * sum(s.forward_flops(min(length, s.context or length)) for s in shapes) / context.speed(n)


def plan_score(context: Context, step: Step, config: ScoreConfig) -> StepPlan:
    """The plan of a score step: every model reads every row, with placebos three times."""
    options = context.options
    names = [*config.student, *([config.teacher] if config.teacher else [])]
    rows = context.rows_at(str(config.data))
    workers = min(config.ray_workers, options.count) if config.ray else 1
    models = Scorers.of(context, names, config.student_placement, config.dtype)
    times = 3 if config.placebos else 1
    seconds = scoring_seconds(context, models.names, rows, workers, math.inf)
    return StepPlan(
        step.name,
        step.stage,
        ", ".join(map(context.name_of, names)),
        workers,
        moments=(_scoring_memory(models, config.batch_tokens or FIXED.score_tokens),),
        seconds={"scoring": times * seconds},
        disk=rows * FIXED.text_bytes * (options.question_tokens + options.solution_tokens + options.explanation_tokens),
        host=models.moved * workers,
        notes=(f"{rows:,} rows", f"scoring on {workers} GPU(s)"),
        warnings=(*context.float32_warnings(models.names, config.dtype), *models.warnings),
    )


def _scoring_memory(models: Scorers, tokens: int) -> Memory:
    wide = models.widest / 2
    return Memory(
        "scoring",
        models.in_use,
        activations=wide * max((forward_activations(shape, tokens) for shape in models.shapes), default=0.0),
        logits=wide * max((head_bytes(shape, tokens, False) for shape in models.shapes), default=0.0),
    )
