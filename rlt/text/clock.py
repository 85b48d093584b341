"""The date that chat templates print, pinned per run so that prompts do not change overnight."""

from __future__ import annotations

import os
from datetime import date

# An environment variable, so that child processes of a stage print the same date.
VARIABLE = "RLT_DATE"


def pinned_date() -> str:
    """The date of this run, such as 2025-01-31; today's if none is pinned."""
    return os.environ.get(VARIABLE) or date.today().isoformat()


def pin_date(day: str) -> None:
    """Pin the date for this process and its children."""
    os.environ[VARIABLE] = date.fromisoformat(day).isoformat()


def strftime_now(pattern: str) -> str:
    """The pinned date in the format `pattern`, for templates that ask transformers for the time (Llama 3.2, gpt-oss)."""
    return date.fromisoformat(pinned_date()).strftime(pattern)
