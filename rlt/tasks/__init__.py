"""Tasks: what can be graded, and what can be generated without a download."""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from rlt.errors import ConfigError
from rlt.types import JsonRow, Problem


@dataclass(frozen=True, slots=True)
class Verdict:
    """A grader's verdict on one response: whether it is correct, and the answer extracted from it (None: none found).

    `error` says why a response could not be graded (it took too long, the grader's process died); it then counts as wrong.
    `score`, from 0 to 1, is for tasks that give partial credit; None for others.
    """

    correct: bool
    extracted: str | None
    error: str | None = None
    score: float | None = None


class Task(Protocol):
    """A module of `rlt.tasks`, or an object in one. `grade` is pure, quick, and never raises on what a model wrote."""

    def grade(self, solution: str, answer: str, question: str) -> Verdict:
        """The verdict on `solution`: the solution part of a response (the whole response if it has no tags)."""
        ...

    def check_answer(self, answer: str, question: str) -> str | None:
        """Why no response to this question can be graded (the answer cannot be parsed), or None."""
        ...


class GeneratingTask(Task, Protocol):
    """A task that generates its own problems."""

    def generate(self, count: int, seed: int, options: JsonRow, exclude: Iterable[str] = ()) -> list[Problem]:
        """`count` problems with distinct questions, none of which is in `exclude`; the same for the same seed."""
        ...


class GeneratedTask(GeneratingTask, Protocol):
    """A task that generates its own problems and explanations."""

    MIXTURES: dict[str, dict[str, float]]
    """Name of a mixture of experts -> the share of each kind."""

    def explain(self, problem: Problem, mixture: str, rng: random.Random) -> str:
        """An explanation by an expert drawn from `mixture`."""
        ...

    def vocabulary(self) -> list[str]:
        """Every word of questions, explanations and solutions."""
        ...


GRADERS = {
    "math": "rlt.tasks.math",
    "multiple_choice": "rlt.tasks.multiple_choice",
    "science": "rlt.tasks.science",
    "arithmetic": "rlt.tasks.arithmetic",
    "countdown": "rlt.tasks.countdown",
    "swaps": "rlt.tasks.swaps",
    "code": "rlt.tasks.code",
    "programs": "rlt.tasks.programs",
}


def load_generating_task(name: str) -> GeneratingTask:
    """The task of that name; raises ConfigError, listing those that qualify, if it generates no problems."""
    task = load_task(name)
    if not hasattr(task, "generate"):
        makers = [other for other in GRADERS if hasattr(load_task(other), "generate")]
        raise ConfigError(f"task {name!r} has no generator; tasks with one: {', '.join(makers)}, reasoning_gym/....")
    return task  # type: ignore[return-value]


def load_generated_task(name: str) -> GeneratedTask:
    """The task of that name; raises ConfigError if it has no simulated experts that explain its problems."""
    task = load_generating_task(name)
    if not hasattr(task, "MIXTURES"):
        raise ConfigError(f"task {name!r} has no simulated experts, so no explanations.")
    return task  # type: ignore[return-value]


def load_task(name: str) -> Task:
    """The task of that name; raises ConfigError with similar names."""
    if name.startswith("reasoning_gym/"):
        return import_module("rlt.tasks.reasoning_gym").task(name)  # type: ignore[no-any-return]
    if name not in GRADERS:
        near = difflib.get_close_matches(name, GRADERS, n=2) or sorted(GRADERS)
        raise ConfigError(f"unknown task {name!r}; did you mean {' or '.join(near)}?")
    return import_module(GRADERS[name])  # type: ignore[return-value]


def load_grader(name: str) -> Task:
    """The task of that name; raises DependencyError, with the fix, if this machine cannot grade it.

    A task that needs more than Python has a function `check_machine` that raises it.
    """
    task = load_task(name)
    getattr(task, "check_machine", lambda: None)()
    return task
