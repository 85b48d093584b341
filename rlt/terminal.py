"""The terminal: its width, wrapped lines, and whether to be quiet."""

from __future__ import annotations

import os
import shutil
import textwrap


def terminal_width() -> int:
    """Columns of the terminal; 80 without a terminal."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def quiet() -> bool:
    """Whether progress bars and tables are off: RLT_QUIET is set for steps that run in parallel."""
    return os.environ.get("RLT_QUIET") == "1"


def fitted(text: str, indent: int = 4) -> str:
    """A line wrapped to the terminal, continuation lines indented; paths and numbers are never split."""
    return textwrap.fill(
        text, terminal_width(), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
