"""Explanations on disk: shards of whole problems, each complete or absent, and a dataset card.

A shard's rows first go to an append-only journal under `state/`. With its last row, the shard is written as a whole, in
the order of the data, and the journal is removed. A process can be killed between any two writes: visible files are
always valid, and a resumed run leaves the same files as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rlt.data.problems import problem_of, text_of
from rlt.data.rows import JsonlWriter, read_rows, write_rows, write_text
from rlt.errors import DataError
from rlt.text.formats import Format, check_problem
from rlt.types import Explanation, ExplanationRow, JsonRow

if TYPE_CHECKING:
    import pyarrow

# Approximate number of rows in a shard; a shard is sorted in memory.
SHARD_ROWS = 1000

COLUMNS = {
    "id": "string", "problem": "string", "sample": "int64", "question": "string", "solution": "string",
    "answer": "string", "system": "string", "explanation": "string", "completion": "string", "closed": "bool",
    "finish_reason": "string", "prompt_tokens": "int64", "completion_tokens": "int64", "logprob_sum": "float64",
    "seed": "int64", "engine": "string", "text_only": "bool", "task": "string", "source": "string",
}  # fmt: skip


def explanation_of(
    row: JsonRow, where: str, default_id: str, fmt: Format, columns: dict[str, str] | None = None
) -> Explanation:
    """The explanation in one row of any file: its `completion`, or else its `explanation`, which is finished text.

    Raises DataError, naming the row and the column, if the row has neither, if the `explanation` contains the closing tag,
    and as `problem_of` and `check_problem` do.
    """
    problem, tag = problem_of(row, where, default_id, columns), fmt.tags.explanation.close
    check_problem(fmt, problem, where)
    completion = text_of(row.get("completion"), where, "completion")
    # Files of earlier versions have no `task` and `source`.
    if completion is not None and COLUMNS.keys() - {"task", "source"} <= row.keys():
        return Explanation.from_row(cast(ExplanationRow, row), tag)
    if completion is not None:
        return replace(fmt.completed(problem, completion), id=problem.id)
    if problem.explanation is None:
        raise DataError(f"{where}: has neither `explanation` nor `completion`. Add one of these columns.")
    if tag in problem.explanation:
        raise DataError(
            f"{where}: column `explanation` contains the tag {tag}. Keep only the text before it, or rename the column to "
            "`completion`."
        )
    return replace(fmt.finished(problem, problem.explanation), id=problem.id)


class Shards:
    """The explanations of one folder: `add` them in any order; each shard is written when it is complete.

    There are `problems` problems, numbered by their place in the data, with `samples` rows each; those `left_out` have
    none.
    """

    def __init__(
        self,
        folder: Path,
        fmt: Format,
        problems: int,
        samples: int,
        file_format: str = "jsonl",
        left_out: Collection[int] = frozenset(),
    ) -> None:
        self.folder, self.state, self.problems, self.samples = folder, folder / "state", problems, samples
        self.left_out = left_out
        self.file_format = file_format
        self.per_shard = max(1, SHARD_ROWS // samples)
        self._padding, self._tag = fmt.padding, fmt.tags.explanation.close
        self._open: dict[int, tuple[JsonlWriter, set[tuple[int, int]]]] = {}

    @property
    def count(self) -> int:
        """Total number of shards."""
        return math.ceil(self.problems / self.per_shard)

    def path(self, shard: int) -> Path:
        return self.folder / f"explanations-{shard:05d}.{self.file_format}"

    def written(self) -> int:
        """Number of rows on disk, in shards and journals."""
        whole = sum(self._size(shard) for shard in range(self.count) if self.path(shard).exists())
        return whole + sum(len(self._journal(shard)[1]) for shard in self._journals())

    def missing(self) -> Iterator[tuple[int, int]]:
        """`(position, sample)` of each row not yet on disk, in the order of the data."""
        for shard in range(self.count):
            if self.path(shard).exists():
                # The process may have died between completing the shard and removing its journal.
                self._journal_path(shard).unlink(missing_ok=True)
                continue
            done = set(self._journal(shard)[1]) if self._journal_path(shard).exists() else set()
            if len(done) == self._size(shard):
                self._seal(shard)
                continue
            for position in self._positions(shard):
                yield from ((position, sample) for sample in range(self.samples) if (position, sample) not in done)

    def add(self, position: int, explanation: Explanation) -> None:
        """Write one explanation of the problem at this position. On a full disk, raises DataError; earlier rows are kept."""
        shard = position // self.per_shard
        journal, done = self._journal(shard)
        journal.write([{"position": position, "row": explanation.to_row(self._padding, self._tag)}])
        done.add((position, explanation.sample))
        if len(done) == self._size(shard):
            self._seal(shard)

    def explanations(self) -> Iterator[Explanation]:
        """All explanations of the complete shards, in the order of the data, read lazily."""
        for shard in range(self.count):
            yield from (
                Explanation.from_row(cast(ExplanationRow, row), self._tag) for _, row in read_rows(self.path(shard))
            )

    def close(self) -> None:
        """Close the journals."""
        for journal, _ in self._open.values():
            journal.close()
        self._open.clear()

    def _positions(self, shard: int) -> list[int]:
        whole = range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.problems))
        return [position for position in whole if position not in self.left_out]

    def _size(self, shard: int) -> int:
        return len(self._positions(shard)) * self.samples

    def _journal_path(self, shard: int) -> Path:
        return self.state / f"journal-{shard:05d}.jsonl"

    def _journals(self) -> list[int]:
        return [s for s in range(self.count) if self._journal_path(s).exists() and not self.path(s).exists()]

    def _journal(self, shard: int) -> tuple[JsonlWriter, set[tuple[int, int]]]:
        if shard not in self._open:
            path = self._journal_path(shard)
            writer = JsonlWriter(path)  # cuts off a half-written line
            self._open[shard] = (writer, {key for key, _ in _noted(path)})
        return self._open[shard]

    def _seal(self, shard: int) -> None:
        journal, _ = self._journal(shard)
        path = self._journal_path(shard)
        rows: dict[tuple[int, int], ExplanationRow] = {}
        for key, row in _noted(path):
            rows.setdefault(key, row)
        write_rows(
            self.path(shard), (rows[key] for key in sorted(rows)), schema() if self.file_format == "parquet" else None
        )
        journal.close()
        del self._open[shard]
        path.unlink()


def schema(more: dict[str, str] | None = None) -> pyarrow.Schema:
    """The Parquet schema of explanation rows, plus the columns `more`; fixed, so that it is the same for all shards."""
    import pyarrow

    kinds = {
        "string": pyarrow.string(),
        "int64": pyarrow.int64(),
        "float64": pyarrow.float64(),
        "bool": pyarrow.bool_(),
    }
    return pyarrow.schema([(name, kinds[kind]) for name, kind in {**COLUMNS, **(more or {})}.items()])


def write_card(folder: Path, files: dict[str, str], text: str, more: dict[str, str] | None = None) -> None:
    """Write a README.md with which `datasets.load_dataset(folder)` opens the rows.

    `files`: configuration name -> pattern of its files; the first is the default. `more`: further columns.
    """
    lines = ["---", "configs:"]
    for number, (name, pattern) in enumerate(files.items()):
        lines += [
            f"- config_name: {name}",
            f"  data_files: {json.dumps(pattern)}",
            *(["  default: true"] if not number else []),
        ]
    lines.append("dataset_info:")
    for name in files:
        lines += [f"- config_name: {name}", "  features:"]
        for column, kind in {**COLUMNS, **(more or {})}.items():
            lines += [f"  - name: {column}", f"    dtype: {kind}"]
    lines += ["tags: [rlt, explanations]", "---", "", text]
    write_text(folder / "README.md", "\n".join(lines))


def _noted(journal: Path) -> Iterator[tuple[tuple[int, int], ExplanationRow]]:
    """`((position, sample), row)` of each line of a journal."""
    for _, line in read_rows(journal):
        row = cast(ExplanationRow, line["row"])
        yield (cast(int, line["position"]), row["sample"]), row
