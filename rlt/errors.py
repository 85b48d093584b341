"""Errors of rlt: each is also a standard exception, and its message names the fix."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence


class RltError(Exception):
    """Base of all errors that rlt raises on purpose; the command line prints them without a traceback."""


class ConfigError(RltError, ValueError):
    """A recipe, a flag or a format file is wrong: an unknown key, a value out of bounds, two options in conflict."""


class ProblemsFound(ConfigError):
    """Everything found wrong before a run: `problems`, one line each."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        listed = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(
            f"{where}: {self.problems[0]}"
            if len(self.problems) == 1
            else f"{where}: {len(self.problems)} problems:{listed}"
        )


class DataError(RltError, ValueError):
    """A data file is wrong; the message names file, row and column, and the fix."""


class RunError(RltError, RuntimeError):
    """A run cannot proceed: its folder belongs to another recipe, an input is missing, a process failed."""


class DivergedError(RunError):
    """Training made the loss NaN or infinite; the weights are lost."""


class ModelError(RltError, ValueError):
    """A model or tokenizer cannot be used: not a model folder, no chat template, a template that drops text."""


class ScoringError(RltError, ValueError):
    """One row cannot be scored (too long for the model, NaN, no tokens in a span); other rows are unaffected."""


class ServerError(RltError, ConnectionError):
    """A server is unreachable, refuses a request, or sends an unusable answer."""


class DependencyError(RltError, ImportError):
    """An optional dependency is missing; the message has the install command."""


def guarded(action: Callable[[], int]) -> int:
    """The exit status of `action`; 2 for an error of rlt, which is printed without a traceback."""
    try:
        return action()
    except RltError as error:
        print(f"rlt: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrlt: interrupted. The same command resumes.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
