"""Tables and paragraphs as text for a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

KEEP = "\u00a0"
"""A space at which cells are not wrapped; printed as a plain space."""


def report_width() -> int:
    """Width of a report in columns: 100, or the terminal's if it is narrower."""
    return max(40, min(100, shutil.get_terminal_size((100, 24)).columns))


def text_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int | None = None, width: int | None = None
) -> str:
    """A table aligned with spaces, with a line under the head; columns from `numbers_from` on are right-aligned.

    With `width`, cells are wrapped at spaces until the table is no wider.
    """
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    if width is not None:
        words = [max(len(word) for row in [head, *rows] for word in row[i].split(" ")) for i in range(len(head))]
        _narrow(widths, words, width)
    right = len(head) if numbers_from is None else numbers_from

    def lines(row: Sequence[str]) -> list[str]:
        cells = [_wrapped(cell, column) for cell, column in zip(row, widths, strict=True)]
        return [
            "  ".join(
                part.rjust(column) if i >= right else part.ljust(column)
                for i, (part, column) in enumerate(zip(parts, widths, strict=True))
            ).rstrip()
            for parts in zip_longest(*cells, fillvalue="")
        ]

    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    return "\n".join([*lines(head), rule, *(line for row in rows for line in lines(row))]).replace(KEEP, " ")


def _narrow(widths: list[int], words: Sequence[int], width: int) -> None:
    """Narrow the column with the most room beyond its longest word, then the widest, until the table fits."""
    while sum(widths) + 2 * len(widths) - 2 > width and max(widths) > 1:
        spare = [column - word for column, word in zip(widths, words, strict=True)]
        slack = max(range(len(widths)), key=lambda i: spare[i])
        widths[slack if spare[slack] > 0 else widths.index(max(widths))] -= 1


def _wrapped(cell: str, width: int) -> list[str]:
    return textwrap.wrap(cell, width, break_on_hyphens=False) if len(cell) > width else [cell]


def split_tables(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Tables below each other, each with the first column and as many of the others as fit the report's width."""
    width = report_width()
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    blocks: list[list[int]] = [[0]]
    for i in range(1, len(head)):
        if len(blocks[-1]) > 1 and sum(widths[j] + 2 for j in [*blocks[-1], i]) - 2 > width:
            blocks.append([0])
        blocks[-1].append(i)
    tables = [text_table([head[i] for i in block], [[row[i] for i in block] for row in rows]) for block in blocks]
    return "\n\n".join(tables)


def legend(meanings: Sequence[tuple[str, str]]) -> str:
    """One wrapped line per column or row of a table: `  name: meaning`."""
    return "\n".join(
        textwrap.fill(f"{name}: {meaning}", report_width(), initial_indent="  ", subsequent_indent="    ")
        for name, meaning in meanings
    )


def paragraph(text: str) -> str:
    """`text` wrapped to the width of a report."""
    return textwrap.fill(" ".join(text.split()), report_width(), break_on_hyphens=False, break_long_words=False)


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the report: title, cells, and the meaning of its columns or rows."""

    title: str
    head: list[str]
    rows: list[list[str]]
    meanings: tuple[tuple[str, str], ...] = ()
    split: bool = False
    """Whether columns that do not fit move to a table below; otherwise cells are wrapped."""

    def __str__(self) -> str:
        body = (
            split_tables(self.head, self.rows) if self.split else text_table(self.head, self.rows, width=report_width())
        )
        return "\n".join([paragraph(self.title), "", body, *([legend(self.meanings)] if self.meanings else [])])


def said_once(tables: Iterable[Table]) -> list[Table]:
    """The tables without the meanings that an earlier one has."""
    known: set[tuple[str, str]] = set()
    found = []
    for table in tables:
        found.append(replace(table, meanings=tuple(one for one in table.meanings if one not in known)))
        known |= {*table.meanings}
    return found
