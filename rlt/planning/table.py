"""The plan of a whole recipe, and the tables that the command prints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rlt.planning.machine import GB, GIB, Gpu
from rlt.planning.memory import PARTS
from rlt.planning.options import FIXED, PlanConfig
from rlt.planning.steps import Planner, StepPlan
from rlt.recipe import Recipe
from rlt.results.tables import text_table


@dataclass(frozen=True)
class Plan:
    """A recipe's steps on a machine, with what was assumed. `str(plan)` is what the command prints."""

    recipe: str
    gpu: Gpu
    options: PlanConfig
    steps: tuple[StepPlan, ...]
    seeds: int = 1

    @property
    def fits(self) -> bool:
        """Whether every step fits the GPUs' memory."""
        return all(self.fits_step(step) for step in self.steps)

    def fits_step(self, step: StepPlan) -> bool:
        return step.peak <= self.gpu.memory

    @property
    def hours(self) -> float:
        """Hours of all steps of all seeds, one after another."""
        return self.seeds * sum(step.hours for step in self.steps)

    @property
    def gpu_hours(self) -> float:
        """Hours times all GPUs of the machine: those that a step leaves idle are held, and paid, too."""
        return self.hours * self.options.count

    @property
    def cost(self) -> float | None:
        price = self.options.price_per_hour
        return None if price is None else self.gpu_hours * price

    @property
    def disk(self) -> float:
        """Bytes that all steps of all seeds leave."""
        return self.seeds * sum(step.disk for step in self.steps)

    @property
    def disk_peak(self) -> float:
        """Bytes that there are at most: what the steps before left, and the peak of the one that runs."""
        left = (self.seeds - 1) * sum(step.disk for step in self.steps)
        peak = 0.0
        for step in self.steps:
            peak = max(peak, left + max(step.disk, step.disk_peak))
            left += step.disk
        return peak

    def host_of_node(self, step: StepPlan) -> float:
        """Bytes of host memory that a step needs on each machine."""
        return step.host / max(1, math.ceil(step.gpus / FIXED.gpus_a_node))

    def text(self) -> str:
        """Three tables (steps, memory, hours) and every assumption."""
        gpu, count = self.gpu, self.options.count
        head = (
            f"{self.recipe} on {count} x {gpu.name} ({gpu.memory / GIB:.1f} GiB, {gpu.flops / 1e12:.0f} TFLOP/s bf16, "
            f"{gpu.bandwidth / 1e12:.2f} TB/s each). Planned from shapes; nothing was run."
        )
        parts = [head, self._steps_table(), "Memory of one GPU in GiB, at each moment of a step", self._memory_table()]
        parts += ["Where the hours go", self._hours_lines()]
        notes = [f"  {step.name}: {note}" for step in self.steps for note in step.notes]
        hosts = [
            f"  {step.name}: {self.host_of_node(step) / GIB:,.0f} GiB of host memory on each node"
            for step in self.steps
            if step.host
        ]
        parts += ["Notes", "\n".join(notes + hosts), "Assumptions", self._assumptions()]
        return "\n\n".join(parts)

    __str__ = text

    def _steps_table(self) -> str:
        count, price = self.options.count, self.options.price_per_hour
        rows = [["step", "stage", "model", "GPUs", "GiB a GPU", "fits", "hours", "GPU-hours", "cost", "disk GB",
                 "at most"]]  # fmt: skip
        for step in self.steps:
            if not step.gpus:
                rows.append([step.name, step.stage, "", "0", "-", "yes", "-", "-", "-", "-", "-"])
                continue
            cost = "-" if price is None else f"{step.hours * count * price:,.2f}"
            fits = "yes" if self.fits_step(step) else "NO"
            rows.append(
                [step.name, step.stage, step.model, str(step.gpus), f"{step.peak / GIB:.1f}", fits, _short(step.hours),
                 _short(step.hours * count), cost, _short(step.disk / GB),
                 _short(max(step.disk, step.disk_peak) / GB)]
            )  # fmt: skip
        cost = "-" if self.cost is None else f"{self.cost:,.2f}"
        name = "all" if self.seeds == 1 else f"all, {self.seeds} seeds"
        fits = "yes" if self.fits else "NO"
        rows.append(
            [name, "", "", "", "", fits, _short(self.hours), _short(self.gpu_hours), cost, _short(self.disk / GB),
             _short(self.disk_peak / GB)]
        )  # fmt: skip
        return text_table(rows[0], rows[1:], numbers_from=3)

    def _memory_table(self) -> str:
        names = [part.replace("kv_cache", "KV cache").replace("_", " ") for part in PARTS]
        rows = [["step", "moment", *names, "in all"]]
        for step in self.steps:
            for memory in step.moments:
                numbers = [f"{getattr(memory, part) / GIB:.1f}" for part in PARTS]
                rows.append([step.name, memory.moment, *numbers, f"{memory.total / GIB:.1f}"])
        return text_table(rows[0], rows[1:], numbers_from=2)

    def _hours_lines(self) -> str:
        lines = []
        for step in self.steps:
            shown = {part: seconds for part, seconds in step.seconds.items() if seconds}
            if shown:
                lines.append(
                    f"  {step.name}: " + ", ".join(f"{part} {_short(s / 3600)} h" for part, s in shown.items())
                )
        return "\n".join(lines)

    def _assumptions(self) -> str:
        lines = []
        for options in (self.options, FIXED):
            for name, info in type(options).model_fields.items():
                value = getattr(options, name)
                if name not in ("gpu", "count", "price_per_hour") and value is not None:
                    meaning = " ".join((info.description or "").split())
                    lines.append(f"  {name.replace('_', '-')} {_shown(value)}: {meaning}")
        return "\n".join([*lines, *(f"  {line}" for line in SIMPLIFIED)])


SIMPLIFIED = (
    "GPU-hours and cost count every GPU of the machine for as long as a step takes.",
    "Training: 2 FLOPs a parameter and token forward, 4 backward (LoRA 2), 2 to recompute, and causal attention.",
    "Scoring batches texts by length, so it pads next to nothing.",
    "Lengths are log-normal. Memory is planned for texts of the greatest length that the recipe allows.",
    "Attention is fused (no length x length matrix); the output layer holds one tile of logits (TRL's fused head).",
    "`KV cache` of a vLLM inside the trainer is its whole share of the GPU, its copy of the weights included.",
    "Not counted: loading models, weight syncs to samplers, writing checkpoints, evaluations in training, slow links.",
    "Disk: final models, the checkpoints that stay, rows; `at most` while a step runs: a checkpoint is written before the "
    "oldest goes. Downloads of base models (2 bytes a parameter) come on top.",
    "Host memory: what is offloaded, of every process its own copy of the students. Python and libraries come on top.",
    "A checkpoint whose config.json names no type is taken to be bfloat16.",
)


def plan(recipe: Recipe, options: PlanConfig, name: str | None = None) -> Plan:
    """The plan of a recipe. Every seed does the same work, so one is planned and counted as often as there are seeds.

    Raises ConfigError and ModelError, naming step and key, for a GPU, model, launch configuration or data set that is
    unknown here.
    """
    planner = Planner(recipe, options)
    first = recipe.head.seeds[0]
    steps = tuple(planner.plan(step) for step in recipe.steps if step.seed in (first, None))
    return Plan(name or recipe.head.name, planner.gpu, options, steps, len(recipe.head.seeds))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(number)}" for name, number in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _short(number: float) -> str:
    return "0" if number == 0 else "<0.01" if number < 0.01 else f"{number:,.2f}" if number < 10 else f"{number:,.1f}"
