"""Who the parent of the next teacher is, and what is mutated. Nothing here depends on when or where a teacher is made."""

from __future__ import annotations

import hashlib
import json
import math
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from rlt.config import EvolveOptions, Range, Setting

FIRST = "first"


@dataclass(frozen=True)
class Draft:
    """A teacher to be made: `id` is the same for equal teachers of different arms, which are then made only once."""

    number: int
    parent: int | None
    parent_id: str | None
    settings: Mapping[str, Setting]
    mutated: tuple[str, ...]
    id: str


@dataclass(frozen=True)
class Teacher:
    """A teacher of the archive: a Draft once it is measured. `stage`: `screened`, `full` or `diverged` (score 0)."""

    draft: Draft
    score: float
    stage: str
    screen: float | None
    seconds: float


def distribution(space: Range | Sequence[Setting]) -> BaseDistribution:
    """Optuna's distribution for one key of the search."""
    if not isinstance(space, Range):
        return CategoricalDistribution([*space])
    low, high, step = space.low, space.high, space.step
    if isinstance(low, int) and isinstance(high, int) and not isinstance(step, float):
        return IntDistribution(low, high, log=space.log, step=step or 1)
    return FloatDistribution(low, high, log=space.log, step=step)


def probabilities(archive: Mapping[int, Teacher]) -> dict[int, float]:
    """Number of each teacher that has weights -> its chance to be the next parent:
    sigmoid(10 (score - 0.5)) / (1 + its children), divided by the sum (Darwin Goedel Machine, arXiv 2505.22954).
    """
    children = [teacher.draft.parent for teacher in archive.values()]
    weights = {
        number: 1 / (1 + math.exp(-10 * (teacher.score - 0.5))) / (1 + children.count(number))
        for number, teacher in archive.items()
        if teacher.stage != "diverged"
    }
    total = sum(weights.values())
    return {number: weight / total for number, weight in weights.items()}


def best_of(archive: Mapping[int, Teacher]) -> int:
    """The number of the teacher with the highest score among those with the full evaluation; the earliest of equals."""
    full = [number for number, teacher in archive.items() if teacher.stage == "full"]
    return max(full, key=lambda number: (archive[number].score, -number))


def best_so_far(teachers: Mapping[int, Teacher]) -> list[float]:
    """After 0, 1, ... children: the highest score among the teachers with the full evaluation."""
    return [*accumulate((teachers[n].score if teachers[n].stage == "full" else 0.0 for n in sorted(teachers)), max)]


def parent_of(arm: str, archive: Mapping[int, Teacher], rng: random.Random) -> int:
    """The number of the parent that this arm takes from the archive."""
    if arm == "archive":
        chances = probabilities(archive)
        return rng.choices([*chances], [*chances.values()])[0]
    if arm == "best":
        return best_of(archive)
    if arm == "continue":
        return max(number for number, teacher in archive.items() if teacher.stage != "diverged")
    return 0


def seen_by(number: int, known: Mapping[int, Teacher], at_once: int) -> dict[int, Teacher] | None:
    """The archive from which the parent of child `number` (1, 2, ...) is drawn; None while part of it is not made."""
    count = 1 + (number - 1) // at_once * at_once
    return {one: known[one] for one in range(count)} if all(one in known for one in range(count)) else None


def draft(
    number: int, arm: str, seed: int, known: Mapping[int, Teacher], first: Mapping[str, Setting], options: EvolveOptions
) -> Draft | None:
    """Teacher `number` of this arm and repeat, the same whenever and by whomever it is asked for; None while teachers that
    its parent is drawn from are not made.

    All arms use the same random numbers, so that they differ by their rule alone.
    """
    if number == 0:
        return Draft(0, None, None, first, (), FIRST)
    seen = seen_by(number, known, options.at_once)
    if seen is None:
        return None
    parent = seen[parent_of(arm, seen, random.Random(f"parent {seed} {number}"))].draft
    settings, mutated = dict(parent.settings), tuple[str, ...]()
    if arm == "random":
        settings = next(_draws(options, seed, number))
        mutated = tuple(key for key in options.search if settings[key] != first[key])
    elif arm != "continue":
        settings, mutated = mutation(parent.settings, options, seed, number)
    content = json.dumps([parent.id, settings, number, seed], sort_keys=True)
    name = f"{number}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return Draft(number, parent.number, parent.id, settings, mutated, name)


def mutation(
    parent: Mapping[str, Setting], options: EvolveOptions, seed: int, number: int
) -> tuple[dict[str, Setting], tuple[str, ...]]:
    """The parent's settings with `mutations` keys drawn anew until all of them differ; and these keys."""
    keys = random.Random(f"mutation {seed} {number}").sample([*options.search], options.mutations)
    draws = _draws(options, seed, number)
    drawn = next(drawn for drawn in draws if all(drawn[key] != parent[key] for key in keys))
    return {**parent, **{key: drawn[key] for key in keys}}, tuple(keys)


def _draws(options: EvolveOptions, seed: int, number: int) -> Iterator[dict[str, Setting]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=zlib.crc32(f"{seed} {number}".encode()))
    study = optuna.create_study(sampler=sampler)
    while True:
        yield study.ask({key: distribution(space) for key, space in options.search.items()}).params
