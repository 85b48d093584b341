"""Compare two evaluations by paired differences on their common questions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlt.errors import DataError, RunError
from rlt.outputs import read_state
from rlt.results import intervals
from rlt.results.benchmarks import Evaluated, ResponseRow, response_rows

Verdicts = dict[tuple[str, str], list[bool]]
"""Id and hash of a question -> whether each sample is correct."""


@dataclass(frozen=True)
class Comparison:
    """Paired differences of two evaluations by benchmark, second minus first; `str()` formats them for reading."""

    first: str
    second: str
    differences: dict[str, intervals.Estimate]
    rates: dict[str, tuple[float, float]]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"A = {self.first}", f"B = {self.second}"]
        for name, difference in self.differences.items():
            a, b = self.rates[name]
            words = intervals.in_words(difference, "A", "B")
            lines.append(f"{name}: A {a * 100:.1f}, B {b * 100:.1f}. {words}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), f"({intervals.DIFFERENCE_INTERVAL})"])


def compare(first: Path, second: Path, level: float = intervals.LEVEL) -> Comparison:
    """Paired differences between two complete outputs of `rlt evaluate` on their common questions, with two-sided
    intervals of this `level`.

    Raises RunError if one is not complete or they share no benchmark, and DataError if versions differ or no question is
    common.
    """
    results = [_complete(folder) for folder in (first, second)]
    shared = [name for name in results[0]["benchmarks"] if name in results[1]["benchmarks"]]
    if not shared:
        listed = " and ".join(", ".join(result["benchmarks"]) for result in results)
        raise RunError(f"{first} and {second} have no benchmark in common ({listed}).")
    differences, rates, notes = {}, {}, []
    responses = [response_rows(folder) for folder in (first, second)]
    for name in shared:
        versions = [result["benchmarks"][name]["version"] for result in results]
        if versions[0] != versions[1]:
            raise DataError(f"{name}: version {versions[0]} and version {versions[1]} cannot be compared.")
        sides = [verdicts(rows, name) for rows in responses]
        common = [key for key in sides[0] if key in sides[1]]
        if not common:
            raise DataError(f"{name}: {first} and {second} have no question in common.")
        if len(common) < max(map(len, sides)):
            notes.append(
                f"{name}: compared on the {len(common)} common questions (A has {len(sides[0])}, B has {len(sides[1])})"
            )
        pair = [[side[key] for key in common] for side in sides]
        differences[name] = intervals.paired_difference(pair[0], pair[1], level)
        rates[name] = (intervals.pass_at_1(pair[0]).mean, intervals.pass_at_1(pair[1]).mean)
    settings = [
        {**r["sampling"], **{key: r[key] for key in ("system_prompt", "instruction", "format")}} for r in results
    ]
    for key in settings[0]:
        if key not in ("samples", "seed") and settings[0][key] != settings[1][key]:
            notes.append(f"`{key}` differs: A {settings[0][key]}, B {settings[1][key]}")
    seeds = " and ".join(str(result["sampling"]["seed"]) for result in results)
    samples = " and ".join(str(result["sampling"]["samples"]) for result in results)
    how = [f"temperature {r['sampling']['temperature']:g}, top-p {r['sampling']['top_p']:g}" for r in results]
    notes.append(f"{' and '.join(dict.fromkeys(how))}; samples {samples} (A and B), seeds {seeds}")
    return Comparison(_label(first, results[0]), _label(second, results[1]), differences, rates, tuple(notes))


def _complete(folder: Path) -> Evaluated:
    state = read_state(folder)
    if state is None or state.get("stage") != "evaluate":
        raise RunError(f"{folder}: not an output of `rlt evaluate`.")
    if not state.get("complete"):
        raise RunError(f"{folder}: not complete; run its `rlt evaluate` again to resume.")
    results: Evaluated = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def verdicts(rows: Iterable[ResponseRow], name: str) -> Verdicts:
    """Which samples of each question of the benchmark `name` are correct."""
    found: Verdicts = {}
    for row in rows:
        if row["benchmark"] == name:
            found.setdefault((row["question_id"], row["question_sha256"]), []).append(row["correct"])
    return found


def _label(folder: Path, results: Evaluated) -> str:
    return f"{folder} (model {results['model']})"
