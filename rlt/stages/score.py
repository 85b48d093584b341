"""Score: the reward of every explanation of a file, with no training around it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from rlt.config import ScoreConfig, StudentOptions
from rlt.data import problem_of
from rlt.errors import DataError
from rlt.formats import Format, check_problem, load_format
from rlt.rows import JsonlWriter, read_rows
from rlt.runs import Result, begin
from rlt.types import Problem, RewardParts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlt.scoring import RewardEngine, ScoredRow, ScoreItem
    from rlt.students import Opened

# Rows that are read, sorted by length and written together. Placebos are drawn from the same window.
WINDOW = 1024
SHOWN = 5


def run(config: ScoreConfig) -> Result:
    """A file with one row for each row of `data`, in order: the reward, its parts, `error` (`rlt.types.RewardParts`).

    Resumable: what was written stays, and the rest is scored. Rows that cannot be scored are named before any model is
    loaded where that can be known, get an `error`, and make the exit status 1. Raises DataError where no row can be.
    """
    config = config.resolved()
    fmt = load_format(config.format)
    count, with_answers = survey(config, fmt)
    if config.accuracy is not None and not with_answers:
        raise DataError(f"{config.data}: column `answer` is missing in some row; the accuracy reward compares with it.")
    models = open_models(config, fmt)
    folder = begin("score", config)
    if folder.result:
        return folder.result
    as_parquet = config.output.suffix == ".parquet"
    rows_file = config.output.with_suffix(".parquet.rows.jsonl") if as_parquet else config.output
    done = _count_rows(rows_file)
    print(f"score: {count} rows of {config.data}" + (f", {done} of them scored before" if done else ""), flush=True)
    windows = _windows(islice(numbered(config, fmt), done, None), WINDOW, done)
    with JsonlWriter(rows_file) as output, _Bar(count, done) as bar:
        if config.ray is None:
            engine = load_engine(config, fmt, *models)
            bar.passes = engine.passes
            scored: Iterator[list[dict[str, Any]]] = (_score_window(engine, window, config, bar) for window in windows)
        else:
            scored = _score_on_ray(config, config.ray, windows)
        for rows in scored:
            output.write(rows)
            bar.finish(len(rows))
    metrics = _summary(rows_file)
    if as_parquet:
        _to_parquet(rows_file, config.output)
        rows_file.unlink()
    print(f"score: {metrics['rows']} rows, {metrics['errors']} with errors: {config.output}")
    return folder.finish({**metrics, "exit_status": int(metrics["errors"] > 0)})


@dataclass(frozen=True, slots=True)
class InputRow:
    """One row of the file: what is to be scored, or why it cannot be; `id` where the row has one."""

    id: Any
    has_id: bool
    item: ScoreItem | None
    error: str | None


# -- reading ---------------------------------------------------------------------------------------------------------


def numbered(config: ScoreConfig, fmt: Format) -> Iterator[InputRow]:
    """Every row of the file, in order, read lazily."""
    from rlt.scoring import item_of_completion, item_of_explanation

    for number, (where, row) in enumerate(read_rows(config.data)):
        try:
            problem, kind, text = parse_row(row, where, number, fmt)
        except DataError as error:
            yield InputRow(row.get("id"), "id" in row, None, str(error))
            continue
        item = (
            item_of_completion(fmt, problem, text) if kind == "completion" else item_of_explanation(fmt, problem, text)
        )
        yield InputRow(row.get("id"), "id" in row, item, None)


def parse_row(row: dict[str, Any], where: str, number: int, fmt: Format) -> tuple[Problem, str, str]:
    """`(problem, column, text)`, `column` being `completion` (taken where a row has both) or `explanation`.

    Raises DataError, naming file, row and column.
    """
    problem = problem_of(row, where, str(number))
    check_problem(fmt, problem, where)
    for column, text in (("completion", row.get("completion")), ("explanation", problem.explanation)):
        if text is None:
            continue
        if not isinstance(text, str):
            raise DataError(f"{where}: column `{column}` is a {type(text).__name__}, not text.")
        if column == "explanation" and fmt.tags.explanation.close in text:
            raise DataError(
                f"{where}: column `explanation` contains the tag {fmt.tags.explanation.close}. Give the text before "
                "it, or name the column `completion`."
            )
        return problem, column, text
    raise DataError(f"{where}: columns `explanation` and `completion` are both missing; one of them is what is scored.")


def survey(config: ScoreConfig, fmt: Format) -> tuple[int, bool]:
    """`(rows, whether every usable row has an answer)` after one pass over the file; names rows that cannot be scored.

    Raises DataError if the file has no row, or none that can be scored.
    """
    count, bad, with_answers = 0, 0, True
    named: list[str] = []
    for number, (where, row) in enumerate(read_rows(config.data)):
        count += 1
        try:
            with_answers &= parse_row(row, where, number, fmt)[0].answer is not None
        except DataError as error:
            bad += 1
            if bad <= SHOWN:
                named.append(str(error))
    if count == 0:
        raise DataError(f"{config.data}: has no rows.")
    if bad == count:
        raise DataError(named[0] if count == 1 else f"none of {count} rows can be scored. {named[0]}")
    for line in named:
        print(f"score: {line}", flush=True)
    if bad > SHOWN:
        print(f"score: and {bad - SHOWN} more rows that cannot be scored; see their `error`.", flush=True)
    return count, with_answers


def _windows(rows: Iterator[InputRow], size: int, done: int) -> Iterator[list[InputRow]]:
    # Windows begin at multiples of their size, also when a run goes on, so that placebos are drawn from the same rows.
    window = list(islice(rows, size - done % size))
    while window:
        yield window
        window = list(islice(rows, size))


# -- scoring ---------------------------------------------------------------------------------------------------------


def open_models(config: ScoreConfig, fmt: Format) -> tuple[Opened, PreTrainedTokenizerBase | None]:
    """Students and the teacher's tokenizer, their templates checked, before a state file or any weights."""
    from rlt.students import checked_tokenizer, open_students

    tokenizer = None if config.teacher is None else checked_tokenizer(config.teacher, fmt, config)
    return open_students(fmt, config, config, config, tokenizer), tokenizer


