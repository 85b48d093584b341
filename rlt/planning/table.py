"""The plan of a whole recipe, and the output of `rlt plan`."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlt.planning.context import Context
from rlt.planning.machine import GB, GIB, Gpu
from rlt.planning.memory import PARTS
from rlt.planning.options import FIXED, PlanConfig
from rlt.planning.step_plan import StepPlan
from rlt.planning.steps import plan_step
from rlt.recipe import Recipe
from rlt.results.tables import text_table


@dataclass(frozen=True)
class Plan:
    """A recipe's steps on a machine, with the assumptions. `str(plan)` is the output of the command."""

    recipe: str
    gpu: Gpu
    options: PlanConfig
    steps: tuple[StepPlan, ...]
    """The steps of one seed, and those shared by all seeds."""
    seeds: int = 1

    @property
    def fits_memory(self) -> bool:
        """Whether every step fits into the GPUs' memory."""
        return all(self.step_fits_memory(step) for step in self.steps)

    def step_fits_memory(self, step: StepPlan) -> bool:
        return step.peak <= self.gpu.memory

    @property
    def hours(self) -> float:
        """Hours of all steps of all seeds, one after another."""
        return self.seeds * sum(step.hours for step in self.steps)

    @property
    def gpu_hours(self) -> float:
        """Hours times all GPUs of the machine: idle GPUs are paid for too."""
        return self.hours * self.options.count

    @property
    def cost(self) -> float | None:
        price = self.options.price_per_hour
        return None if price is None else self.gpu_hours * price

    @property
    def disk(self) -> float:
        """Bytes that all steps of all seeds leave on disk."""
        return self.seeds * sum(step.disk for step in self.steps)

    @property
    def disk_peak(self) -> float:
        """Maximum bytes on disk at a time: those left by earlier steps, plus the peak of the running one."""
        left = (self.seeds - 1) * sum(step.disk for step in self.steps)
        peak = 0.0
        for step in self.steps:
            peak = max(peak, left + max(step.disk, step.disk_peak))
            left += step.disk
        return peak

    def host_of_node(self, step: StepPlan) -> float:
        """Bytes of host memory that a step needs per machine."""
        return step.host / max(1, math.ceil(step.gpus / FIXED.gpus_per_node))

    def __str__(self) -> str:
        return self.text(self.options.assumptions)

    def text(self, assumptions: bool = False) -> str:
        """The result in at most 30 lines of 100 columns; with `assumptions` also every step, part and assumption."""
        parts = [self._head(), self._steps_table(None if assumptions else 14), self._remarks()]
        if assumptions:
            parts += ["Memory of one GPU, in GiB, at each moment of a step", self._memory_table()]
            parts += [_section("Hours by part", self._hours()), _section("What was planned", self._notes())]
            parts.append(_section("Assumptions", self._assumptions()))
        return "\n\n".join(parts)

    def _head(self) -> str:
        gpu = self.gpu
        return (
            f"{_shortened(self.recipe, 60)}, planned from shapes; nothing was run\n"
            f"on {self.options.count} x {gpu.name} ({gpu.memory / GIB:.1f} GiB, {gpu.flops / 1e12:.0f} TFLOP/s bf16, "
            f"{gpu.bandwidth / 1e12:.2f} TB/s each)"
        )

    # -- the steps -------------------------------------------------------------------------------------------------

    def _steps_table(self, most: int | None) -> str:
        """One row per step on GPUs. Beyond `most` rows, the shortest steps that fit share one row."""
        working = [step for step in self.steps if step.gpus]
        shown, rest = _shortest_apart(working, most, self.step_fits_memory)
        head = ["step", "model", "GPUs", "GiB/GPU", "fits", "hours", "GPU-hours", "cost", "disk GB", "peak GB"]
        rows = [self._row(step.name, _models(step), [step]) for step in shown]
        if rest:
            rows.append(self._row(f"{len(rest)} shorter steps", "", rest))
        rows.append(
            ["all" if self.seeds == 1 else f"all, {self.seeds} seeds", "", "", "", "yes" if self.fits_memory else "NO",
             _short(self.hours), _short(self.gpu_hours), _short(self.cost or 0), _short(self.disk / GB),
             _short(self.disk_peak / GB)]
        )  # fmt: skip
        if self.cost is None:
            head, rows = head[:7] + head[8:], [row[:7] + row[8:] for row in rows]
        return text_table(head, _narrowed(head, rows), numbers_from=2)

    def _row(self, name: str, model: str, steps: Sequence[StepPlan]) -> list[str]:
        hours, price = sum(step.hours for step in steps), self.options.price_per_hour
        gpu_hours = hours * self.options.count
        return [
            name,
            model,
            str(max(step.gpus for step in steps)),
            f"{max(step.peak for step in steps) / GIB:.1f}",
            "yes" if all(map(self.step_fits_memory, steps)) else "NO",
            _short(hours),
            _short(gpu_hours),
            _short(gpu_hours * (price or 0)),
            _short(sum(step.disk for step in steps) / GB),
            _short(max(max(step.disk, step.disk_peak) for step in steps) / GB),
        ]

    def _remarks(self) -> str:
        """The meaning of the columns, host memory and warnings, in at most 11 lines."""
        seeds = "" if self.seeds == 1 else f" Rows are for one seed; the last row is for all {self.seeds} seeds."
        paid = "GPU-hours" if self.cost is None else "GPU-hours and cost"
        lines = _wrapped(
            f"GiB/GPU: the fullest GPU at its fullest moment. {paid}: all {self.options.count} GPUs for the whole step. "
            f"disk GB: left by the step; peak GB: maximum on disk while it runs.{seeds}"
        )
        hosts = [f"{step.name} {self.host_of_node(step) / GIB:,.0f} GiB" for step in self.steps if step.host]
        if hosts:
            lines += _at_most(2, _wrapped(f"Host memory per node: {', '.join(hosts)}."))
        named: defaultdict[str, list[str]] = defaultdict(list)
        for step in self.steps:
            for warning in step.warnings:
                named[warning].append(step.name)
        warnings = [f"Warning: {warning} ({_shortened(', '.join(names), 40)})" for warning, names in named.items()]
        lines += _at_most(3, [line for warning in warnings for line in _wrapped(warning)])
        if not self.options.assumptions:
            lines += _wrapped(
                f"Hours depend most on the length of explanations ({self.options.explanation_tokens:,} tokens, "
                f"--explanation-tokens) and on --utilisation {self.options.utilisation}. "
                "Add --assumptions for memory by part, hours by part and all assumptions."
            )
        return "\n".join(lines)

    # -- with --assumptions ----------------------------------------------------------------------------------------

    def _memory_table(self) -> str:
        short = {"gradients": "grads", "optimiser": "optim", "activations": "activ", "kv_cache": "KV", "other_models":
                 "others"}  # fmt: skip
        rows = [
            [_shortened(step.name, 20), memory.moment, *(f"{getattr(memory, part) / GIB:.1f}" for part in PARTS),
             f"{memory.total / GIB:.1f}"]
            for step in self.steps for memory in step.moments
        ]  # fmt: skip
        table = text_table(["step", "moment", *(short.get(part, part) for part in PARTS), "total"], rows, 2)
        columns = (
            "grads: gradients; optim: optimiser; activ: activations; KV: KV cache; others: reference and students; "
            "overhead: CUDA, libraries and fragmentation."
        )
        return "\n".join([table, *_wrapped(columns)])

    def _hours(self) -> list[str]:
        return [
            f"{step.name}: " + ", ".join(f"{part} {_short(s / 3600)}" for part, s in step.seconds.items() if s)
            for step in self.steps
            if any(step.seconds.values())
        ]

    def _notes(self) -> list[str]:
        return [f"{step.name}: {note}" for step in self.steps for note in (*step.notes, *step.warnings)]

    def _assumptions(self) -> list[str]:
        lines = []
        for options in (self.options, FIXED):
            for name, info in type(options).model_fields.items():
                value = getattr(options, name)
                if name not in ("gpu", "count", "price_per_hour", "assumptions") and value is not None:
                    meaning = " ".join((info.description or "").split())
                    lines.append(f"{name.replace('_', '-')} {_shown(value)}: {meaning}")
        return [*lines, *SIMPLIFIED]


