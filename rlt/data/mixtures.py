"""Mixtures: the order in which training draws from several sources."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from rlt.config import AnyData, MixtureConfig


class OfSource(Protocol):
    """A problem, or an example made from one."""

    @property
    def source(self) -> str | None:
        """The name of its source."""
        ...


def shares(sizes: Sequence[int], weights: Sequence[float], temperature: float) -> list[float]:
    """The share of each source in the draws: p_i = w_i n_i^(1/T) / sum_j w_j n_j^(1/T).

    With T = 1 and equal weights, all rows are drawn equally often; a large T gives every source the same share (Devlin et
    al., multilingual BERT; Raffel et al. 2020, section 3.5.2).
    """
    parts = [weight * size ** (1 / temperature) for weight, size in zip(weights, sizes, strict=True)]
    return [part / sum(parts) for part in parts]


class Mixture:
    """The order of an epoch's draws from rows of several sources. It depends only on the seed and the epoch.

    An epoch has as many draws as there are rows. Each source gets its share, rounded so that the sum is right. A source
    runs through all its rows, shuffled for each pass, before it repeats one, even across epochs.

    Example: of sources with 4 and 2 rows and shares 1/2 and 1/2, an epoch has 3 draws of each: the fourth row of the first
    is drawn in the next epoch.
    """

    def __init__(self, places: Sequence[Sequence[int]], shares: Sequence[float], seed: int) -> None:
        self.places, self.seed = [list(source) for source in places], seed
        self.draws = _rounded(shares, sum(map(len, places)))

    def order(self, epoch: int) -> list[int]:
        """The rows drawn in this epoch, in order."""
        drawn = [
            place
            for number, (source, draws) in enumerate(zip(self.places, self.draws, strict=True))
            for place in self._turns(number, source, epoch * draws, draws)
        ]
        random.Random(f"mixture {self.seed} {epoch}").shuffle(drawn)
        return drawn

    def _turns(self, number: int, source: list[int], start: int, draws: int) -> list[int]:
        """`draws` rows of one source, from its draw number `start`."""
        drawn: list[int] = []
        while len(drawn) < draws:
            turn, done = divmod(start + len(drawn), len(source))
            order = random.Random(f"mixture {self.seed} source {number} turn {turn}").sample(source, len(source))
            drawn += order[done : done + draws - len(drawn)]
        return drawn


def mixture_of(data: AnyData, problems: Sequence[OfSource], seed: int) -> Mixture | None:
    """The order of draws from these problems of `data`; None for a single data set."""
    if not isinstance(data, MixtureConfig):
        return None
    places: dict[str, list[int]] = {source.label: [] for source in data.sources}
    for place, problem in enumerate(problems):
        places[problem.source or ""].append(place)
    left = [source for source in data.sources if places[source.label]]
    share = shares([len(places[s.label]) for s in left], [s.weight for s in left], data.temperature or 1.0)
    return Mixture([places[source.label] for source in left], share, seed)


def _rounded(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers with this sum, as close to the shares as possible: the largest remainders are rounded up."""
    exact = [share * total for share in shares]
    whole = [int(number) for number in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole
