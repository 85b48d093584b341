"""Rules of GRPO's options: whole groups per generation, checkpoints between generations, who can sample. No torch."""

from __future__ import annotations

import math

from rlt.types import JsonMap

# TRL's and transformers' defaults of the options that the rules are about.
_DEFAULTS: dict[str, float] = {
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_generations": 8, "num_iterations": 1,
    "save_steps": 500, "max_steps": -1,
}  # fmt: skip
_COUNTED = (*_DEFAULTS, "generation_batch_size", "steps_per_generation")


def batch_problems(options: JsonMap, processes: int) -> list[str]:
    """Conflicts of these `trainer` options with TRL or with resuming, on this many processes, one line each.

    `options`: the recipe's over the stage's defaults. Options of the wrong type are reported by the type check.
    """
    given = {key: value for key, value in options.items() if value is not None and key in _COUNTED}
    values = _DEFAULTS | {key: value for key, value in given.items() if isinstance(value, int | float)}
    if not all(isinstance(value, int | float) for value in given.values()):
        return []
    group, rows = values["num_generations"], values["per_device_train_batch_size"] * processes
    if group < 2:
        return [f"`trainer.num_generations` {group}: advantages need at least 2 explanations per question."]
    steps, batch = values.get("steps_per_generation"), values.get("generation_batch_size")
    if steps is not None and batch is not None:
        return ["`trainer.generation_batch_size` and `trainer.steps_per_generation` exclude each other. Leave one out."]
    each = f"{values['per_device_train_batch_size']} rows x {processes} process{'es' * (processes > 1)}"
    if batch is not None and batch % rows:
        return [f"`trainer.generation_batch_size` {batch} must be a multiple of {rows} ({each})."]
    steps = steps or (batch // rows if batch else values["gradient_accumulation_steps"])
    lines = []
    if rows * steps % group:
        lines.append(
            f"`trainer.num_generations` {group} must divide the {rows * steps} completions of a generation ({each} x {steps} "
            "steps per generation)."
        )
    cycle = steps * values["num_iterations"] / values["gradient_accumulation_steps"]
    strategy = "steps" if options.get("save_strategy") is None else str(options["save_strategy"])
    saving = save_problem(strategy, values["save_steps"], values["max_steps"], cycle)
    return lines + ([saving] if saving else [])


def save_problem(strategy: str, every: float, max_steps: float, cycle: float) -> str | None:
    """Why GRPO would save a checkpoint between the steps of one generation, or None.

    Completions are generated for `cycle` steps at once and are not part of a checkpoint. `every`: `save_steps`; below 1, a
    share of all steps.
    """
    if strategy == "no" or cycle <= 1:
        return None
    wanted = (
        f"a multiple of {cycle:g} (steps per generation); otherwise a resumed run would not match an uninterrupted one"
    )
    if strategy != "steps":
        return (
            f"`trainer.save_strategy` {strategy} may save between the steps of one generation. Set it to steps, and "
            f"`trainer.save_steps` to {wanted}."
        )
    steps = every if every >= 1 else math.ceil(max_steps * every) if max_steps > 0 else math.nan
    return f"`trainer.save_steps` {every:g} must be {wanted}." if steps % cycle != 0 else None


# What `generate` can and the engine cannot, with the values that turn it off.
_OFF: dict[str, tuple[object, ...]] = {
    "min_p": (None, 0.0), "repetition_penalty": (None, 1.0), "generation_kwargs": (None, {}),
    "cache_implementation": (None,),
}  # fmt: skip


def sampler_problem(options: JsonMap) -> str | None:
    """Why `sampler: engine` cannot sample under these `trainer` options, or None."""
    for name in ("use_vllm", "use_transformers_continuous_batching"):
        if options.get(name):
            return f"`sampler: engine` and `trainer.{name}` exclude each other. Leave one out."
    for name, off in _OFF.items():
        if options.get(name) not in off:
            value = options[name]
            return f"`sampler: engine` cannot do `trainer.{name}: {value}`. Leave it out, or set `sampler: auto`."
    return None
