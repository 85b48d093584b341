"""What a worker does: make the next teacher that nobody else makes, until every arm of every repeat has all of its children.

Which teachers there are, and from whom they descend, is decided by `selection` alone; workers only find out what is next.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlt.config import EvolveOptions, Setting
from rlt.evolve.archive import Archive, storage_of
from rlt.evolve.selection import Draft, Teacher, best_of, draft, seen_by
from rlt.evolve.teachers import Measured, Repeat
from rlt.recipe import Recipe
from rlt.recipe.evolution import FINAL, SCORE, SCREEN, plan_of

POLL = 1.0  # seconds between looks for something to do


class Measures(Protocol):
    """Makes and measures the teachers of one repeat, as `rlt.evolve.teachers.Repeat`."""

    def prepare(self) -> bool: ...

    def claim(self, draft: Draft) -> AbstractContextManager[bool]: ...

    def measure(self, draft: Draft, phase: str) -> Measured: ...


@dataclass(frozen=True)
class Chain:
    """The teachers of one arm and one repeat, with what makes them."""

    archive: Archive
    measures: Measures
    first: Mapping[str, Setting]
    options: EvolveOptions

    def missing(self) -> list[int]:
        """Numbers of the teachers that are not made; after the last, of those whose final number is missing."""
        known = self.archive.teachers()
        missing = [number for number in range(self.options.children + 1) if number not in known]
        if missing or self.options.final is None:
            return missing
        return [number for number in dict.fromkeys((0, best_of(known))) if number not in self.archive.final]

    def step(self) -> bool:
        """Whether there was a teacher to make, or a final number to measure, and this process did."""
        known = self.archive.teachers()
        for number in self.missing():
            wanted = self.draft(number, known)
            if wanted is None or not self.measures.prepare():
                return False
            with self.measures.claim(wanted) as mine:
                if not mine or number not in self.missing():  # another worker makes it, or made it a moment ago
                    continue
                if number in known:
                    rate = self.measures.measure(wanted, FINAL).rate
                    self.archive.add_final(number, rate or 0.0)
                else:
                    self.archive.add(self._made(wanted, known))
                return True
        return False

    def draft(self, number: int, known: Mapping[int, Teacher]) -> Draft | None:
        return draft(number, self.archive.arm, self.archive.seed, known, self.first, self.options)

    def _made(self, wanted: Draft, known: Mapping[int, Teacher]) -> Teacher:
        screen = None
        if self.options.screen is not None:
            screen, seconds = self.measures.measure(wanted, SCREEN)
            if screen is None:
                return Teacher(wanted, 0.0, "diverged", None, seconds)
            seen = seen_by(wanted.number, known, self.options.at_once) if wanted.number else {}
            if screen < threshold(seen or {}, self.options.screen_quantile):
                return Teacher(wanted, screen, "screened", screen, seconds)
        rate, seconds = self.measures.measure(wanted, SCORE)
        return Teacher(wanted, rate or 0.0, "diverged" if rate is None else "full", screen, seconds)


def chains_of(recipe: Recipe) -> list[Chain]:
    """One chain per arm and repeat, with the journal in the run's folder."""
    plan, storage = plan_of(recipe), storage_of(recipe.folder)
    repeats = [Repeat(recipe, plan, seed) for seed in recipe.head.seeds]
    return [
        Chain(Archive(storage, arm, repeat.seed, plan.options), repeat, plan.settings, plan.options)
        for repeat in repeats
        for arm in plan.options.arms
    ]


def threshold(seen: Mapping[int, Teacher], quantile: float) -> float:
    """The screening score that a child must reach: this quantile of those before it, 0 where there is none."""
    scores = [teacher.screen for teacher in seen.values() if teacher.screen is not None]
    return float(np.quantile(scores, quantile)) if scores else 0.0


def work(chains: Sequence[Chain]) -> None:
    """Returns once all teachers of all chains are made, by this worker or by others; those with the fewest come first."""
    while left := {index: len(chain.missing()) for index, chain in enumerate(chains) if chain.missing()}:
        order = sorted(left, key=lambda index: (-left[index], index))
        if not any(chains[index].step() for index in order):
            time.sleep(POLL)
