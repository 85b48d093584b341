"""The page's data for a run: training curves, samples over steps, scored rows, costs, recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict, cast

from rlt.data.rows import read_rows
from rlt.outputs import read_state
from rlt.recipe import Recipe, Step
from rlt.results.view.page import source_of
from rlt.results.view.rows import Source, match_key, matching, page_row, sampled, thinned
from rlt.types import JsonRow

CURVE_POINTS = 300


class StageRow(TypedDict):
    """Seconds of a step over all seeds, and how many of its seeds are complete."""

    step: str
    stage: str
    seconds: float
    done: int
    of: int


class RunData(TypedDict):
    """What the page shows of a run."""

    kind: str
    title: str
    description: str
    sources: list[JsonRow]
    rows: list[JsonRow]
    curves: list[JsonRow]
    stages: list[StageRow]
    recipe: str


def run_data(recipe: Recipe, limit: int) -> RunData:
    """The outputs of the run's steps so far; the caller adds the report's numbers.

    At most `limit` scored rows and as many training samples, over all files.
    """
    sources: list[JsonRow] = []
    rows: list[JsonRow] = []
    scored = [step for step in recipe.steps if step.stage == "score" and Path(step.config.output).is_file()]
    keys: dict[int | None, set[str]] = {}
    for step in scored:
        source, share = Source(Path(step.config.output), _name(step), _data(step)), max(1, limit // len(scored))
        # Steps of one seed show the same questions, so that they can be compared side by side.
        if step.seed in keys and source.data is not None:
            some, total = matching(source, keys[step.seed], share)
        else:
            some, total = [], 0
        if not some:
            some, total = sampled(source, share)
        keys.setdefault(step.seed, set()).update(match_key(row) for row in some)
        rows += [page_row(row, len(sources), source.control) for row in some]
        sources.append(source_of(source, len(some), total))
    trained = [step for step in recipe.steps if _file(step, "samples.jsonl").is_file()]
    for step in trained:
        source = Source(_file(step, "samples.jsonl"), _name(step))
        config = step.config
        source.coefficients = {key: getattr(config, key) for key in ("alpha", "alpha_kl", "mean_coef", "kl_coef")}
        some, total = _over_steps(source, max(1, limit // len(trained)))
        rows += [page_row({"id": f"step {row['step']} row {row['number']}", **row}, len(sources), step=cast(int, row["step"]))
                 for row in some]  # fmt: skip
        sources.append(source_of(source, len(some), total))
    return {
        "kind": "run", "title": recipe.head.name, "description": recipe.head.description, "sources": sources,
        "rows": rows, "curves": _curves(recipe), "stages": _stages(recipe), "recipe": recipe.dump(),
    }  # fmt: skip


def _name(step: Step) -> str:
    return step.name if step.seed is None else f"{step.name}, seed {step.seed}"


def _file(step: Step, name: str) -> Path:
    return Path(step.config.output) / name


def _data(step: Step) -> Path | None:
    data = getattr(step.config, "data", None)
    return data if isinstance(data, Path) and data.exists() else None


def _over_steps(source: Source, limit: int) -> tuple[list[JsonRow], int]:
    """Samples of the questions that occur in most steps, and the number of samples in the file."""
    counts: dict[str, int] = {}
    for row in source:
        counts[match_key(row)] = counts.get(match_key(row), 0) + 1
    chosen: set[str] = set()
    room = limit
    for key, count in sorted(counts.items(), key=lambda item: -item[1]):
        if room <= 0:
            break
        chosen.add(key)
        room -= count
    return [row for row in source if match_key(row) in chosen][:limit], sum(counts.values())


def _curves(recipe: Recipe) -> list[JsonRow]:
    """For each training step and metric, the points `(step, value)` of each seed."""
    found: dict[str, dict[str, dict[str, list[tuple[float, float]]]]] = {}
    for step in recipe.steps:
        if not _file(step, "metrics.jsonl").is_file():
            continue
        metrics = found.setdefault(step.name, {})
        for _, row in read_rows(_file(step, "metrics.jsonl")):
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float) and isinstance(at := row.get("step"), int):
                    metrics.setdefault(name, {}).setdefault(str(step.seed), []).append((at, value))
    return [
        {
            "step": step,
            "metric": metric,
            "seeds": {seed: thinned(points, CURVE_POINTS) for seed, points in seeds.items()},
        }
        for step, metrics in found.items()
        for metric, seeds in metrics.items()
        if any(len(points) > 1 for points in seeds.values())
    ]


def _stages(recipe: Recipe) -> list[StageRow]:
    """A row per step, in the recipe's order."""
    found: dict[str, StageRow] = {}
    for step in recipe.steps:
        if step.stage == "report":
            continue
        state = read_state(step.config.output) or {}
        row = found.setdefault(step.name, {"step": step.name, "stage": step.stage, "seconds": 0.0, "done": 0, "of": 0})
        row["seconds"] += state.get("seconds") or 0.0
        row["done"] += bool(state.get("complete"))
        row["of"] += 1
    return list(found.values())
