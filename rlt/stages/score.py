"""Score every explanation in a file with the reward, without training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from rlt.config import DataConfig, ScoreConfig, StudentOptions, is_url
from rlt.data.explanations import explanation_of
from rlt.data.problems import load_problems
from rlt.data.rows import JsonlWriter, read_rows, write_rows, write_text
from rlt.errors import DataError, RunError
from rlt.outputs import Result, StageFolder, State, begin, read_state
from rlt.results.sources import by_source, cells
from rlt.results.tables import text_table
from rlt.terminal import quiet
from rlt.text.formats import Format, load_format
from rlt.types import AnyRow, Explanation, JsonRow, RewardParts

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedTokenizerBase

    from rlt.reward.items import ScoredRow
    from rlt.reward.scoring import RewardEngine
    from rlt.reward.students import Opened

# Placebos are drawn from this many rows.
WINDOW = 1024
# Batches per chunk, about: enough for sorting by length to save padding.
CHUNK_BATCHES = 16
CHARACTERS_A_TOKEN = 4
# Solutions per chunk that a student samples for its accuracy: what the `transformers` engine sorts by length at once.
SAMPLED = 512
SHOWN = 5


def run(config: ScoreConfig) -> Result:
    """A file with one row for each row of `data`, in order: the reward, its parts, `error` (`rlt.types.RewardParts`).

    Resumable: scored rows are kept. Rows that cannot be scored get an `error`, are named before a model is loaded if
    possible, and make the exit status 1. Raises DataError if no row can be scored.
    """
    from rlt.reward.students import close_students

    fmt = load_format(config.format)
    count, with_answers, mixed = survey(config, fmt)
    if config.accuracy is not None and not with_answers:
        raise DataError(f"{config.data}: no row has the column `answer`, which the accuracy reward needs.")
    models = open_models(config, fmt)
    try:
        served = _served_models(config, models[0])
        folder = begin("score", config)
        if folder.result:
            return folder.result
        _keep(folder, served)
        as_parquet = config.output.suffix == ".parquet"
        rows_file = config.output.with_suffix(".parquet.rows.jsonl") if as_parquet else config.output
        done = _count_rows(rows_file)
        print(f"score: {count} rows of {config.data}" + (f", {done} already scored" if done else ""), flush=True)
        chunks = _chunks(numbered(config, fmt), done, config)
        with JsonlWriter(rows_file) as output, _Bar(count, done) as bar:
            scored = (
                _score_here(config, fmt, models, chunks, bar)
                if config.ray is None
                else _score_on_ray(config, config.ray, chunks)
            )
            for rows in scored if done < count else ():
                output.write(rows)
                bar.finish(len(rows))
    finally:
        close_students(models[0].values())
    metrics = _summary(rows_file)
    if as_parquet:
        write_rows(config.output, (_parquet_row(row) for _, row in read_rows(rows_file)), _schema(config))
    print(f"score: {metrics['rows']} rows, {metrics['errors']} with errors: {config.output}")
    means = [[name, f"{value:.4g}"] for name, value in metrics.items() if name not in ("rows", "errors")]
    if means:
        print(text_table(["part", "mean over rows"], means, numbers_from=1))
    if mixed and (numbers := by_source(_of_sources(config, fmt, rows_file))):
        metrics["by_source"] = numbers
        print(text_table(*cells(numbers), numbers_from=1))
    result = folder.finish({**metrics, **served, "exit_status": int(metrics["errors"] != 0)})
    if as_parquet:
        rows_file.unlink()
    return result


def _served_models(config: ScoreConfig, students: Opened) -> JsonRow:
    """Names of the served models, for the stage's state. Raises RunError if the stage was started with others.

    The configuration has only their addresses, which may change between starts and do not name a model.
    """
    from rlt.reward.students import ServedStudent

    served = [student.model for student in students.values() if isinstance(student, ServedStudent)]
    before = (read_state(config.output) or State()).get("served", served)
    if before != served:
        raise RunError(
            f"{config.output}: was started with the served students {', '.join(before)}; these servers have "
            f"{', '.join(served)}. Serve the same models, choose another --output, or remove the file to start over."
        )
    return {"served": served} if served else {}


def _keep(folder: StageFolder, served: JsonRow) -> None:
    if served:
        state = {**(read_state(folder.path) or {}), **served}
        write_text(folder.state_file, json.dumps(state, indent=1, ensure_ascii=False) + "\n")


@dataclass(frozen=True, slots=True)
class InputRow:
    """One row of the file: its `id`, if any, and the explanation to score, or why there is none."""

    id: object
    has_id: bool
    explanation: Explanation | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows scored and written together: `window[start:stop]`. Placebos are drawn from the whole window."""

    window: list[InputRow]
    start: int
    stop: int

    @property
    def rows(self) -> list[InputRow]:
        return self.window[self.start : self.stop]

    def other(self, place: int) -> str | None:
        """Text of the next explanation in the window, wrapping around, whose question differs from that of `window[place]`."""
        own = self.window[place].explanation
        others = (row.explanation for row in (*self.window[place + 1 :], *self.window[:place]))
        return next((e.text for e in others if e and own and e.problem.question != own.problem.question), None)