def load_engine(
    config: ScoreConfig, fmt: Format, opened: Opened, tokenizer: PreTrainedTokenizerBase | None
) -> RewardEngine:
    """The engine with the weights of all models."""
    from rlt.scoring import RewardEngine
    from rlt.students import LocalModel, load_students

    students = load_students(opened, config, config)
    teacher = None
    if config.teacher is not None and tokenizer is not None:
        place = "offload" if config.student_placement == "offload" else "same"
        options = StudentOptions(student_placement=place, batch_tokens=config.batch_tokens, packing=config.packing)
        teacher = LocalModel.from_tokenizer(config.teacher, tokenizer, config, options)
    return RewardEngine(students, fmt, config, teacher, seed=config.seed)


def _score_on_ray(
    config: ScoreConfig, address: str, windows: Iterator[list[InputRow]]
) -> Iterator[list[dict[str, Any]]]:
    """The windows' rows in order, one replica of all models in each worker."""
    from rlt.fanout import gpus_of_replica, in_order, spread

    make = partial(_replica, config)
    gpus = gpus_of_replica()
    return in_order(spread(make, windows, address=address, workers=config.ray_workers, gpus=gpus))


def _replica(config: ScoreConfig) -> Callable[[list[InputRow]], list[dict[str, Any]]]:
    fmt = load_format(config.format)
    engine = load_engine(config, fmt, *open_models(config, fmt))
    return lambda window: _score_window(engine, window, config)


