"""The terminal's width, and lines that keep to it."""

from __future__ import annotations

import shutil
import textwrap


def terminal_width() -> int:
    """Columns of the terminal; 80 without a terminal."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def fitted(text: str, indent: int = 4) -> str:
    """A line wrapped to the terminal, its continuation indented; a path or a number is never split."""
    return textwrap.fill(
        text, terminal_width(), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