# -- reading ---------------------------------------------------------------------------------------------------------


def numbered(config: ScoreConfig, fmt: Format) -> Iterator[InputRow]:
    """Every row of the file, in order, read lazily."""
    from rlt.reward.placebos import controlled

    instead = None if config.solutions is None else _solutions(config.solutions)
    for number, (where, row) in enumerate(read_rows(config.data)):
        given, has_id = row.get("id"), "id" in row
        try:
            explanation = explanation_of(row, where, str(number), fmt)
            if instead is not None:
                explanation = _of_solution(explanation, instead, where, config.solutions)
            if config.control is not None:
                explanation = controlled(explanation, config.control, fmt.padding, config.seed)
            yield InputRow(given, has_id, explanation)
        except DataError as error:
            yield InputRow(given, has_id, None, str(error))


def _solutions(path: Path) -> dict[str, str]:
    """Question -> solution of a file of problems."""
    return {problem.question: problem.solution for problem in load_problems(DataConfig(path=str(path)))}


def _of_solution(explanation: Explanation, solutions: dict[str, str], where: str, path: Path | None) -> Explanation:
    """The explanation paired with another solution to its question; raises DataError if there is none."""
    solution = solutions.get(explanation.problem.question)
    if solution is None:
        raise DataError(f"{where}: its question is not in the file of `solutions`, {path}.")
    return replace(explanation, problem=replace(explanation.problem, solution=solution))


def survey(config: ScoreConfig, fmt: Format) -> tuple[int, bool, bool]:
    """`(rows, whether a usable row has an answer, whether one names its source)` after one pass over the file.

    Prints rows that cannot be scored. Raises DataError if the file has no row, or none that can be scored.
    """
    count, bad, with_answers, mixed = 0, 0, False, False
    named: list[str] = []
    for row in numbered(config, fmt):
        count += 1
        if row.explanation is not None:
            with_answers |= row.explanation.problem.answer is not None
            mixed |= row.explanation.problem.source is not None
        if row.error is not None:
            bad += 1
            if bad <= SHOWN:
                named.append(row.error)
    if count == 0:
        raise DataError(f"{config.data}: has no rows.")
    if bad == count:
        raise DataError(named[0] if count == 1 else f"none of {count} rows can be scored. {named[0]}")
    for line in named:
        print(f"score: {line}", flush=True)
    if bad > SHOWN:
        print(f"score: {bad - SHOWN} more rows cannot be scored; see their `error`.", flush=True)
    return count, with_answers, mixed


