"""Grade any file of responses and answers, without a model."""

from __future__ import annotations

from typing import NotRequired, TypedDict, cast

from tqdm.auto import tqdm

from rlt.config import GradeConfig
from rlt.data.rows import ROW_FILES, read_rows, write_rows
from rlt.errors import ConfigError, DataError
from rlt.outputs import Result, begin
from rlt.tasks import Verdict, load_grader
from rlt.tasks.grading import Graders
from rlt.terminal import quiet
from rlt.text.formats import load_format
from rlt.types import JsonMap, JsonRow


class GradeNumbers(TypedDict):
    """The metrics of `rlt grade`. `recorded`, `agree`: of the rows that already had a verdict."""

    rows: int
    correct: float
    unreadable: float
    not_graded: int
    recorded: NotRequired[int]
    agree: NotRequired[float]


def run(config: GradeConfig) -> Result:
    """The file of graded rows, in the order of the data; metrics: rows, share correct, unreadable, not graded.

    Each row keeps its columns and gets `correct`, `extracted` and `error` (null, or why it could not be graded). An
    existing `correct` is kept as `recorded`, and the metrics count how many agree.
    """
    load_grader(config.task)
    fmt = load_format(config.format)
    if config.output.suffix not in ROW_FILES or config.output.suffix == ".json":
        raise ConfigError(f"`output`: {config.output} must be a .jsonl or .parquet file.")
    rows = [_checked(row, where, config.task) for where, row in read_rows(config.data)]
    if not rows:
        raise DataError(f"{config.data}: has no rows.")
    folder = begin("grade", config)
    if folder.result:
        if not quiet():
            before = _summary(cast(GradeNumbers, folder.result.metrics), config)
            print(f"{before} (already graded; choose another --output to grade again)")
        return folder.result
    tasks = [task for task, _ in rows]
    items = [(str(row["response"]), str(row["answer"]), str(row.get("question") or "")) for _, row in rows]
    with (
        Graders(config.workers, config.timeout) as graders,
        tqdm(total=len(rows), unit=" responses", desc="grade", disable=quiet()) as bar,
    ):
        verdicts = graders.grade(tasks, items, fmt, progress=bar.update)
    done = [_row(row, verdict) for (_, row), verdict in zip(rows, verdicts, strict=True)]
    columns = dict.fromkeys(key for row in done for key in row)  # Parquet takes its columns from the first row
    write_rows(config.output, ({key: row.get(key) for key in columns} for row in done))
    metrics = _metrics(done)
    if not quiet():
        print(_summary(metrics, config))
    return folder.finish(dict(metrics))


def _checked(row: JsonRow, where: str, default: str) -> tuple[str, JsonRow]:
    """`(task, row)`; raises DataError for a row that cannot be graded."""
    for column in ("response", "answer"):
        if row.get(column) is None:
            raise DataError(
                f"{where}: column `{column}` is missing; grading needs `response` and `answer`. The row has "
                f"{', '.join(sorted(row))}."
            )
        row = {**row, column: str(row[column])}
    task = str(row.get("task") or default)
    if not str(row["answer"]).strip():
        raise DataError(f"{where}: column `answer` is empty; no response could be graded against it. Drop the row.")
    load_grader(task)
    return task, row


def _row(row: JsonMap, verdict: Verdict) -> JsonRow:
    recorded = row.get("recorded", row.get("correct"))
    kept = {} if recorded is None else {"recorded": recorded}
    score = {} if verdict.score is None else {"score": verdict.score}
    row = {column: value for column, value in row.items() if column != "score"}
    return {**row, **kept, "correct": verdict.correct, "extracted": verdict.extracted, "error": verdict.error, **score}


def _metrics(rows: list[JsonRow]) -> GradeNumbers:
    recorded = [row for row in rows if isinstance(row.get("recorded"), bool)]
    metrics: GradeNumbers = {
        "rows": len(rows),
        "correct": sum(row["correct"] is True for row in rows) / len(rows),
        "unreadable": sum(row["extracted"] is None and row["error"] is None for row in rows) / len(rows),
        "not_graded": sum(row["error"] is not None for row in rows),
    }
    if recorded:
        agree = sum(row["correct"] == row["recorded"] for row in recorded)
        metrics["recorded"], metrics["agree"] = len(recorded), agree / len(recorded)
    return metrics


def _summary(metrics: GradeNumbers, config: GradeConfig) -> str:
    line = f"grade: {metrics['rows']} responses, {metrics['correct'] * 100:.1f} % correct"
    if metrics["not_graded"]:
        line += f", {metrics['not_graded']} could not be graded (see `error`) and count as wrong"
    if "agree" in metrics:
        line += f"; {metrics['agree'] * 100:.1f} % agree with the {metrics['recorded']} recorded verdicts"
    return f"{line} -> {config.output}"
