"""Datasets to problems: known schemas, and errors that name file, row and column."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import overload

from rlt.config import AnyData, DataConfig, SourceConfig
from rlt.data.code_rows import code_row
from rlt.data.rows import ROW_FILES, read_rows
from rlt.errors import DataError
from rlt.text.formats import Format, check_problem
from rlt.types import JsonRow, Problem

COLUMNS = ("id", "question", "solution", "answer", "explanation", "system")
LABELS = ("task", "source")  # other data sets use these names for other things: only text counts


class Problems(Sequence[Problem]):
    """Valid problems in the order of the data, and why rows were dropped (`on_invalid: skip`)."""

    def __init__(self, problems: Sequence[Problem], dropped: Sequence[str] = ()) -> None:
        self._problems = tuple(problems)
        self.dropped = tuple(dropped)

    def __len__(self) -> int:
        return len(self._problems)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Problem, ...]: ...
    def __getitem__(self, index: int | slice) -> Problem | tuple[Problem, ...]:
        return self._problems[index]

    def summary(self) -> str:
        """One line: the number of problems, and of dropped rows with their reasons."""
        if not self.dropped:
            return f"{len(self)} problems"
        reasons = Counter(line.partition(": ")[2] for line in self.dropped)
        listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        return f"{len(self)} problems, {len(self.dropped)} rows dropped ({listed})"


class Dropped(list[str]):
    """In place of a list of dropped rows: keeps only their number and the first."""

    number = 0
    first = "there are none"

    def append(self, line: str) -> None:
        self.first = line if self.number == 0 else self.first
        self.number += 1


def load_problems(data: AnyData, fmt: Format | None = None, *, need: tuple[str, ...] = ()) -> Problems:
    """All valid problems of `data`, in order. `need` names optional columns that every row must have.

    With `fmt`, questions and solutions that contain one of its tags are invalid. At the first invalid row, raises DataError
    with file, row, column and the fix; with `data.on_invalid: skip`, drops the row and records it in `.dropped`.
    """
    dropped: list[str] = []
    problems = list(iter_problems(data, fmt, need=need, dropped=dropped))
    if not problems:
        reason = f" All {len(dropped)} rows are invalid; the first: {dropped[0]}" if dropped else " It has no rows."
        raise DataError(f"{data.path}: no problem left.{reason}")
    duplicates = [key for key, count in Counter(problem.id for problem in problems).items() if count > 1]
    if duplicates:
        raise DataError(
            f"{data.path}: column `id` has duplicates ({duplicates[0]!r} and {len(duplicates) - 1} more). Ids must be unique."
        )
    return Problems(problems, dropped)


def iter_problems(
    data: AnyData, fmt: Format | None = None, *, need: tuple[str, ...] = (), dropped: list[str] | None = None
) -> Iterator[Problem]:
    """The problems of `data`, read lazily, for files larger than memory; invalid rows are treated as in `load_problems`.

    `skip` and `limit` both count rows of the file, so two parts of a file never overlap. With several sources, each
    problem has its `source`, and `SOURCE/ID` as id.
    """
    for source in data.sources:
        on_invalid = "skip" if "skip" in (data.on_invalid, source.on_invalid) else "error"
        yield from _problems_of(source, on_invalid, fmt, need, dropped)


def _problems_of(
    source: DataConfig, on_invalid: str, fmt: Format | None, need: tuple[str, ...], dropped: list[str] | None
) -> Iterator[Problem]:
    for number, where, row in numbered_rows(source):
        try:
            problem = problem_in(source, row, where, str(number))
            for column in need:
                if getattr(problem, column) is None:
                    raise DataError(f"{where}: column `{column}` is missing, and this stage needs it.")
            if fmt is not None:
                check_problem(fmt, problem, where)
        except DataError as error:
            if on_invalid == "error":
                raise DataError(f"{error} Or set `on_invalid: skip`.") from error
            if dropped is not None:
                dropped.append(str(error))
            continue
        yield problem


def numbered_rows(source: DataConfig) -> Iterator[tuple[int, str, JsonRow]]:
    """`(number in the file, where, row)` of the rows that `skip` and `limit` leave of one data set."""
    stop = None if source.limit is None else source.skip + source.limit
    for number, (where, row) in islice(enumerate(rows_of(source)), source.skip, stop):
        yield number, where, row


def problem_in(source: DataConfig, row: JsonRow, where: str, default_id: str) -> Problem:
    """The problem in a row of this source, with the source's task and name; rows of code go through `code_row`."""
    row = code_row(row, where) if source.task == "code" else row
    return labelled(problem_of(row, where, default_id, source.columns), source)


def labelled(problem: Problem, source: DataConfig) -> Problem:
    """The problem with the source's task and, if there are several sources, its name."""
    problem = replace(problem, task=source.task or problem.task)
    if isinstance(source, SourceConfig):
        problem = replace(problem, id=f"{source.label}/{problem.id}", source=source.label)
    return problem


# -- one row ---------------------------------------------------------------------------------------------------------------