def _score_window(
    engine: RewardEngine, window: list[InputRow], config: ScoreConfig, bar: _Bar | None = None
) -> list[dict[str, Any]]:
    items = [row.item for row in window if row.item is not None]
    scored = engine.score(items, progress=bar.progress if bar is not None else None)
    if config.placebos:
        scored = engine.placebos(items, scored)
    results = iter(scored)
    return [_output_row(row, next(results) if row.item is not None else None, config) for row in window]


def _output_row(row: InputRow, scored: ScoredRow | None, config: ScoreConfig) -> dict[str, Any]:
    columns: dict[str, Any] = {"id": row.id} if row.has_id else {}
    columns |= RewardParts(error=row.error).to_row()
    if config.accuracy is not None:
        columns["accuracy"] = None
    if config.placebos:
        columns |= {"lift_over_empty": None, "lift_over_shuffled": None}
    if len(config.student) > 1:
        columns["students"] = None
    return columns if scored is None else columns | scored.to_row()


class _Bar:
    """A bar of rows with the time left, and tokens a second beside it. A row counts by the models that have read it."""

    def __init__(self, total: int, done: int) -> None:
        self._bar = tqdm(
            total=total, initial=done, unit=" rows", desc="score", disable=os.environ.get("RLT_QUIET") == "1",
            dynamic_ncols=True,
        )  # fmt: skip
        self.passes = 1
        self._base, self._read = done, 0
        self._tokens, self._started = 0, time.monotonic()

    def progress(self, rows: int, tokens: int) -> None:
        self._read += rows
        self._tokens += tokens
        self._bar.n = self._base + self._read // max(1, self.passes)
        rate = self._tokens / max(1e-9, time.monotonic() - self._started)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(0)

    def finish(self, rows: int) -> None:
        self._base, self._read = self._base + rows, 0
        self._bar.n = self._base
        self._bar.refresh()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


# -- the file --------------------------------------------------------------------------------------------------------


def _count_rows(path: Path) -> int:
    if not path.is_file():
        return 0
    with JsonlWriter(path):
        pass  # cuts off half a line
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _summary(path: Path) -> dict[str, Any]:
    """Number of rows, of rows with errors, and the mean of each part over the others."""
    names = [*RewardParts.__dataclass_fields__, "accuracy", "lift_over_empty", "lift_over_shuffled"]
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    rows = errors = 0
    for _, row in read_rows(path):
        rows += 1
        errors += row["error"] is not None
        for name in names:
            if isinstance(value := row.get(name), int | float):
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + 1
    return {"rows": rows, "errors": errors, **{name: sums[name] / counts[name] for name in sums}}


def _to_parquet(source: Path, target: Path) -> None:
    """The JSONL `source` as Parquet, a part at a time; `target` appears when it is complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [
        (name, pa.string() if name == "error" else pa.int64() if name.endswith("_tokens") else pa.float64())
        for name in RewardParts.__dataclass_fields__
    ]
    types = dict(parts) | {name: pa.float64() for name in ("accuracy", "lift_over_empty", "lift_over_shuffled")}
    partial = target.with_name(f".{target.name}.partial")
    writer = None
    for rows in _batches(read_rows(source), WINDOW):
        if writer is None:
            columns = list(dict.fromkeys(name for row in rows for name in row))
            names = sorted({name for row in rows for name in row.get("students") or {}})
            types["students"] = pa.struct([(name, pa.struct(parts)) for name in names])
            schema = pa.schema([(name, types.get(name, pa.string())) for name in columns])
            writer = pq.ParquetWriter(partial, schema)
        for row in rows:
            if row.get("id") is not None:
                row["id"] = row["id"] if isinstance(row["id"], str) else json.dumps(row["id"])
        writer.write_table(pa.Table.from_pylist(rows, schema))
    if writer is not None:
        writer.close()
    os.replace(partial, target)


def _batches(rows: Iterable[tuple[str, dict[str, Any]]], size: int) -> Iterator[list[dict[str, Any]]]:
    plain = (row for _, row in rows)
    while batch := list(islice(plain, size)):
        yield batch
