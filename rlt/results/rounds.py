"""Feedback rounds in numbers: solve rates, rewards by judge, properties of explanations, a figure."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import cast

from rlt.config import ScoreConfig
from rlt.data.rows import read_rows
from rlt.outputs import complete_state
from rlt.recipe import Recipe, Step
from rlt.results.benchmarks import evaluation
from rlt.rounds import Decision
from rlt.tasks import load_task
from rlt.types import JsonMap, JsonRow

NGRAMS = (2, 4)
# What a task's `inspect` finds -> the name of its share in a report; others keep theirs.
_SHARES = {"leaks": "leak_rate", "complete": "every_step_right", "correct": "fully_correct"}


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one seed: its measures by name, and the decision about it (None for round 0)."""

    seed: int
    number: int
    measures: Mapping[str, float]
    decision: Decision | None = None

    def to_row(self) -> JsonRow:
        """The row in results.json."""
        return {"seed": self.seed, "round": self.number, **self.measures, "decision": self.decision}


def rounds_of(recipe: Recipe, seeds: Sequence[int], task: str | None) -> tuple[Round, ...]:
    """Every round with a complete step, by seed; empty for a recipe without rounds."""
    found: dict[tuple[int, int], list[tuple[Step, JsonRow]]] = {}
    for step in recipe.steps:
        if step.seed is not None and step.seed in seeds and step.round is not None:
            state = complete_state(step.config.output)
            if state is not None:
                found.setdefault((step.seed, step.round), []).append((step, state["metrics"]))
    return tuple(_round(seed, number, steps, task) for (seed, number), steps in sorted(found.items()))


def _round(seed: int, number: int, steps: Sequence[tuple[Step, JsonRow]], task: str | None) -> Round:
    measures: dict[str, float] = {}
    decision, explained = None, None
    for step, metrics in steps:
        name = step.name.partition("/")[2]
        if step.stage == "evaluate":
            measures["solved" if name == "evaluate" else name] = fmean(
                row["pass@1"] for row in evaluation(metrics)["benchmarks"].values()
            )
        elif step.stage == "score" and isinstance(step.config, ScoreConfig):
            measures |= {
                f"{name}: {part}": value
                for part in ("reward", "r_ss")
                if isinstance(value := metrics.get(part), int | float)
            }
            explained = explained or step.config.data
        elif step.stage == "gain":
            for measure in ("correlation", "over_placebo"):
                measures[f"{name}: {measure}"] = cast(float, metrics[measure])
        elif step.stage == "accept":
            decision = cast(Decision, metrics)
    if explained is not None:
        measures |= measured([row for _, row in read_rows(explained)], task)
    return Round(seed, number, measures, decision)


def parted(rounds: Sequence[Round]) -> list[str]:
    """A sentence that names the rounds in which students gain least from learning the explanations with the highest rewards:
    where the rank correlation of the step `gain`, mean over seeds, is negative. Nothing without such a step.
    """
    found: dict[int, list[float]] = {}
    for one in rounds:
        for name, value in one.measures.items():
            if name.endswith(": correlation"):
                found.setdefault(one.number, []).append(value)
    means = {number: fmean(values) for number, values in sorted(found.items())}
    if not means:
        return []
    against = [f"round {number} ({mean:.2f})" for number, mean in means.items() if mean < 0]
    if not against:
        return [
            f"Reward and gain from learning rank alike in every round (correlation {min(means.values()):.2f} or more)."
        ]
    return [f"Reward and gain from learning part company, by their rank correlation: {', '.join(against)}."]


def measured(rows: Sequence[JsonMap], task: str | None) -> dict[str, float]:
    """Measures of explanations: mean words, distinct n-grams, copying, and what the task's `inspect` finds.

    `distinct_N`: different word N-grams as a share of all. `copying`: share of the solution's word n-grams (n is 4, or
    less for a shorter solution) that occur in the explanation, mean over rows.
    """
    texts = [str(row["explanation"]).split() for row in rows]
    numbers = {"words": fmean(map(len, texts))}
    for n in NGRAMS:
        grams = [gram for text in texts for gram in _ngrams(text, n)]
        numbers[f"distinct_{n}"] = len(set(grams)) / len(grams) if grams else 0.0
    numbers["copying"] = fmean(
        _copied(text, str(row["solution"]).split()) for text, row in zip(texts, rows, strict=True)
    )
    shares = inspected(rows, task)
    return numbers | {name: shares[name] for name in ("leak_rate", "every_step_right") if name in shares}


