"""Files of rows: JSONL, JSON and Parquet, read lazily; JSONL written so that it is valid at every moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from rlt.errors import DataError

ROW_FILES = (".jsonl", ".json", ".parquet")


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(where, row)` of each row of a file, or of the row files of a folder in order of name; never the whole file.

    `where` reads `train.jsonl line 12` or `train.parquet row 12`, counted from 1. Raises DataError for a missing file, an
    unknown ending, or a line that is not a JSON object.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in ROW_FILES and not file.name.endswith("stage.json"))
        if not files:
            raise DataError(f"{path}: no {', '.join(ROW_FILES)} file in this folder.")
        for file in files:
            yield from read_rows(file)
        return
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix == ".json":
        yield from _json_rows(path)
    elif path.suffix == ".jsonl":
        yield from _jsonl_rows(path)
    else:
        raise DataError(f"{path}: unknown ending; rows are read from {', '.join(ROW_FILES)}.")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where}: not JSON ({error}). Mend or remove the line.") from error
            yield where, _object(row, where)


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path.name}: not JSON ({error}).") from error
    if not isinstance(rows, list):
        raise DataError(f"{path.name}: a JSON file must hold a list of objects; use .jsonl for one object a line.")
    for number, row in enumerate(rows, 1):
        yield f"{path.name} row {number}", _object(row, f"{path.name} row {number}")


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path.name}: not a Parquet file ({error}).") from error
    with file:
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path.name} row {number}", row


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be a JSON object, not {type(row).__name__}.")
    return row


class JsonlWriter:
    """Appends rows to a JSONL file; what `read_rows` sees is whole rows at every moment, also after `kill -9`.

    Opening cuts off a last line that was being written when the process died. A full disk or an unwritable folder raises
    DataError, and the rows before stay.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab+", buffering=0)  # noqa: SIM115
            self._cut_half_line()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}). What was written before is kept.") from error

    def _cut_half_line(self) -> None:
        size = end = self._file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - 65536)
            self._file.seek(begin)
            newline = self._file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        if end != size:
            self._file.truncate(end)

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append the rows in one write, so that they arrive together or the file is cut back to before them."""
        data = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        position = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError as error:
            self._file.truncate(position)
            raise DataError(f"{self.path}: cannot be written ({error.strerror}). What was written before is kept.") from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """The number of rows written to a JSONL or Parquet file, which replaces `path` only when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    count = 0
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.Table.from_pylist(list(rows))
        pyarrow.parquet.write_table(table, partial)
        count = table.num_rows
    else:
        with partial.open("wb") as file:
            for count, row in enumerate(rows, 1):  # noqa: B007
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    os.replace(partial, path)
    return count
