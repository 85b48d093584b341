"""The report's pictures as SVG, drawn with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlt.config import ReportConfig
from rlt.data.rows import read_rows
from rlt.recipe import Recipe
from rlt.results.summary import Arm, BandSeed, Results, Solved

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#c8811d")


def pictures(config: ReportConfig, recipe: Recipe, results: Results) -> list[tuple[str, str]]:
    """Captions and SVG pictures; none where matplotlib is not installed, which is said in one line."""
    try:
        import matplotlib
    except ImportError:
        print("report: no pictures, because matplotlib is not installed: pip install 'rlt[report]'", flush=True)
        return []
    with matplotlib.rc_context():
        matplotlib.rcParams |= {
            "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        }  # fmt: skip
        drawn = [
            (
                "Share of held-out problems solved by each arm's students. Dot: one seed; bar: mean.",
                _arms(results.arms),
            ),
            ("The teacher's reward during training, one line per seed.", _curves(config, recipe)),
            ("Students of explanations in bands of reward, one line per seed.", _bands(results.bands)),
        ]
    return [(caption, svg) for caption, svg in drawn if svg is not None]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _arms(arms: Sequence[Arm]) -> str | None:
    if len(arms) < 2:
        return None
    figure, axes = _figure(7, 0.5 * len(arms) + 1)
    labels: set[str] = set()
    for place, arm in enumerate(arms):
        sampled = [one.sampled for one in arm.seeds]
        greedy = [one.greedy for one in arm.seeds if one.greedy is not None]
        _bar(axes, place - 0.18, sampled, COLOURS[0], labels)
        _bar(axes, place + 0.18, greedy, COLOURS[1], labels)
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("share of held-out problems solved")
    axes.legend(frameon=False, loc="lower right")
    return _svg(figure)


def _bar(axes: Axes, y: float, solved: Sequence[Solved], colour: str, labels: set[str]) -> None:
    if not solved:
        return
    rates = [one.rate for one in solved]
    label = solved[0].decoding
    axes.barh(y, sum(rates) / len(rates), 0.3, color=colour, alpha=0.45, label=None if label in labels else label)
    axes.plot(rates, [y] * len(rates), "o", color=colour, markersize=4)
    labels.add(label)


def _curves(config: ReportConfig, recipe: Recipe) -> str | None:
    steps = [step for step in recipe.steps if step.name == config.trained]
    files = [(step.seed, Path(step.config.output) / "metrics.jsonl") for step in steps]
    files = [(seed, path) for seed, path in files if path.is_file()]
    if not files:
        return None
    figure, axes = _figure(7, 2.6)
    for seed, path in files:
        rows = [row for _, row in read_rows(path) if "reward" in row]
        axes.plot([row["step"] for row in rows], [row["reward"] for row in rows], linewidth=1, label=f"seed {seed}")
    axes.set_xlabel("step of teacher RL")
    axes.set_ylabel("reward (nats)")
    axes.legend(frameon=False)
    return _svg(figure)


def _bands(bands: Sequence[BandSeed]) -> str | None:
    if not bands:
        return None
    figure, axes = _figure(7, 2.6)
    places = range(1, len(bands[0].solved) + 1)
    for one in bands:
        axes.plot(places, one.rates, "o-", label=f"seed {one.seed}")
    axes.set_xticks(places)
    axes.set_xlabel("band of reward, lowest first")
    axes.set_ylabel(f"solved, {bands[0].solved[0].decoding}")
    axes.legend(frameon=False)
    return _svg(figure)
