"""The plan of one step, by stage."""

from __future__ import annotations

from dataclasses import replace

from rlt.config import (
    ColdstartConfig,
    CollectConfig,
    DistillConfig,
    EvaluateConfig,
    PretrainConfig,
    ScoreConfig,
    TrainConfig,
    WarmupConfig,
)
from rlt.planning.context import Context
from rlt.planning.generation import plan_collect, plan_evaluate
from rlt.planning.memory import with_overhead
from rlt.planning.reinforcement import plan_reinforcement
from rlt.planning.scoring import plan_score
from rlt.planning.step_plan import StepPlan
from rlt.planning.supervised import plan_pretraining, plan_supervised
from rlt.recipe import Step


def plan_step(context: Context, step: Step) -> StepPlan:
    """The plan of one step, overhead included. Raises ConfigError or ModelError for what cannot be planned."""
    planned = _plan_on_gpu(context, step)
    if planned is None:
        return StepPlan(step.name, step.stage, notes=("runs on the CPU",))
    return replace(planned, moments=tuple(with_overhead(moment, context.options) for moment in planned.moments))


def _plan_on_gpu(context: Context, step: Step) -> StepPlan | None:
    match step.config:
        case PretrainConfig() as config:
            return plan_pretraining(context, step, config)
        case WarmupConfig() | DistillConfig() as config:
            return plan_supervised(context, step, config)
        case TrainConfig() | ColdstartConfig() as config:
            return plan_reinforcement(context, step, config)
        case CollectConfig() as config:
            return plan_collect(context, step, config)
        case EvaluateConfig() as config:
            return plan_evaluate(context, step, config)
        case ScoreConfig() as config:
            return plan_score(context, step, config)
    return None
