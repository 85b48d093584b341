"""The figure of an archive: each arm's teachers with their parents, and the best score over children and over time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from rlt.evolve.selection import Teacher, best_so_far
from rlt.results.intervals import mean_with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Teachers = Mapping[int, Teacher]
COLOURS = ("#174a7c", "#c2571a", "#3c8031", "#7a3b8f", "#6b6b6b")


def draw(path: Path, known: Mapping[str, Mapping[int, Teachers]]) -> None:
    """Writes the SVG; `known`: arm -> seed -> number -> teacher."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "rlt", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot

    columns = max(2, len(known))
    figure = pyplot.figure(figsize=(2.6 * columns, 5), layout="constrained")
    grid = figure.add_gridspec(2, 2 * columns)
    for index, (arm, seeds) in enumerate(known.items()):
        axes = figure.add_subplot(grid[0, 2 * index : 2 * index + 2])
        axes.set(title=arm, xlabel="child", ylim=(-0.03, 1.03))
        for seed, colour in zip(seeds, COLOURS * len(seeds), strict=False):
            _lineage(axes, seeds[seed], colour, f"seed {seed}")
        if not index:
            axes.set_ylabel("score")
            axes.legend(frameon=False)
    over_children = figure.add_subplot(grid[1, :columns])
    over_children.set(xlabel="children", ylabel="best score so far", ylim=(-0.03, 1.03))
    over_time = figure.add_subplot(grid[1, columns:])
    over_time.set(xlabel="minutes of one thread", ylim=(-0.03, 1.03))
    for (arm, seeds), colour in zip(known.items(), COLOURS * len(known), strict=False):
        _curves(over_children, over_time, list(seeds.values()), arm, colour)
    over_children.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _lineage(axes: Axes, teachers: Teachers, colour: str, label: str) -> None:
    for number, teacher in teachers.items():
        parent = teacher.draft.parent
        if parent is not None:
            axes.plot([parent, number], [teachers[parent].score, teacher.score], color=colour, linewidth=0.6, alpha=0.6)
    for stages, fill in ((("full",), colour), (("screened", "diverged"), "white")):
        shown = [(number, one.score) for number, one in teachers.items() if one.stage in stages]
        numbers, scores = [number for number, _ in shown], [score for _, score in shown]
        axes.scatter(numbers, scores, s=12, facecolor=fill, edgecolor=colour, zorder=2)
    axes.plot([], [], "o-", color=colour, markersize=3.5, linewidth=0.6, label=label)


def _curves(over_children: Axes, over_time: Axes, repeats: list[Teachers], arm: str, colour: str) -> None:
    """The mean over repeats with its interval, over children; each repeat, over time."""
    best = [best_so_far(teachers) for teachers in repeats]
    means = [mean_with_interval(values) for values in zip(*best, strict=True)]
    numbers = range(len(means))
    over_children.plot(numbers, [one.mean for one in means], color=colour, label=arm)
    bounds = [one.bounds for one in means if one.bounds is not None]
    if len(bounds) == len(means):
        low, high = zip(*bounds, strict=True)
        over_children.fill_between(numbers, low, high, color=colour, alpha=0.1, linewidth=0)
    for values, teachers in zip(best, repeats, strict=True):
        minutes = [*accumulate(one.seconds / 60 if number else 0.0 for number, one in teachers.items())]
        over_time.step(minutes, values, where="post", color=colour, linewidth=0.9)
