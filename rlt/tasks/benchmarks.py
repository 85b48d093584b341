"""Benchmarks: data plus a grader, from a shipped YAML file or any file of questions and answers."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Literal, cast

import yaml
from pydantic import Field, model_validator

from rlt.config import Config, DataConfig, validate
from rlt.data.problems import problem_of, rows_of
from rlt.data.rows import ROW_FILES, read_rows
from rlt.errors import ConfigError, DataError
from rlt.tasks import load_generating_task, load_task
from rlt.tasks.choices import Choices, laid_out
from rlt.types import JsonMap, JsonRow, Problem

SHIPPED_BENCHMARKS = resources.files("rlt") / "shipped" / "benchmarks"

# What shows that a file has GPQA's questions, laid out or not: its name, a column of GPQA's own files, or ids as GPQA's.
_GPQA_COLUMNS = {"Record ID", "Canary String"}
_GPQA_ID = re.compile(r"rec[A-Za-z0-9]{14}")


class Hub(Config):
    """The benchmark's dataset on the hub."""

    path: str
    """Name of the dataset."""
    name: str | None = None
    """Configuration of the dataset."""
    split: str
    """Split of the dataset."""


class Keep(Config):
    """Which rows of a dataset belong to the benchmark."""

    column: str
    """Column that decides; rows without it are kept."""
    contains: str
    """Text that the column must contain."""


class Slices(Config):
    """Selecting part of a benchmark: `NAME:hard`, `NAME:2024-08-01..2025-01-31`, or both."""

    difficulty: str
    """Column with each question's difficulty."""
    difficulties: list[str]
    """All difficulties."""
    date: str
    """Column with the date of each question, such as `2024-08-01`."""
    only: str | None = None
    """The selected difficulty."""
    window: tuple[str, str] | None = None
    """The first and the last selected day."""

    def choose(self, name: str, choices: list[str]) -> Slices:
        """A copy with the selection after a benchmark's name; raises ConfigError for an unknown one."""
        chosen: JsonRow = {}
        for choice in choices:
            window = re.fullmatch(r"(\d{4}-\d\d-\d\d)\.\.(\d{4}-\d\d-\d\d)", choice)
            if choice in self.difficulties:
                chosen["only"] = choice
            elif window and window[1] <= window[2]:
                chosen["window"] = (window[1], window[2])
            else:
                raise ConfigError(
                    f"benchmark {name}: {choice!r} is neither one of {', '.join(self.difficulties)} nor a range of days such "
                    "as 2024-08-01..2025-01-31."
                )
        return self.model_copy(update=chosen)

    def has(self, row: JsonRow, where: str) -> bool:
        """Whether the row is selected."""
        for column, chosen in ((self.difficulty, self.only), (self.date, self.window)):
            if chosen is not None and row.get(column) is None:
                raise DataError(f"{where}: column `{column}` is missing, but questions are selected by it.")
        if self.only is not None and str(row[self.difficulty]) != self.only:
            return False
        return self.window is None or self.window[0] <= str(row[self.date])[:10] <= self.window[1]


class Generated(Config):
    """A benchmark without a download, made by its task's generator."""

    count: int
    """Number of questions."""
    seed: int
    """Seed of the generator."""
    options: JsonRow = Field(default_factory=dict)
    """Options of the generator."""


