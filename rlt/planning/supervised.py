"""Plans of supervised training: pretraining, warm-up, distillation."""

from __future__ import annotations

import math
from typing import cast

from rlt.config import DistillConfig, PretrainConfig, WarmupConfig
from rlt.planning.context import Context
from rlt.planning.memory import Memory
from rlt.planning.step_plan import StepPlan
from rlt.planning.throughput import longest, up_to_cap
from rlt.planning.training_setup import TrainingSetup
from rlt.recipe import Step


def plan_supervised(context: Context, step: Step, config: WarmupConfig | DistillConfig) -> StepPlan:
    """The plan of warm-up or distillation. Rows longer than `max_length` are dropped, never truncated."""
    options, shape = context.options, context.shape(config.model)
    setup = TrainingSetup.of(step, config, shape, *context.processes(config.launch, step))
    cap = config.max_length or shape.context or math.inf
    written = options.trace_tokens if context.step_of(config.data.path) is None else options.explanation_tokens
    length = options.question_tokens + options.solution_tokens + written
    share, mean = up_to_cap(length, options.length_spread, cap)
    rows = max(1, round(share * context.rows(config.data)))
    examples = _examples(setup, config, rows, written)
    steps = max(1, math.ceil(examples / setup.rows_per_step))
    padded = max(mean, longest(length, setup.batch, options.length_spread, cap)) if setup.batch > 1 else mean
    flops = examples * shape.forward_flops(padded) * setup.passes
    disk, disk_peak = setup.disk(steps)
    return StepPlan(
        step.name,
        step.stage,
        context.name_of(config.model),
        setup.n,
        moments=(setup.update(setup.batch * longest(length, rows, options.length_spread, cap)),),
        seconds={
            "training": flops / context.speed(setup.n),
            "offload": setup.offload_seconds(steps, options),
        },
        disk=disk,
        disk_peak=disk_peak,
        host=setup.host_bytes,
        notes=(f"{rows:,} rows, {steps:,} steps of {setup.rows_per_step} rows",),
        warnings=setup.warnings,
    )


def _examples(setup: TrainingSetup, config: WarmupConfig | DistillConfig, rows: int, written: int) -> float:
    """Rows read in all epochs, as limited by `max_steps` or the token budget."""
    epochs = setup.get("num_train_epochs", 3.0)
    if setup.get("max_steps", -1) > 0:
        return setup.get("max_steps", -1) * setup.rows_per_step
    if isinstance(config, DistillConfig) and isinstance(config.token_budget, int):
        return min(rows * epochs, epochs * config.token_budget / written)
    return rows * epochs


def plan_pretraining(context: Context, step: Step, config: PretrainConfig) -> StepPlan:
    """The plan of a tiny model's pretraining, in float32 with Adam."""
    shape = context.shape(str(config.output))
    rows = sum(cast(int, p.get("max_steps", 1000)) * cast(int, p.get("batch_size", 64)) for p in config.phases)
    flops = rows * shape.forward_flops((shape.context or 512) / 4) * 3
    p = float(shape.parameters)
    return StepPlan(
        step.name,
        step.stage,
        "from scratch",
        1,
        moments=(Memory("update", weights=4 * p, gradients=4 * p, optimiser=8 * p),),
        seconds={"training": flops / context.speed(1)},
        disk=8 * p,
        notes=("small enough for a CPU; on a GPU, kernel launches would dominate and are not counted",),
    )