def problem_of(row: JsonRow, where: str, default_id: str, columns: dict[str, str] | None = None) -> Problem:
    """The problem in one row: by the mapping `columns` (ours -> the file's), else by a known schema.

    Known without a mapping: question/solution (+ answer, explanation, system, id), Bespoke-Stratos (`system`,
    `conversations`), GSM8K (`question`, `answer` with `####`), MATH (`problem`, `solution`). Texts are not changed; an
    `answer` or `solution` may be a number. Raises DataError, naming the column, for any other value.
    """
    values = _mapped(row, where, columns) if columns else _known_schema(row, where)
    for column in ("question", "solution"):
        text = values.get(column)
        if text is None or (isinstance(text, str) and not text.strip()):
            state = "missing" if text is None else "empty"
            raise DataError(f"{where}: column `{column}` is {state}; every problem needs a {column}. Drop the row.")
    key = values.get("id", row.get("id"))
    for column in ("answer", "solution"):  # `columns` may map an answer to `solution`
        value = values.get(column)
        if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            values[column] = str(value)
    values["id"] = default_id if key is None else str(key)
    values |= {label: row[label] for label in LABELS if isinstance(row.get(label), str)}
    return Problem(**{column: text_of(value, where, column) for column, value in values.items()})  # type: ignore[arg-type]


def text_of(value: object, where: str, column: str) -> str | None:
    """The text in a column, or None; raises DataError for other types and for lone surrogates."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{where}: column `{column}` is a {type(value).__name__}, not text. Fix or drop the row.")
    if half := re.search("[\ud800-\udfff]", value):
        raise DataError(
            f"{where}: column `{column}` has a lone surrogate ({half[0]!a}) at position {half.start()}. Fix or drop the row."
        )
    return value


def _columns(row: JsonRow) -> str:
    # Names may contain lone surrogates too, which cannot be printed.
    return ", ".join(sorted(row)).encode("utf-8", "backslashreplace").decode()


def _mapped(row: JsonRow, where: str, columns: dict[str, str]) -> JsonRow:
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        raise DataError(f"`columns`: unknown column {unknown[0]!r}; expected one of {', '.join(COLUMNS)}.")
    for ours, theirs in columns.items():
        if theirs not in row:
            raise DataError(f"{where}: column `{theirs}` (mapped to `{ours}`) is missing; the row has {_columns(row)}.")
    rest = {column: row[column] for column in COLUMNS if column in row and column not in columns}
    return {**rest, **{ours: row[theirs] for ours, theirs in columns.items()}}


def _known_schema(row: JsonRow, where: str) -> JsonRow:
    if "conversations" in row and (row.get("question") is None or row.get("solution") is None):
        return _stratos(row, where)
    if "problem" in row and "question" not in row:
        row = {**row, "question": row["problem"]}
    if "question" not in row:
        raise DataError(
            f"{where}: column `question` is missing; the row has {_columns(row)}. Map its columns with "
            "`columns: {question: THEIRS, solution: THEIRS}`."
        )
    answer = row.get("answer")
    if row.get("solution") is None and isinstance(answer, str) and "####" in answer:
        return _gsm8k(row, answer)
    return {column: row[column] for column in COLUMNS if column in row}


def _gsm8k(row: JsonRow, worked: str) -> JsonRow:
    # The worked answer contains calculator marks (<<2+3=5>>), which a person would not write.
    steps, _, answer = worked.rpartition("####")
    answer = answer.strip().replace(",", "")
    steps = re.sub(r"<<[^>]*>>", "", steps).strip()
    rest = {column: row[column] for column in COLUMNS if column in row}
    return {**rest, "solution": f"{steps}\nThe answer is {answer}.", "answer": answer}


_STRATOS = re.compile(
    r"<\|begin_of_thought\|>(?P<thought>.*?)<\|end_of_thought\|>\s*<\|begin_of_solution\|>(?P<solution>.*?)<\|end_of_solution\|>",
    re.DOTALL,
)


def _stratos(row: JsonRow, where: str) -> JsonRow:
    turns = row["conversations"]
    texts: JsonRow = {}
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict):
            who = str(turn.get("from"))
            texts.setdefault({"human": "user", "gpt": "assistant"}.get(who, who), turn.get("value"))
    response = texts.get("assistant")
    if not isinstance(texts.get("user"), str) or not isinstance(response, str):
        raise DataError(
            f"{where}: column `conversations` needs a `user` and an `assistant` turn with `from` and `value`."
        )
    match = _STRATOS.search(response)
    if match is None:
        raise DataError(
            f"{where}: column `conversations`: the assistant's turn has no complete thought and solution tags. "
            "Drop the row."
        )
    # The format adds padding around an explanation, but not around a solution, which is kept exactly.
    values = {"question": texts["user"], "solution": match["solution"], "explanation": match["thought"].strip("\n")}
    return values | ({"system": row["system"]} if row.get("system") else {})


# -- where rows come from ----------------------------------------------------------------------------------------------------


def names_a_file(path: str) -> bool:
    """Whether `path` is that of a file or folder, rather than the name of a dataset on the hub."""
    there = Path(path).expanduser()
    return there.exists() or there.suffix in ROW_FILES or path.startswith((".", "/", "~"))


def rows_of(data: DataConfig) -> Iterable[tuple[str, JsonRow]]:
    """`(where, row)` of each row of a file, a folder or a hub dataset; raises DataError if it cannot be loaded."""
    path = Path(data.path).expanduser()
    if names_a_file(data.path):
        split = path / data.split
        return read_rows(split if path.is_dir() and split.is_dir() else path)
    return _hub_rows(data)


def _hub_rows(data: DataConfig) -> Iterator[tuple[str, JsonRow]]:
    import datasets

    try:
        rows = datasets.load_dataset(data.path, data.name, split=data.split, streaming=data.stream)
    except (OSError, ValueError, ConnectionError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE") == "1" or isinstance(error, ConnectionError)
        reason = "the hub cannot be reached" if offline else str(error).strip().splitlines()[0]
        raise DataError(
            f"{data.path}: no such file, and cannot be loaded from the hub ({reason}). Use a local file as `data`, or check "
            "the name."
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{data.path} ({data.split}) row {number}", dict(row)
