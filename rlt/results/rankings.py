"""Rankings of explanations, compared by the solve rates of students of their bands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlt.config import ReportConfig
from rlt.results.intervals import MeanEstimate, mean_with_interval, spearman
from rlt.results.students import Difference, Solved, difference
from rlt.types import JsonRow


@dataclass(frozen=True, slots=True)
class Ranking:
    """What the students of one ranking's bands solve, lowest band first, for each seed that has all of them."""

    name: str
    solved: Mapping[int, Sequence[Solved]]

    @property
    def rates(self) -> dict[int, list[float]]:
        """Seed -> solve rate of each band."""
        return {seed: [one.rate for one in of] for seed, of in self.solved.items()}

    @property
    def bands(self) -> list[tuple[Solved, ...]]:
        """For each band the students of all seeds."""
        return list(zip(*self.solved.values(), strict=True))

    @property
    def spearman(self) -> MeanEstimate:
        """Rank correlation of band and solve rate within a seed, mean over seeds."""
        return mean_with_interval([spearman(of) for of in self.rates.values()])

    @property
    def gain(self) -> Difference:
        """The highest band's solve rate minus the lowest one's."""
        highest, lowest = ({seed: of[band] for seed, of in self.solved.items()} for band in (-1, 0))
        found = difference("highest", "lowest", highest, lowest)
        assert found is not None  # both have the same seeds
        return found

    def to_row(self) -> JsonRow:
        """The row in results.json."""
        return {"ranking": self.name, "rates": {str(seed): list(of) for seed, of in self.rates.items()}}


def rankings_of(
    report: ReportConfig, seeds: Sequence[int], solved: Callable[[int, str], Solved | None]
) -> tuple[Ranking, ...]:
    """The report's rankings with a complete seed; `solved`: what a seed's student of an arm solves, None without one."""
    found = []
    for name, bands in report.rankings.items():
        students = {seed: [solved(seed, band) for band in bands] for seed in seeds}
        known = {seed: [one for one in of if one is not None] for seed, of in students.items()}
        complete = {seed: of for seed, of in known.items() if len(of) == len(bands)}
        if complete:
            found.append(Ranking(name, complete))
    return tuple(found)
