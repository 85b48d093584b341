"""Students of a run: solve rates with their intervals, by arm and seed, and their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rlt.results.comparison import Verdicts
from rlt.results.intervals import Estimate, MeanEstimate, mean_with_interval, paired_difference
from rlt.types import JsonRow


@dataclass(frozen=True, slots=True)
class Solved:
    """A student's solve rate (mean over the benchmarks of one evaluate step) and its decoding settings."""

    rate: float
    standard_error: float | None
    interval: tuple[float, float] | None
    """95 % interval over problems; None for several benchmarks."""
    problems: int
    samples: int
    temperature: float
    top_p: float | None
    verdicts: Verdicts | None = None
    """Kept in a run of one seed with one benchmark, to compare students question by question."""

    @property
    def key(self) -> str:
        """Name of the rate in results.json: `solve_rate_greedy`, `solve_rate_t07`."""
        return "solve_rate_greedy" if self.temperature == 0 else f"solve_rate_t{self.temperature}".replace(".", "")

    @property
    def decoding(self) -> str:
        """`greedy`, or `temperature 0.7, top-p 1`."""
        return decoding(self.temperature, self.top_p)


@dataclass(frozen=True, slots=True)
class ArmSeed:
    """One seed's student of an arm; `greedy`: a second evaluation with greedy decoding."""

    seed: int
    sampled: Solved
    greedy: Solved | None = None

    def to_row(self) -> JsonRow:
        """The row in results.json."""
        one = self.sampled
        row: JsonRow = {
            "seed": self.seed, one.key: one.rate, "standard_error": one.standard_error, "problems": one.problems,
            "samples": one.samples, "temperature": one.temperature, "top_p": one.top_p,
        }  # fmt: skip
        return row if self.greedy is None else row | {"solve_rate_greedy": self.greedy.rate}


@dataclass(frozen=True, slots=True)
class Arm:
    """Students that learned from the same kind of explanations, one per seed (at least one)."""

    name: str
    description: str | None
    seeds: tuple[ArmSeed, ...]

    @property
    def decoding(self) -> str:
        return self.seeds[0].sampled.decoding

    @property
    def sampled(self) -> dict[int, Solved]:
        """Seed -> what its student solves."""
        return {one.seed: one.sampled for one in self.seeds}

    @property
    def mean(self) -> float:
        """Solve rate, mean over seeds."""
        return fmean(one.sampled.rate for one in self.seeds)


@dataclass(frozen=True, slots=True)
class Difference:
    """Solve rate of `ours` minus `other`: mean over common seeds, and the number of seeds in which `ours` is ahead."""

    ours: str
    other: str
    estimate: MeanEstimate
    ahead: int
    paired: Estimate | None = None
    """In a run of one seed: over common questions."""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """95 % interval over seeds; with one seed over questions, if known."""
        return self.estimate.bounds or (None if self.paired is None else (self.paired.low, self.paired.high))

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval; False without one."""
        return self.bounds is not None and not self.bounds[0] <= 0 <= self.bounds[1]


def decoding(temperature: float, top_p: float | None) -> str:
    """`greedy`, or `temperature 0.7, top-p 1`."""
    if temperature == 0:
        return "greedy"
    return f"temperature {temperature:g}" + ("" if top_p is None else f", top-p {top_p:g}")


def solve_rate(seeds: Sequence[Solved]) -> tuple[float, tuple[float, float] | None]:
    """The mean over seeds and its interval, cut to [0, 1]; a single seed has the interval over problems, if known."""
    estimate = mean_with_interval([one.rate for one in seeds])
    bounds = estimate.bounds or seeds[0].interval
    return estimate.mean, None if bounds is None else (max(0.0, bounds[0]), min(1.0, bounds[1]))


def difference(ours: str, other: str, first: Mapping[int, Solved], second: Mapping[int, Solved]) -> Difference | None:
    """Solve rates of `ours`, `first`, minus those of `other`, `second`, each by seed; None without a common seed."""
    both = [seed for seed in first if seed in second]
    if not both:
        return None
    values = [first[seed].rate - second[seed].rate for seed in both]
    paired = _paired(first[both[0]], second[both[0]]) if len(both) == 1 else None
    return Difference(ours, other, mean_with_interval(values), sum(value > 0 for value in values), paired)


def differences(arms: Sequence[Arm], ours: Arm) -> list[Difference]:
    """`ours` against every other arm with the same decoding and a common seed, in the order of the arms."""
    others = [arm for arm in arms if arm.name != ours.name and arm.decoding == ours.decoding]
    found = [difference(ours.name, arm.name, ours.sampled, arm.sampled) for arm in others]
    return [one for one in found if one is not None]


def _paired(ours: Solved, other: Solved) -> Estimate | None:
    """The difference over common questions, if there are any."""
    first, second = other.verdicts or {}, ours.verdicts or {}
    common = [question for question in first if question in second]
    return paired_difference([first[q] for q in common], [second[q] for q in common]) if common else None
