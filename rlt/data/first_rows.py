"""Checks the first rows of a file before a run begins: do they have what a stage needs?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from rlt.config import DataConfig
from rlt.data.problems import problem_of, rows_of
from rlt.data.rows import read_rows
from rlt.errors import DataError
from rlt.types import JsonMap, JsonRow

LOOKED_AT = 20
"""Rows looked at; one of them must be valid if invalid ones are skipped."""


def first_rows(data: DataConfig) -> Iterator[tuple[str, JsonRow]]:
    """`(where, row)` of the first rows that a stage would use."""
    return islice(rows_of(data), data.skip, data.skip + LOOKED_AT)


def one_passes(path: Path, check: Callable[[str, JsonMap], None], looked_at: int = 1) -> None:
    """Raises the first DataError of `check` if none of the first rows passes it."""
    errors = []
    for where, row in islice(read_rows(path), looked_at):
        try:
            return check(where, row)
        except DataError as error:
            errors.append(error)
    raise errors[0] if errors else DataError(f"{path}: has no rows.")


def has_column(name: str) -> Callable[[str, JsonMap], None]:
    """A check that a row has this column."""

    def check(where: str, row: JsonMap) -> None:
        if name not in row:
            raise DataError(f"{where}: column `{name}` is missing; the row has {', '.join(sorted(row))}.")

    return check


def needs_of_grade(where: str, row: JsonMap) -> None:
    """Raises DataError for a row that `grade` cannot use."""
    for name in ("response", "answer"):
        has_column(name)(where, row)


def needs_of_score(where: str, row: JsonMap) -> None:
    """Raises DataError for a row that `score` cannot use."""
    problem_of(dict(row), where, "0")
    if row.get("explanation") is None and row.get("completion") is None and "conversations" not in row:
        raise DataError(f"{where}: has neither `explanation` nor `completion`; scoring needs one of them.")