def _chunks(rows: Iterator[InputRow], done: int, config: ScoreConfig) -> Iterator[Chunk]:
    """The rows after the first `done`, in chunks of a few batches, so that an interruption loses little.

    Windows begin at multiples of their size, also in a resumed run: placebos are drawn from the same rows.
    """
    from rlt.models.loading import default_device
    from rlt.models.logprobs import DEFAULT_BATCH_TOKENS

    place = "cuda" if any(map(is_url, config.student)) else default_device().type
    room = CHUNK_BATCHES * (config.batch_tokens or DEFAULT_BATCH_TOKENS[place]) * CHARACTERS_A_TOKEN
    most = WINDOW if config.accuracy is None else max(1, SAMPLED // config.accuracy.samples)
    start, skipped = done % WINDOW, done - done % WINDOW
    rows = islice(rows, skipped, None)
    while window := list(islice(rows, WINDOW)):
        while start < len(window):
            stop, used = start + 1, _length(window[start])
            while stop < min(len(window), start + most) and used + _length(window[stop]) <= room:
                used += _length(window[stop])
                stop += 1
            # Without placebos the rest of the window is not needed, and need not be sent to a Ray worker.
            yield Chunk(window, start, stop) if config.placebos else Chunk(window[start:stop], 0, stop - start)
            start = stop
        start = 0


def _length(row: InputRow) -> int:
    one = row.explanation
    return 0 if one is None else len(one.problem.question) + len(one.problem.solution) + len(one.text)


# -- scoring ---------------------------------------------------------------------------------------------------------


def open_models(config: ScoreConfig, fmt: Format) -> tuple[Opened, PreTrainedTokenizerBase | None]:
    """Students and the teacher's tokenizer, with checked templates, before any state file or weights."""
    from rlt.reward.students import checked_tokenizer, open_students

    tokenizer = None if config.teacher is None else checked_tokenizer(config.teacher, fmt, config)
    return open_students(fmt, config, config, config, tokenizer), tokenizer


def load_engine(
    config: ScoreConfig, fmt: Format, opened: Opened, tokenizer: PreTrainedTokenizerBase | None
) -> RewardEngine:
    """The engine with the weights of all models."""
    from rlt.reward.scoring import RewardEngine
    from rlt.reward.students import LocalModel, load_students

    students = load_students(opened, config, config)
    teacher = None
    if config.teacher is not None and tokenizer is not None:
        place = "offload" if config.student_placement == "offload" else "same"
        options = StudentOptions(student_placement=place, batch_tokens=config.batch_tokens)
        teacher = LocalModel.from_tokenizer(config.teacher, tokenizer, config, options)
    return RewardEngine(students, fmt, config, teacher, seed=config.seed)


def _score_here(
    config: ScoreConfig,
    fmt: Format,
    models: tuple[Opened, PreTrainedTokenizerBase | None],
    chunks: Iterator[Chunk],
    bar: _Bar,
) -> Iterator[list[JsonRow]]:
    """Rows of the chunks, in order. If a student's server is lost, rows scored before are still returned."""
    from rlt.reward.items import StudentLost

    engine = load_engine(config, fmt, *models)
    bar.passes = engine.passes(config.tokens) + 2 * len(engine.students) * config.placebos
    try:
        for chunk in chunks:
            try:
                yield _score_chunk(engine, chunk, config, bar)
            except StudentLost as lost:
                if not config.placebos:
                    yield _output_rows(chunk, lost.rows, config)
                raise
    finally:
        engine.close()


def _score_on_ray(config: ScoreConfig, address: str, chunks: Iterator[Chunk]) -> Iterator[list[JsonRow]]:
    """Rows of the chunks, in order, with one replica of all models per worker."""
    from rlt.engines.cluster import in_order, spread

    make = partial(_replica, config)
    return in_order(spread(make, chunks, address=address, workers=config.ray_workers, gpus=1.0))


def _replica(config: ScoreConfig) -> Callable[[Chunk], list[JsonRow]]:
    fmt = load_format(config.format)
    engine = load_engine(config, fmt, *open_models(config, fmt))
    return lambda chunk: _score_chunk(engine, chunk, config)


def _score_chunk(engine: RewardEngine, chunk: Chunk, config: ScoreConfig, bar: _Bar | None = None) -> list[JsonRow]:
    from rlt.reward.placebos import with_placebos

    places = [place for place in range(chunk.start, chunk.stop) if chunk.window[place].explanation is not None]
    items = [row.explanation for row in chunk.rows if row.explanation is not None]
    progress = bar.progress if bar is not None else None
    with engine.in_place():
        scored = engine.score(items, progress=progress, keep_tokens=range(len(items)) if config.tokens else ())
        if config.placebos:
            others = {i: chunk.other(place) for i, place in enumerate(places)}
            scored = with_placebos(engine, items, scored, others, progress)
    return _output_rows(chunk, scored, config)


def _output_rows(chunk: Chunk, scored: Sequence[ScoredRow], config: ScoreConfig) -> list[JsonRow]:
    """Rows of the chunk, up to the first one that was not scored."""
    results, rows = iter(scored), []
    for row in chunk.rows:
        result = next(results, None) if row.explanation is not None else None
        if row.explanation is not None and result is None:
            break
        rows.append(_output_row(row, result, config))
    return rows


def _output_row(row: InputRow, scored: ScoredRow | None, config: ScoreConfig) -> JsonRow:
    columns: JsonRow = {"id": row.id} if row.has_id else {}
    columns |= RewardParts(error=row.error).to_row()
    if config.accuracy is not None:
        columns["accuracy"] = None
    if config.placebos:
        columns |= {"lift_over_empty": None, "lift_over_shuffled": None}
    if len(config.student) > 1:
        columns["students"] = None
    elif config.tokens:
        columns |= {"explanation_log_prob": None, "rank_surprisal": None, "tokens": None}
    return columns if scored is None else columns | scored.to_row()


class _Bar:
    """A progress bar over rows, with tokens per second. A row counts by the share of models that have read it."""

    def __init__(self, total: int, done: int) -> None:
        self._bar = tqdm(
            total=total, initial=done, unit=" rows", desc="score", disable=quiet(),
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


def _summary(path: Path) -> JsonRow:
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


def _of_sources(config: ScoreConfig, fmt: Format, scores: Path) -> Iterator[tuple[str, bool, JsonRow]]:
    """`(source, closed, row of scores)` of the rows that name their source."""
    for row, (_, scored) in zip(numbered(config, fmt), read_rows(scores), strict=True):
        if row.explanation is not None and row.explanation.problem.source is not None:
            yield row.explanation.problem.source, row.explanation.closed, scored


def _schema(config: ScoreConfig) -> pyarrow.Schema:
    """The columns of this configuration, with `id` as text."""
    import pyarrow as pa

    from rlt.reward.tokens import NUMBERS, RANKS

    parts = [
        (name, pa.string() if name == "error" else pa.int64() if name.endswith("_tokens") else pa.float64())
        for name in RewardParts.__dataclass_fields__
    ]
    accuracy = [("accuracy", pa.float64())] if config.accuracy is not None else []
    lifts = [(f"lift_over_{name}", pa.float64()) for name in ("empty", "shuffled") if config.placebos]
    words, numbers = pa.list_(pa.string()), pa.list_(pa.float16())
    columns = [("solution", words), ("explanation", words), *((name, numbers) for name in NUMBERS)]
    columns += [(name, pa.list_(pa.int32())) for name in RANKS]
    of_text = [("explanation_log_prob", pa.float64()), ("rank_surprisal", pa.float64())]
    tokens = [*of_text, ("tokens", pa.struct(columns))] if config.tokens else []
    if len(config.student) > 1:
        each = pa.struct([*parts, *accuracy, *tokens])
        tokens = [("students", pa.struct([(name, each) for name in config.student]))]
    return pa.schema([("id", pa.string()), *parts, *accuracy, *lifts, *tokens])


def _parquet_row(row: AnyRow) -> AnyRow:
    """The row with `id` as text and numbers of tokens as lists."""
    from rlt.reward.tokens import lists

    if "tokens" in row:
        row = {**row, "tokens": lists(row["tokens"])}
    if row.get("students"):
        row = {**row, "students": {name: {**each, **({"tokens": lists(each["tokens"])} if "tokens" in each else {})}
                                   for name, each in row["students"].items()}}  # fmt: skip
    value = row.get("id")
    if isinstance(value, str):
        return {**row, "id": value.encode("utf-8", "backslashreplace").decode()}
    return row if value is None else {**row, "id": json.dumps(value)}
