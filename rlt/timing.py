"""Estimates the time left of a run from a table of earlier durations, corrected as the run proceeds.

The table is `NAME.seconds.json` next to the recipe `NAME.yaml`; `rlt timings RUN` prints it from a finished run. Each step has
its `seconds`, the mean over seeds; training steps also have the `rows` of their metrics, which show how far a running step is.
Without a table, a step counts like finished ones of its stage, once every remaining stage has some.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlt.recipe import ONCE, Step, Timing

Key = tuple[int | None, str]

# Speed of this machine at a stage not seen yet: every stage seen has a vote, the table half a vote.
VOTE_OF_TABLE = 0.5
# Observed seconds of a stage, by the table, at which observation weighs as much as prior belief.
TRUST = 20.0
# Below this share of a step, its rows reflect start-up more than speed.
EARLY = 0.05


def key_of(step: Step) -> Key:
    """Identifies a step in its recipe."""
    return step.seed, step.name


def queue(steps: Sequence[Step]) -> list[Step]:
    """The order in which steps start once their inputs are ready: those of the first seed, so that its table is printed
    early, then those that the longest chain of other steps waits for.
    """
    behind = _longest_chains(steps)
    return sorted(steps, key=lambda step: (step.seed != steps[0].seed, -behind[key_of(step)]))


def _longest_chains(steps: Sequence[Step]) -> dict[Key, int]:
    """Length of the longest chain of steps of the same seed that must follow each step."""
    chains = {key_of(step): 0 for step in steps}
    for step in reversed(steps):  # a recipe names what a step waits for before the step
        for name in step.after:
            if (step.seed, name) in chains:
                chains[step.seed, name] = max(chains[step.seed, name], chains[key_of(step)] + 1)
    return chains


def replayed(
    steps: Sequence[Step], jobs: int, seconds: Mapping[Key, float], running: Mapping[Key, float] | None = None
) -> tuple[float, list[tuple[float, float, Step]]]:
    """`(total, plan)`: seconds until all steps are done, `jobs` at a time, and `(start, end, step)` of each.

    `seconds`: of each step that has not begun; `running`: seconds that running steps still need. `steps`: all that are
    not done. Reports come last, one by one.
    """
    running = running or {}
    queued = queue([step for step in steps if step.stage not in ONCE])
    unfinished = {key_of(step) for step in queued}
    active = [(running[key_of(step)], 0.0, step) for step in queued if key_of(step) in running]
    waiting = [step for step in queued if key_of(step) not in running]
    now, plan = 0.0, []
    while waiting or active:
        for step in [s for s in waiting if not any((s.seed, a) in unfinished for a in s.after)]:
            if len(active) < jobs:
                waiting.remove(step)
                active.append((now + seconds[key_of(step)], now, step))
        if not active:
            break  # the rest waits for steps of another run
        active.sort(key=lambda item: item[0])
        now, began, step = active.pop(0)
        unfinished.discard(key_of(step))
        plan.append((began, now, step))
    for step in steps:
        if step.stage in ONCE:
            needed = running.get(key_of(step), seconds.get(key_of(step), 0.0))
            plan.append((now, now + needed, step))
            now += needed
    return now, plan


@dataclass
class _Run:
    """A running step."""

    step: Step
    began: float


class TimeLeft:
    """Estimates how many seconds these steps still need. `table`: step name -> Timing; `rows`: progress of a step."""

    def __init__(
        self,
        steps: Sequence[Step],
        jobs: int,
        table: Mapping[str, Timing],
        rows: Callable[[Step], int] | None = None,
    ) -> None:
        self.steps, self.jobs, self.table = list(steps), jobs, table
        self.rows = rows or rows_written
        self.running: dict[Key, _Run] = {}
        self.finished: list[tuple[Step, float]] = []

    def begin(self, step: Step, now: float) -> None:
        """The step begins at this time, in seconds on any clock."""
        self.running[key_of(step)] = _Run(step, now)

    def end(self, step: Step, seconds: float) -> None:
        """The step is done; it took so many seconds."""
        self.running.pop(key_of(step), None)
        self.finished.append((step, seconds))

    def drop(self, step: Step) -> None:
        """The step ended without a result."""
        self.running.pop(key_of(step), None)

    def skip(self, step: Step) -> None:
        """The step will not run."""
        self.steps = [other for other in self.steps if key_of(other) != key_of(step)]

    def left(self, now: float) -> float | None:
        """Seconds from now to the end; None while too little is known."""
        done = {key_of(step) for step, _ in self.finished}
        rest = [step for step in self.steps if key_of(step) not in done]
        expected = {key_of(step): self._expected(step) for step in rest}
        if not rest or any(seconds is None for seconds in expected.values()):
            return None if rest else 0.0
        shares = {key: self._share(run.step) for key, run in self.running.items()}
        speed = self._speeds(now, shares)
        seconds = {key_of(step): (expected[key_of(step)] or 0.0) * speed(step.stage) for step in rest}
        running = {}
        for key, run in self.running.items():
            whole, elapsed, share = seconds[key], now - run.began, shares[key]
            over = 0.1 * elapsed  # an overdue step is not about to end
            running[key] = whole * (1 - share) if share else whole - elapsed if whole - elapsed > over else over
        return replayed(rest, self.jobs, seconds, running)[0]

    def _expected(self, step: Step) -> float | None:
        """Seconds from the table, else the mean of finished steps of the same stage (of those that have `max_steps` as it has,
        if any, scaled to its own), else None."""
        if step.name in self.table:
            return self.table[step.name].seconds
        alike = [(other, seconds) for other, seconds in self.finished if other.stage == step.stage]
        if not alike:
            return 0.0 if step.stage in ONCE else None
        own = _max_steps(step)
        units = [(_max_steps(other), seconds) for other, seconds in alike]
        counted = [(steps, seconds) for steps, seconds in units if steps is not None]
        if own is not None and counted:
            return sum(seconds for _, seconds in counted) / sum(steps for steps, _ in counted) * own
        return sum(seconds for _, seconds in alike) / len(alike)

    def _share(self, step: Step) -> float:
        """Share of a running step that is done, by the rows of its metrics; 0 if unknown."""
        timing = self.table.get(step.name)
        share = self.rows(step) / timing.rows if timing is not None and timing.rows else 0.0
        return min(share, 0.95) if share >= EARLY else 0.0

    def _speeds(self, now: float, shares: Mapping[Key, float]) -> Callable[[str], float]:
        """Stage -> seconds here per second of the table, from completed work."""
        told: dict[str, float] = defaultdict(float)
        real: dict[str, float] = defaultdict(float)
        observed = [(step, 1.0, seconds) for step, seconds in self.finished]
        observed += [(run.step, shares[key], now - run.began) for key, run in self.running.items() if shares[key]]
        for step, share, seconds in observed:
            if step.name in self.table:
                told[step.stage] += share * self.table[step.name].seconds
                real[step.stage] += seconds
        votes = {stage: told[stage] / (told[stage] + TRUST) for stage in told}
        logs = {stage: math.log((real[stage] + 1.0) / (told[stage] + 1.0)) for stage in told}
        overall = math.exp(sum(votes[s] * logs[s] for s in told) / (sum(votes.values()) + VOTE_OF_TABLE))
        speeds = {stage: (real[stage] + overall * TRUST) / (told[stage] + TRUST) for stage in told}
        return lambda stage: speeds.get(stage, overall)


def _max_steps(step: Step) -> int | None:
    steps = getattr(step.config, "trainer", {}).get("max_steps")
    return steps if isinstance(steps, int) and steps > 0 else None


def rows_written(step: Step) -> int:
    """Rows of metrics that a training step has written, including those of its parts."""
    output = Path(step.config.output)
    count = 0
    for path in (output / "metrics.jsonl", *output.glob("*/metrics.jsonl")):
        try:
            count += path.read_bytes().count(b"\n")
        except OSError:
            continue
    return count


def timings(steps: Iterable[Step], seconds: Callable[[Step], float | None]) -> dict[str, dict[str, float]]:
    """Step name -> `seconds` and, if it has metrics, `rows`: means over the seeds for which `seconds` is known."""
    found: dict[str, list[tuple[float, int]]] = {}
    for step in steps:
        took = seconds(step)
        if took is not None:
            found.setdefault(step.name, []).append((took, rows_written(step)))
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: Collection[tuple[float, int]]) -> dict[str, float]:
    rows = sum(rows for _, rows in values) / len(values)
    seconds = round(sum(seconds for seconds, _ in values) / len(values), 1)
    return {"seconds": seconds, **({"rows": round(rows)} if rows else {})}