class Benchmark(Config):
    """A benchmark as data. A change that affects scores is a new `version`."""

    name: str
    """Name on the command line: the file's name."""
    version: int = Field(ge=1)
    """Recorded in every result; scores of different versions are not compared."""
    title: str
    """Short description."""
    task: str
    """Task that grades it."""
    questions: int | None = None
    """Number of questions; a download with another number is rejected."""
    hub: Hub | None = None
    """Dataset to download."""
    generate: Generated | None = None
    """Options of the generator, for a task with one."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column -> the dataset's, if they differ; a row without the dataset's column is read with our name."""
    keep: Keep | None = None
    """Rows to keep; null: all."""
    slices: Slices | None = None
    """Columns by which a part can be selected."""
    choices: Choices | None = None
    """Columns of the choices, for multiple choice."""
    instruction: str | None = None
    """Sentence added to every question."""
    place: Literal["before", "after"] = "before"
    """Place of the instruction: before the question in the same paragraph, or after it in its own."""
    private: bool = False
    """Never write questions into files. Of a file of questions: see `_is_private`."""
    by_row: bool = False
    """Use the column `task` of each row, if present, instead of `task`."""
    source: str
    """Origin of the questions and the instruction."""

    @model_validator(mode="after")
    def _one_origin(self) -> Benchmark:
        if self.hub is not None and self.generate is not None:
            raise ValueError("`hub` and `generate` exclude each other")
        return self

    def instructed(self, question: str) -> str:
        """The question with the benchmark's instruction."""
        if self.instruction is None:
            return question
        return f"{self.instruction} {question}" if self.place == "before" else f"{question}\n\n{self.instruction}"


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its reference answer; `where` names its row in error messages."""

    id: str
    question: str
    answer: str
    system: str | None
    where: str
    task: str
    """The task that grades it."""


def shipped_benchmarks() -> list[str]:
    """Names of the benchmarks that come with rlt."""
    return sorted(f.name.removesuffix(".yaml") for f in SHIPPED_BENCHMARKS.iterdir() if f.name.endswith(".yaml"))


def load_benchmark(name_or_path: str, task: str | None = None) -> tuple[Benchmark, str | None]:
    """The benchmark of that name, or one from a file of questions and answers, with the file's path.

    `task` replaces the grader. Raises ConfigError with similar names if it is neither.
    """
    path = Path(name_or_path).expanduser()
    name, *slices = name_or_path.split(":")
    if name in shipped_benchmarks():
        text = (SHIPPED_BENCHMARKS / f"{name}.yaml").read_text(encoding="utf-8")
        values = {**yaml.safe_load(text), "name": name_or_path, **({"task": task} if task else {})}
        benchmark: Benchmark = validate(Benchmark, values, f"benchmark {name_or_path}")
        return _sliced(benchmark, slices) if slices else benchmark, None
    if path.suffix in ROW_FILES or path.is_dir():
        if not path.exists():
            raise ConfigError(f"benchmark {name_or_path}: no such file.")
        made = Benchmark(
            name=path.stem,
            version=1,
            title=path.name,
            task=task or "math",
            by_row=task is None,
            private=_is_private(path),
            source=f"the file {path.name}",
        )
        return made, str(path)
    near = difflib.get_close_matches(name_or_path, shipped_benchmarks(), n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"benchmarks: {', '.join(shipped_benchmarks())}."
    raise ConfigError(f"benchmark {name_or_path!r}: neither a benchmark nor a {', '.join(ROW_FILES)} file; {hint}")


def _is_private(path: Path) -> bool:
    """Whether no question of this file may be written: a row says so (`private: true`), or looks like one of GPQA.

    GPQA's authors ask that its questions appear in no file in plain text. A file whose rows were laid out by somebody keeps
    GPQA's ids, which are `rec` and 14 letters or digits.
    """
    if "gpqa" in path.name.casefold():
        return True
    return any(
        row.get("private") in (True, "true")
        or not _GPQA_COLUMNS.isdisjoint(row)
        or _GPQA_ID.fullmatch(str(row.get("id")).rpartition("/")[2]) is not None
        for _, row in read_rows(path)
    )


def _sliced(benchmark: Benchmark, choices: list[str]) -> Benchmark:
    if benchmark.slices is None:
        raise ConfigError(f"benchmark {benchmark.name}: it has no parts to select; remove `:{choices[0]}`.")
    return benchmark.model_copy(
        update={"slices": benchmark.slices.choose(benchmark.name, choices), "questions": None}
    )  # fmt: skip


def load_questions(benchmark: Benchmark, data: str | None = None, limit: int | None = None) -> list[Question]:
    """The benchmark's questions, from the file `data`, the generator or the hub; the first `limit` of them.

    Raises DataError with file, row, column and the fix for a row without question or answer, for a duplicate id, and for a
    download whose number of questions differs from the benchmark's.
    """
    load_task(benchmark.task)
    questions = []
    for question in _questions(benchmark, data):
        questions.append(question)
        if len(questions) == limit:
            break
    origin = data or (benchmark.hub.path if benchmark.hub else benchmark.name)
    if not questions:
        raise DataError(f"{origin}: no question of {benchmark.name}.")
    seen: dict[str, Question] = {}
    for question in questions:
        if question.id in seen:
            raise DataError(
                f"{question.where}: column `id`: {question.id!r} is also in {seen[question.id].where}. Make ids unique, or "
                "remove the column."
            )
        seen[question.id] = question
    if data is None and limit is None and benchmark.questions not in (None, len(questions)):
        raise DataError(
            f"{origin}: has {len(questions)} questions, but {benchmark.name} version {benchmark.version} has "
            f"{benchmark.questions}. The dataset has changed; use the old one with --data FILE."
        )
    return questions


def fingerprint(benchmark: Benchmark, questions: list[Question]) -> str:
    """16 hex digits, equal for the same questions, answers and instruction in any order."""
    rows = sorted(repr((q.id, benchmark.instructed(q.question), q.answer)) for q in questions)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def _questions(benchmark: Benchmark, data: str | None) -> Iterator[Question]:
    if data is None and benchmark.generate is not None:
        made = benchmark.generate
        for problem in load_generating_task(benchmark.task).generate(made.count, made.seed, made.options):
            where = f"{benchmark.name} {problem.id}"
            yield Question(problem.id, problem.question, problem.answer or "", None, where, benchmark.task)
        return
    hub = benchmark.hub
    if data is None and hub is None:
        raise ConfigError(
            f"benchmark {benchmark.name}: has neither `hub` nor `generate`; pass its data with --data FILE."
        )
    values = {"path": data} if data else hub.model_dump() if hub else {}
    source: DataConfig = validate(DataConfig, values, benchmark.name)
    yield from _asked(benchmark, rows_of(source))


def questions_of_rows(benchmark: Benchmark, rows: Iterable[JsonMap]) -> list[Question]:
    """The questions in rows of the benchmark's dataset."""
    return list(
        _asked(benchmark, ((f"{benchmark.name} row {number}", dict(row)) for number, row in enumerate(rows, 1)))
    )


