"""Reports over several arms: a sweep of one setting, and the RL steps until a level is reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rlt.config import ReachesConfig, ReportConfig
from rlt.data.rows import read_rows
from rlt.outputs import complete_state
from rlt.recipe import Recipe
from rlt.results.benchmarks import evaluation
from rlt.results.rounds import Round, figure, measured
from rlt.types import JsonMap, JsonRow

WINDOW = 5  # logged steps whose mean must reach the level: a single batch of questions may be easy


@dataclass(frozen=True, slots=True)
class Sweep:
    """Measures of every seed at every value of one setting; the number of a point is the index of its value."""

    setting: str
    values: tuple[float | str, ...]
    points: tuple[Round, ...]

    def to_json(self) -> JsonRow:
        """The content in results.json."""
        rows = [{"seed": one.seed, self.setting: self.values[one.number], **one.measures} for one in self.points]
        return {"setting": self.setting, "rows": rows}

    def write_figure(self, path: Path) -> Path:
        """Writes an SVG with one panel per measure over the values; returns its path."""
        path.write_text(figure(self.points, [labelled(value) for value in self.values]), encoding="utf-8")
        return path


def labelled(value: float | str) -> str:
    """A value as shown in tables and in the figure."""
    return value if isinstance(value, str) else f"{value:g}"


def sweep_of(report: ReportConfig, recipe: Recipe, seeds: Sequence[int]) -> Sweep | None:
    """The complete points of the report's sweep; None without any.

    A point has the solve rate of the arm's student, and `rounds.measured` of its teacher's explanations.
    """
    config = report.sweep
    if config is None:
        return None
    outputs = {(step.seed, step.name): step.config.output for step in recipe.steps}
    points = []
    for seed in seeds:
        for number, arm in enumerate(config.arms):
            evaluated = outputs.get((seed, f"{report.sampled}/{arm}"))
            state = None if evaluated is None else complete_state(evaluated)
            if state is None:
                continue
            rates = evaluation(state["metrics"])["benchmarks"].values()
            measures = {"solved": fmean(row["pass@1"] for row in rates)}
            written = outputs.get((seed, f"{config.explained}/{arm}"))
            if written is not None and complete_state(written):
                measures |= measured([row for _, row in read_rows(written)], report.task)
            points.append(Round(seed, number, measures))
    return Sweep(config.setting, tuple(config.arms.values()), tuple(points)) if points else None


@dataclass(frozen=True, slots=True)
class Reached:
    """RL of one variant: per seed, the step at which `metric` reached `level` (None: never), and its last value."""

    variant: str
    metric: str
    level: float
    steps: Mapping[int, int | None]
    last: Mapping[int, float]

    def to_row(self) -> JsonRow:
        """The row in results.json."""
        return {
            "variant": self.variant, "metric": self.metric, "level": self.level,
            "steps": {str(seed): step for seed, step in self.steps.items()},
            "last": {str(seed): value for seed, value in self.last.items()},
        }  # fmt: skip


def reached_of(config: ReachesConfig, recipe: Recipe, seeds: Sequence[int]) -> tuple[Reached, ...]:
    """Every variant of the step `config.step`, in the recipe's order, with its complete seeds."""
    found: dict[str, dict[int, tuple[int | None, float]]] = {}
    for step in recipe.steps:
        ours = step.name.split("/")[0] == config.step and step.seed in seeds
        if step.seed is None or not ours or not complete_state(step.config.output):
            continue
        rows = [row for _, row in read_rows(step.config.output / "metrics.jsonl")]
        curve = reaches(rows, config.metric, config.level)
        if curve is not None:
            found.setdefault(step.name.removeprefix(f"{config.step}/"), {})[step.seed] = curve
    return tuple(
        Reached(name, config.metric, config.level, {seed: step for seed, (step, _) in of.items()},
                {seed: last for seed, (_, last) in of.items()})
        for name, of in found.items()
    )  # fmt: skip


def reaches(rows: Sequence[JsonMap], metric: str, level: float) -> tuple[int | None, float] | None:
    """The first step at which the mean of the last `WINDOW` logged values is at least `level`, and the last such mean.

    The step is None if the curve never reaches it; the result is None if `metric` was never logged.
    """
    curve = [
        (step, float(value))
        for row in rows
        if isinstance(value := row.get(metric), int | float) and isinstance(step := row["step"], int)
    ]
    if not curve:
        return None
    means = [
        (step, fmean(value for _, value in curve[max(0, i - WINDOW + 1) : i + 1])) for i, (step, _) in enumerate(curve)
    ]
    return next((step for step, mean in means[WINDOW - 1 :] if mean >= level), None), means[-1][1]