SIMPLIFIED = (
    "GPU-hours and cost count every GPU of the machine for the whole duration of a step.",
    "Training: per parameter and token 2 FLOPs forward, 4 backward (LoRA 2), 2 to recompute; plus causal attention.",
    "Scoring batches texts by length, so padding is negligible.",
    "Lengths are log-normal. Memory is planned for the longest texts that the recipe allows.",
    "Attention is fused (no length x length matrix); the output layer holds one tile of logits (TRL's fused head).",
    "The KV cache of a vLLM inside the trainer is its whole share of the GPU, weights included.",
    "Not counted: loading models, weight syncs to samplers, writing checkpoints, evaluation during training, slow links.",
    "Disk: final models, kept checkpoints, rows. A new checkpoint is written before the oldest is deleted. Downloads of "
    "base models (2 bytes per parameter) are extra.",
    "Host memory: offloaded state, and one copy of offloaded students per process. Python and libraries are extra.",
    "A checkpoint whose config.json names no type is assumed to be bfloat16.",
)


def plan(recipe: Recipe, options: PlanConfig, name: str | None = None) -> Plan:
    """The plan of a recipe. All seeds do the same work: one is planned, and multiplied by their number.

    Raises ConfigError and ModelError, naming step and key, for an unknown GPU, model, launch configuration or dataset.
    """
    context = Context.of(recipe, options)
    first = recipe.head.seeds[0]
    steps = tuple(plan_step(context, step) for step in recipe.steps if step.seed in (first, None))
    return Plan(name or recipe.head.name, context.gpu, options, steps, len(recipe.head.seeds))