def _asked(benchmark: Benchmark, rows: Iterable[tuple[str, JsonRow]]) -> Iterator[Question]:
    for number, (where, row) in enumerate(rows):
        keep = benchmark.keep
        if benchmark.slices is not None and not benchmark.slices.has(row, where):
            continue
        if keep is None or keep.column not in row or keep.contains in str(row[keep.column]):
            yield _question(benchmark, row, where, str(number))


def _question(benchmark: Benchmark, row: JsonRow, where: str, default_id: str) -> Question:
    row = {**row, **{ours: row[theirs] for ours, theirs in benchmark.columns.items() if theirs in row}}
    if benchmark.choices:
        row = laid_out(benchmark.choices, row, where, str(row.get("id", default_id)))
    row = _as_task_has_it(benchmark.task, row, where)
    if row.get("solution") is None and "####" not in str(row.get("answer")):
        row = {**row, "solution": str(row.get("answer") or "").strip() or "-"}  # evaluation needs no worked solution
    problem = problem_of(row, where, default_id)
    answer = problem.answer if problem.answer is not None else _boxed_answer(problem.solution)
    if answer is None or not answer.strip():
        state = "missing" if answer is None else "empty"
        raise DataError(
            f"{where}: column `answer` is {state}; every question needs a reference answer. The row has "
            f"{', '.join(sorted(row))}."
        )
    return Question(problem.id, problem.question, answer, problem.system, where, _task_of(benchmark, problem))


def _task_of(benchmark: Benchmark, problem: Problem) -> str:
    """The row's own task, if rows have one and no other was given; otherwise the benchmark's."""
    return problem.task if benchmark.by_row and problem.task is not None else benchmark.task


def _as_task_has_it(task: str, row: JsonRow, where: str) -> JsonRow:
    """The row with question and answer from the columns of datasets that its task knows (code's tests, OlympiadBench)."""
    from rlt.data import code_rows

    module = code_rows if task == "code" else cast(ModuleType, load_task(task))
    if not hasattr(module, "answer_of"):
        return row
    try:
        answer, question = module.answer_of(row), module.question_of(row)
    except ValueError as error:
        raise DataError(f"{where}: {error}. Fix or remove the row.") from error
    # Solutions that come with tests (APPS: a list of programs as JSON) are not compared.
    texts = {"question": question, **({} if answer is None else {"answer": answer, "solution": "-"})}
    return {**row, **{column: text for column, text in texts.items() if text is not None}}


def _boxed_answer(solution: str) -> str | None:
    """The answer of MATH's own rows, which have it only in their worked solution."""
    if r"\boxed" not in solution:
        return None
    from rlt.tasks.math import extract

    return extract(solution)
