"""Errors of rlt: one short hierarchy, each member also a standard exception, each message naming the fix."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class RltError(Exception):
    """Base of everything rlt raises on purpose; the command line prints it in one line, without a traceback."""


class ConfigError(RltError, ValueError):
    """A recipe, a flag or a format file is wrong: an unknown key, a value out of bounds, two options that exclude."""


class DataError(RltError, ValueError):
    """A data file is wrong; the message names file, row and column, and what to do."""


class RunError(RltError, RuntimeError):
    """A run directory cannot be used as asked: another recipe made it, or it belongs to something else."""


class ModelError(RltError, ValueError):
    """A model or tokenizer cannot be used: not a model folder, no chat template, a template that drops the thought."""


class ScoringError(RltError, ValueError):
    """One row cannot be scored (too long for the model, NaN, no tokens in a span); the run goes on without it."""


class ServerError(RltError, ConnectionError):
    """A server is absent, refuses, or answers what no client can use."""


class DependencyError(RltError, ImportError):
    """An optional dependency is missing; the message is its install line."""


def guarded(action: Callable[[], int]) -> int:
    """The exit status of `action`, with errors of rlt told in one line and no traceback."""
    try:
        return action()
    except RltError as error:
        print(f"rlt: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrlt: stopped. The same command goes on where it was.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