# -- text --------------------------------------------------------------------------------------------------------------


def _shortest_apart(
    steps: Sequence[StepPlan], most: int | None, keep: Callable[[StepPlan], bool]
) -> tuple[list[StepPlan], list[StepPlan]]:
    """The steps to show, at most `most` rows in the recipe's order, and the shortest ones to combine into one row."""
    if most is None or len(steps) <= most:
        return list(steps), []
    ranked = sorted(steps, key=lambda step: (keep(step), -step.hours))  # steps that do not fit are hidden last
    shown = {step.name for step in ranked[: most - 1]}
    return [step for step in steps if step.name in shown], [step for step in steps if step.name not in shown]


def _models(step: StepPlan) -> str:
    """The step's models without their organization."""
    return ", ".join(name.rsplit("/", 1)[-1] for name in step.model.split(", "))


def _narrowed(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The rows with models, then names of steps, shortened until the table is at most 100 columns wide."""
    narrowed = [list(row) for row in rows]
    for column, least in ((1, 10), (0, 12)):
        widths = [max(len(row[i]) for row in [head, *narrowed]) for i in range(len(head))]
        room = widths[column] - max(0, sum(widths) + 2 * (len(widths) - 1) - 100)
        for row in narrowed:
            row[column] = _shortened(row[column], max(least, room))
    return narrowed


def _section(title: str, lines: Sequence[str]) -> str:
    wrapped = [textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
               for line in lines]  # fmt: skip
    return "\n".join([title, *wrapped])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, break_on_hyphens=False)


def _at_most(count: int, lines: list[str]) -> list[str]:
    """The first `count` lines; if some are omitted, the last line says so."""
    return lines if len(lines) <= count else [*lines[: count - 1], "... more with --assumptions"]


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(number)}" for name, number in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _short(number: float) -> str:
    return (
        "0"
        if number == 0
        else "<0.01"
        if number < 0.01
        else f"{number:,.{2 if number < 10 else 1 if number < 100 else 0}f}"
    )
