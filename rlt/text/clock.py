"""The date that chat templates print, pinned per run: prompts must not change overnight."""

from __future__ import annotations

import os
from datetime import date

# In the environment, so that the processes that a stage starts print the same date.
VARIABLE = "RLT_DATE"


def pinned_date() -> str:
    """The date of this run, as 2025-01-31; today's where none was pinned."""
    return os.environ.get(VARIABLE) or date.today().isoformat()


def pin_date(day: str) -> None:
    """Pin the date for this process and those that it starts."""
    os.environ[VARIABLE] = date.fromisoformat(day).isoformat()


def strftime_now(pattern: str) -> str:
    """The pinned date formatted as `pattern` says, for templates that ask transformers for the time (Llama 3.2, gpt-oss)."""
    return date.fromisoformat(pinned_date()).strftime(pattern)
