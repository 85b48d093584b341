"""Files of rows: JSONL, JSON, Parquet and CSV, read lazily and written crash-safe."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rlt.errors import DataError, RltError
from rlt.types import JsonMap, JsonRow

if TYPE_CHECKING:
    import pyarrow

ROW_FILES = (".jsonl", ".json", ".parquet", ".csv")


def read_rows(path: Path) -> Iterator[tuple[str, JsonRow]]:
    """`(where, row)` of each row of a file, or of a folder's row files by name, read lazily.

    `where` is such as `train.jsonl line 12` or `train.parquet row 12`, counted from 1. Raises DataError for a missing
    file, an unknown extension, or a line that is not a JSON object.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(
            file for file in path.iterdir() if file.suffix in ROW_FILES and not file.name.endswith("stage.json")
        )
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
    elif path.suffix == ".csv":
        yield from _csv_rows(path)
    else:
        raise DataError(f"{path}: unknown file extension; expected one of {', '.join(ROW_FILES)}.")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, JsonRow]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where}: not JSON ({error}). Fix or remove the line.") from error
            yield where, _object(row, where)


def _json_rows(path: Path) -> Iterator[tuple[str, JsonRow]]:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path.name}: not JSON ({error}).") from error
    if not isinstance(rows, list):
        raise DataError(f"{path.name}: a JSON file must be a list of objects; use .jsonl for one object per line.")
    for number, row in enumerate(rows, 1):
        yield f"{path.name} row {number}", _object(row, f"{path.name} row {number}")


def _csv_rows(path: Path) -> Iterator[tuple[str, JsonRow]]:
    """Rows below a line of column names. Values are text, or None if empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file, strict=True), 1):
                where = f"{path.name} row {number}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: the number of values differs from the columns. Quote texts with commas.")
                yield where, {column: value or None for column, value in row.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: not a CSV file in UTF-8 ({error}).") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, JsonRow]]:
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


def _object(row: object, where: str) -> JsonRow:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be a JSON object, not {type(row).__name__}.")
    return row


class JsonlWriter(AbstractContextManager["JsonlWriter"]):
    """Appends rows to a JSONL file; `read_rows` sees whole rows at every moment, even after `kill -9`.

    Opening cuts off a half-written last line. Raises DataError on a full disk or in an unwritable folder; earlier rows are
    kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab+", buffering=0)  # noqa: SIM115
            self._cut_half_line()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}). Earlier rows are kept.") from error

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

    def write(self, rows: Iterable[JsonMap]) -> None:
        """Append the rows in one write: all of them, or on failure none."""
        data = b"".join(_line(row) for row in rows)
        position = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError as error:
            self._file.truncate(position)
            raise DataError(f"{self.path}: cannot be written ({error.strerror}). Earlier rows are kept.") from error

    def close(self) -> None:
        self._file.close()

    def __exit__(self, *error: object) -> None:
        self.close()


def write_rows(path: Path, rows: Iterable[JsonMap], schema: pyarrow.Schema | None = None) -> int:
    """The number of rows written to a JSONL or Parquet file, which replaces `path` only when complete.

    With a `schema`, Parquet rows are written a thousand at a time; otherwise the schema is inferred from all rows. Raises
    DataError on a full disk or in an unwritable folder; no partial file remains.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            count = _write_parquet(partial, rows, schema) if path.suffix == ".parquet" else _write_jsonl(partial, rows)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        if isinstance(error, RltError):  # raised while making the rows; a ServerError is an OSError too
            raise
        raise DataError(f"{path}: cannot be written ({error.strerror or error}). Earlier rows are kept.") from error
    return count


def _line(row: JsonMap) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate, which JSON can only escape
        return json.dumps(row).encode() + b"\n"


def _write_jsonl(path: Path, rows: Iterable[JsonMap]) -> int:
    count = 0
    with path.open("wb") as file:
        for count, row in enumerate(rows, 1):  # noqa: B007
            file.write(_line(row))
    return count


def _write_parquet(path: Path, rows: Iterable[JsonMap], schema: pyarrow.Schema | None) -> int:
    import pyarrow
    import pyarrow.parquet

    if schema is None:
        table = pyarrow.Table.from_pylist(list(rows))
        pyarrow.parquet.write_table(table, path)
        return int(table.num_rows)
    count, source = 0, iter(rows)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(source, 1000)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))
            count += len(group)
    return count


def write_text(path: Path, text: str) -> None:
    """Replace a file's text atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
