"""Progress lines of a run: time, steps done, time left, and one line per result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rlt.outputs import Result
from rlt.recipe import Recipe, Step
from rlt.results.benchmarks import evaluation
from rlt.terminal import fitted
from rlt.timing import TimeLeft

HEARTBEAT = 20.0  # seconds without output before a line says what is running
SILENT = ("problems", "select", "best")  # stages that show no progress of their own


class Progress:
    """Prints lines with the elapsed time, the steps done, and, once known, the time left."""

    def __init__(self, steps: Sequence[Step], recipe: Recipe) -> None:
        self.started, self.done, self.total = time.monotonic(), 0, len(steps)
        self.time_left = TimeLeft(steps, recipe.head.jobs, recipe.timings)

    def say(self, text: str) -> None:
        now, about = time.monotonic(), ""
        left = self.time_left.left(now) if now - self.started > 5 and self.done < self.total else None
        if left is not None:
            about = f", about {clock(left)} left"
        print(fitted(f"[{clock(now - self.started)} {self.done}/{self.total}{about}] {text}"), flush=True)

    def begin(self, step: Step) -> None:
        self.time_left.begin(step, time.monotonic())
        self.say(f"{step.key} ...")

    def skip(self, step: Step, ended: int) -> None:
        self.done += 1
        self.time_left.skip(step)
        self.say(f"{step.key}: skipped, its loop ended at round {ended}")

    def end(self, step: Step, result: Result) -> None:
        self.done += 1
        self.time_left.end(step, result.seconds)
        self.say(f"{step.key}: {summary(result)}")


@contextmanager
def told_while_silent(stage: str, name: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Prints every HEARTBEAT seconds that a stage without its own progress bar is still running."""
    done, begun = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(HEARTBEAT):
            (say or print)(f"running: {name} ({time.monotonic() - begun:.0f} s)")

    if stage in SILENT:
        threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def summary(result: Result) -> str:
    """One line: the duration of a stage, and its first numbers or its solve rates."""
    if "benchmarks" in result.metrics:
        solved = evaluation(result.metrics)["benchmarks"]
        rates = ", ".join(f"{Path(name).stem} {row['pass@1']:.3f}" for name, row in solved.items())
        return f"done in {result.seconds:.1f} s (solved: {rates})"
    shown = {
        k: v for k, v in result.metrics.items() if isinstance(v, int | float) and k not in ("seconds", "exit_status")
    }
    numbers = ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in list(shown.items())[:4])
    return f"done in {result.seconds:.1f} s" + (f" ({numbers})" if numbers else "")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"
