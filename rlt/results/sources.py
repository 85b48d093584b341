"""Scored rows by their source: the numbers of each data set of a mixture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean

from rlt.types import JsonRow

MEANS = ("reward", "r_ss", "r_kl", "lift_over_empty", "lift_over_shuffled")
MOST = 30
"""A column `source` with more values names something else: pages on the web, say."""

SourceNumbers = dict[str, dict[str, float]]
"""Source -> `rows`, `unclosed` (the share of explanations that never close their tag) and the means of MEANS."""


def by_source(rows: Iterable[tuple[str, bool, JsonRow]]) -> SourceNumbers:
    """The numbers of each source of `(source, whether the explanation is closed, row of scores)`.

    Rows with an error count in no number. Empty where there are fewer than two sources, or more than MOST.

    Example: [("a", True, {"reward": 1.0}), ("b", False, {"reward": 2.0})] ->
    {"a": {"rows": 1, "unclosed": 0.0, "reward": 1.0}, "b": {"rows": 1, "unclosed": 1.0, "reward": 2.0}}
    """
    closed: dict[str, list[bool]] = defaultdict(list)
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for source, ends, row in rows:
        if row.get("error") is None:
            closed[source].append(ends)
            for name in MEANS:
                if isinstance(value := row.get(name), int | float):
                    values[source][name].append(value)
    if not 1 < len(closed) <= MOST:
        return {}
    return {
        source: {"rows": len(ends), "unclosed": 1 - fmean(ends)}
        | {name: fmean(values[source][name]) for name in MEANS if values[source][name]}
        for source, ends in closed.items()
    }


def mean_over_seeds(seeds: Iterable[SourceNumbers]) -> SourceNumbers:
    """The mean of each number over the seeds that have it; `rows` are added."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for numbers in seeds:
        for source, values in numbers.items():
            for name, value in values.items():
                found[source][name].append(value)
    return {
        source: {name: sum(of) if name == "rows" else fmean(of) for name, of in values.items()}
        for source, values in found.items()
    }


def cells(numbers: SourceNumbers) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: `source`, `rows`, `unclosed` and the means that any source has."""
    names = ["rows", "unclosed", *(name for name in MEANS if any(name in values for values in numbers.values()))]
    return ["source", *names], [
        [source, *(_cell(name, values) for name in names)] for source, values in numbers.items()
    ]


def _cell(name: str, values: Mapping[str, float]) -> str:
    if name not in values:
        return "-"
    return f"{values[name]:.0f}" if name == "rows" else f"{values[name]:z.3f}"
