"""Continuous batching of rewards: rows of many requests are scored together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from rlt.errors import RltError
from rlt.reward.items import ScoredRow
from rlt.reward.sides import Side
from rlt.types import Explanation

# Full batches taken from the queue at once: enough for sorting by length to save padding.
BATCHES = 4
CHARACTERS_PER_TOKEN = 4


class Engine(Protocol):
    """The part of `rlt.reward.scoring.RewardEngine` that the queue uses."""

    def score(self, items: Sequence[Explanation], sides: Sequence[Side | None] | None = None) -> list[ScoredRow]:
        """The reward of each explanation, in order."""


class QueueFull(RltError):
    """The queue is full. `retry_after`: seconds until it should have room."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} rows are waiting; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


@dataclass(eq=False)
class _Waiting:
    explanation: Explanation
    side: Side | None
    future: Future[ScoredRow] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    @property
    def length(self) -> int:
        one = self.explanation
        return len(one.problem.question) + len(one.problem.solution) + len(one.text)


class RewardQueue:
    """Rows wait here until `engine` scores them in its own thread.

    A batch starts when `batch_tokens` of text wait, or when the oldest row has waited `max_wait` seconds. Of the rows taken
    at once, the longest are scored first, one forward pass at a time. `submit` raises QueueFull beyond `max_rows`. A row
    whose future is cancelled before it is taken is not scored. `scored` is called with each batch's rows, for metrics.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        batch_tokens: int,
        max_wait: float,
        max_rows: int,
        scored: Callable[[Sequence[ScoredRow]], None] = lambda rows: None,
    ) -> None:
        self.engine, self.max_wait, self.max_rows, self.scored = engine, max_wait, max_rows, scored
        self.room = batch_tokens * CHARACTERS_PER_TOKEN
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._closing = False
        self._rate = 1.0  # rows per second, last measured
        self._thread = threading.Thread(target=self._work, name="rlt-reward", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, rows: Sequence[tuple[Explanation, Side | None]]) -> list[Future[ScoredRow]]:
        """A future for each row. Raises QueueFull, accepting none, if there is no room for all."""
        new = [_Waiting(explanation, side) for explanation, side in rows]
        with self._changed:
            if self._closing:
                raise QueueFull(len(self._waiting), 1.0)
            self._waiting = [one for one in self._waiting if not one.future.cancelled()]
            if len(self._waiting) + len(new) > self.max_rows:
                raise QueueFull(len(self._waiting), max(1.0, len(self._waiting) / self._rate))
            self._waiting += new
            self._changed.notify()
        return [one.future for one in new]

    def close(self) -> None:
        """Score the waiting rows, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            for batch in self._batches(taken):
                self._score(batch)

    def _take(self) -> list[_Waiting] | None:
        """The oldest rows, enough for BATCHES forward passes; None when the queue is closed and empty."""
        with self._changed:
            while True:
                self._waiting = [one for one in self._waiting if not one.future.cancelled()]
                full = sum(one.length for one in self._waiting) >= self.room
                left = self._waiting[0].since + self.max_wait - time.monotonic() if self._waiting else None
                if self._closing or full or (left is not None and left <= 0):
                    break
                self._changed.wait(left)
            if not self._waiting:
                return None
            taken, used = 0, 0
            for one in self._waiting:
                used += one.length
                if taken and used > BATCHES * self.room:
                    break
                taken += 1
            rows, self._waiting = self._waiting[:taken], self._waiting[taken:]
            return [one for one in rows if one.future.set_running_or_notify_cancel()]

    def _batches(self, rows: list[_Waiting]) -> list[list[_Waiting]]:
        batches: list[list[_Waiting]] = []
        longest = 0
        for one in sorted(rows, key=lambda one: -one.length):
            if not batches or longest * (len(batches[-1]) + 1) > self.room:
                batches.append([])
                longest = one.length
            batches[-1].append(one)
        return batches

    def _score(self, batch: list[_Waiting]) -> None:
        started = time.monotonic()
        try:
            rows = self.engine.score([one.explanation for one in batch], [one.side for one in batch])
        except Exception as error:  # raised by the rows' futures; the queue must keep working for other requests
            for one in batch:
                one.future.set_exception(error)
            return
        self._rate = len(batch) / max(1e-6, time.monotonic() - started)
        self.scored(rows)
        for one, row in zip(batch, rows, strict=True):
            one.future.set_result(row)