def inspected(rows: Sequence[JsonMap], task: str | None) -> dict[str, float]:
    """Shares of the explanations with each property that the task's `inspect` finds; empty without such a task."""
    inspect = None if task is None else getattr(load_task(task), "inspect", None)
    if inspect is None or not rows:
        return {}
    seen = [inspect(row["explanation"], row["question"]) for row in rows]
    return {_SHARES.get(name, name): fmean(one[name] for one in seen) for name in seen[0]}


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _copied(explanation: Sequence[str], solution: Sequence[str]) -> float:
    n = min(NGRAMS[-1], len(solution))
    wanted = set(_ngrams(solution, n)) if n else set()
    return len(wanted & set(_ngrams(explanation, n))) / len(wanted) if wanted else 0.0


# -- the figure --------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, COLUMNS = 260, 150, 3
LEFT, TOP, RIGHT, BOTTOM = 46, 26, 12, 24


def figure(rounds: Sequence[Round], ticks: Sequence[str] | None = None) -> str:
    """An SVG with one panel per measure over rounds: a thin line per seed, a thick mean, filled dots for accepted rounds.

    `ticks`: labels below the points; None: the numbers of the rounds.
    """
    names = list(dict.fromkeys(name for one in rounds for name in one.measures))
    rows = -(-len(names) // COLUMNS)
    panels = [_panel(rounds, name, i % COLUMNS * WIDTH, i // COLUMNS * HEIGHT, ticks) for i, name in enumerate(names)]
    size = f'width="{COLUMNS * WIDTH}" height="{rows * HEIGHT}" viewBox="0 0 {COLUMNS * WIDTH} {rows * HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="10">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n'
    )


def _panel(rounds: Sequence[Round], name: str, left: float, top: float, ticks: Sequence[str] | None) -> str:
    with_it = [one for one in rounds if name in one.measures]
    values = [one.measures[name] for one in with_it]
    low, high = min(values), max(values)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    last = max(1, *(one.number for one in rounds))

    def x(number: float) -> float:
        return left + LEFT + number / last * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return top + HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    numbers = sorted({one.number for one in with_it})
    means = [(number, fmean(one.measures[name] for one in with_it if one.number == number)) for number in numbers]
    parts = [f'<text x="{left + LEFT}" y="{top + 15}" font-weight="bold">{html.escape(name.replace("_", " "))}</text>']
    for value in (low, high):
        parts.append(f'<text x="{left + LEFT - 6}" y="{y(value) + 3:.1f}" text-anchor="end">{value:.3g}</text>')
    for number in range(last + 1):
        parts.append(
            f'<text x="{x(number):.1f}" y="{top + HEIGHT - 8}" text-anchor="middle">{ticks[number] if ticks else number}</text>'
        )
    for seed in dict.fromkeys(one.seed for one in with_it):
        parts.append(_line([(o.number, o.measures[name]) for o in with_it if o.seed == seed], x, y, "#9bb7d4", 1))
    parts.append(_line(means, x, y, "#174a7c", 2.5))
    for one in with_it:
        accepted = one.decision is not None and one.decision["accepted"]
        fill = "#174a7c" if accepted else "white"
        spot = f'cx="{x(one.number):.1f}" cy="{y(one.measures[name]):.1f}"'
        parts.append(f'<circle {spot} r="2.5" fill="{fill}" stroke="#174a7c"/>')
    return "".join(parts)


def _line(
    points: Sequence[tuple[int, float]],
    x: Callable[[float], float],
    y: Callable[[float], float],
    colour: str,
    width: float,
) -> str:
    path = " ".join(f"{x(number):.1f},{y(value):.1f}" for number, value in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def write_figure(path: Path, rounds: Sequence[Round]) -> Path:
    """Writes the figure; returns its path."""
    path.write_text(figure(rounds), encoding="utf-8")
    return path
