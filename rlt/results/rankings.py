"""Rankings of explanations, compared by the solve rates of students of their bands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rlt.config import ReportConfig
from rlt.results.intervals import MeanEstimate, mean_with_interval, spearman
from rlt.types import JsonRow


@dataclass(frozen=True, slots=True)
class Ranking:
    """Solve rates of the students of one ranking's bands, lowest first, for each seed that has all of them."""

    name: str
    rates: Mapping[int, Sequence[float]]

    @property
    def bands(self) -> list[float]:
        """Each band's solve rate, mean over seeds."""
        return [fmean(of) for of in zip(*self.rates.values(), strict=True)]

    @property
    def spearman(self) -> MeanEstimate:
        """Rank correlation of band and solve rate within a seed, mean over seeds."""
        return mean_with_interval([spearman(of) for of in self.rates.values()])

    @property
    def gain(self) -> MeanEstimate:
        """The highest band's solve rate minus the lowest one's, mean over seeds."""
        return mean_with_interval([of[-1] - of[0] for of in self.rates.values()])

    def to_row(self) -> JsonRow:
        """The row in results.json."""
        return {"ranking": self.name, "rates": {str(seed): list(of) for seed, of in self.rates.items()}}


def rankings_of(
    report: ReportConfig, seeds: Sequence[int], rate: Callable[[int, str], float | None]
) -> tuple[Ranking, ...]:
    """The report's rankings with a complete seed; `rate`: solve rate of a seed's arm, None without one."""
    found = []
    for name, bands in report.rankings.items():
        rates = {seed: [rate(seed, band) for band in bands] for seed in seeds}
        known = {seed: [one for one in of if one is not None] for seed, of in rates.items()}
        complete = {seed: of for seed, of in known.items() if len(of) == len(bands)}
        if complete:
            found.append(Ranking(name, complete))
    return tuple(found)
