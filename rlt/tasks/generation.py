"""Drawing problems with distinct questions, for tasks that make their own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from rlt.errors import ConfigError
from rlt.types import JsonMap, Problem


def distinct(
    task: str,
    count: int,
    seed: int,
    draw: Callable[[random.Random], Problem | None],
    exclude: Iterable[str],
    scope: str,
    tries: int = 100,
) -> list[Problem]:
    """`count` problems from `draw` with distinct questions, none of which is in `exclude`; their ids are `SEED-NUMBER`.

    `draw` may return None to try again. Raises ConfigError, with the `scope` of questions, after `tries` draws per problem.
    """
    rng = random.Random(f"{task} {seed}")
    seen, problems = set(exclude), list[Problem]()
    for _ in range(tries * count):
        if len(problems) == count:
            return problems
        problem = draw(rng)
        if problem is not None and problem.question not in seen:
            seen.add(problem.question)
            problems.append(replace(problem, id=f"{seed}-{len(problems)}"))
    raise ConfigError(f"{task}: there are not {count} different questions with {scope}.")


def bounds(value: object) -> tuple[int, int]:
    """`(fewest, most)` of an option that is a number or [fewest, most]; `(0, 0)` for anything else."""
    low, high = value if isinstance(value, (list, tuple)) and len(value) == 2 else (value, value)
    return (low, high) if isinstance(low, int) and isinstance(high, int) else (0, 0)


def steps_option(task: str, options: JsonMap, default: int, largest: int) -> tuple[int, int]:
    """`(fewest, most)` of the option `steps`; raises ConfigError for other options or values."""
    low, high = bounds(options.get("steps", default))
    if options.keys() - {"steps"} or not 1 <= low <= high <= largest:
        raise ConfigError(f"{task}: options are `steps`: 1 to {largest}, or [fewest, most]; not {options}.")
    return low, high
