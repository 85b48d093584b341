"""Metrics of benchmarks from graded responses, and their table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NotRequired, TypedDict, cast

from rlt.data.rows import read_rows
from rlt.results import intervals
from rlt.results.tables import legend, split_tables
from rlt.tasks import load_task
from rlt.types import JsonMap


class ResponseRow(TypedDict, total=False):
    """A row of `responses.jsonl`; the last columns once it is graded, `question` unless the benchmark is private."""

    key: str
    benchmark: str
    version: int
    question_id: str
    sample: int
    seed: int | None
    prompt_sha256: str
    question_sha256: str
    question: str
    answer: str
    task: str
    response: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    correct: bool
    extracted: str | None
    error: str | None
    score: float


Numbers = TypedDict("Numbers", {
    "pass@1": float, "standard_error": float | None, "interval": list[float], "questions": int, "samples": int,
    "pass@k": dict[str, float], "majority@k": dict[str, float], "mean_completion_tokens": float, "unfinished": float,
    "unreadable": float, "not_graded": int, "mean_score": NotRequired[float],
    "by_task": NotRequired[dict[str, "Numbers"]],
})  # fmt: skip


class BenchmarkNumbers(Numbers):
    """The numbers of a benchmark, and what identifies it."""

    seed: int
    version: int
    task: str
    fingerprint: str


class Evaluation(TypedDict):
    """The metrics of `rlt evaluate`: numbers by benchmark, and how responses were sampled."""

    benchmarks: dict[str, BenchmarkNumbers]
    temperature: float
    top_p: float
    top_k: int | None
    max_tokens: int
    samples: int
    seed: int


class Sampled(TypedDict):
    """How responses were sampled."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int | None
    samples: int
    seed: int


class Evaluated(TypedDict):
    """The `results.json` of `rlt evaluate`."""

    model: str
    preset: str | None
    engine: str
    format: str | None
    system_prompt: str
    instruction: str
    sampling: Sampled
    interval: str
    benchmarks: dict[str, BenchmarkNumbers]
    sources: dict[str, str]


def response_rows(folder: Path) -> list[ResponseRow]:
    """The responses that an evaluate step wrote."""
    return [cast(ResponseRow, row) for _, row in read_rows(folder / "responses.jsonl")]


def evaluation(metrics: JsonMap) -> Evaluation:
    """The metrics of a complete evaluate step."""
    return cast(Evaluation, metrics)


def numbers(rows: Sequence[ResponseRow], task: str) -> Numbers:
    """A benchmark's numbers: pass@1 with standard error and interval, pass@k, majority@k, lengths and shares.

    `mean_score` if the task gives partial credit; `by_task`, the numbers of each task, if there are several.
    """
    correct, extracted = _by_question(rows)
    samples = len(correct[0])
    solved = intervals.pass_at_1(correct)
    tasks = sorted({row["task"] for row in rows})
    same = getattr(load_task(task), "same", str.__eq__) if len(tasks) == 1 else str.__eq__
    scores = [row["score"] for row in rows if row.get("score") is not None]
    more = sorted({k for k in (2, 4, 8, 16, 32, 64, samples) if 1 < k <= samples})
    result: Numbers = {
        "pass@1": solved.mean,
        "standard_error": solved.standard_error,
        "interval": [solved.low, solved.high],
        "questions": solved.questions,
        "samples": samples,
        "pass@k": {str(k): intervals.pass_at_k(correct, k) for k in more},
        "majority@k": {str(k): intervals.majority_at_k(correct, extracted, k, same) for k in more if k > 2},
        "mean_completion_tokens": fmean(row["completion_tokens"] for row in rows),
        "unfinished": fmean(row["finish_reason"] == "length" for row in rows),
        "unreadable": fmean(row["extracted"] is None and row["error"] is None for row in rows),
        "not_graded": sum(row["error"] is not None for row in rows),
    }
    if scores:
        result["mean_score"] = fmean(scores)
    if len(tasks) > 1:
        result["by_task"] = {one: numbers([row for row in rows if row["task"] == one], one) for one in tasks}
    return result


def _by_question(rows: Sequence[ResponseRow]) -> tuple[list[list[bool]], list[list[str | None]]]:
    groups: dict[str, list[ResponseRow]] = {}
    for row in rows:
        groups.setdefault(row["question_id"], []).append(row)
    ordered = [sorted(group, key=lambda row: row["sample"]) for group in groups.values()]
    return [[r["correct"] for r in group] for group in ordered], [[r["extracted"] for r in group] for group in ordered]


COLUMNS = (
    ("pass@1", "correct responses in percent, with standard error and 95 % interval over questions"),
    ("pass@k, majority@k", "the same for at least one correct response of k, and for the most frequent answer of k"),
    ("tokens", "mean length of a response"),
    ("unfinished, no answer", "share truncated at `max_tokens`, and share without a readable answer"),
)


def table(metrics: Evaluation) -> str:
    """The benchmarks as a table for the terminal: rates in percent, with sampling settings."""
    head = [
        "benchmark", "questions", "samples", "temperature", "top-p", "seed", "pass@1", "s.e.", "95 %", "pass@k",
        "majority@k", "tokens", "unfinished", "no answer",
    ]  # fmt: skip
    lines = []
    named = [
        (label, row, part)
        for name, row in metrics["benchmarks"].items()
        for label, part in [(name, row), *((f"{name} ({task})", its) for task, its in row.get("by_task", {}).items())]
    ]
    for name, whole, row in named:
        error = row["standard_error"]
        low, high = row["interval"]
        most = str(row["samples"])
        lines.append([
            f"{name} v{whole['version']}", str(row["questions"]), most, f"{metrics['temperature']:g}",
            f"{metrics['top_p']:g}", str(whole["seed"]), f"{row['pass@1'] * 100:.1f}",
            "-" if error is None else f"{error * 100:.1f}", f"{low * 100:.1f} to {high * 100:.1f}",
            *(f"{of[most] * 100:.1f} (k={most})" if most in of else "-" for of in (row["pass@k"], row["majority@k"])),
            f"{row['mean_completion_tokens']:.0f}", f"{row['unfinished'] * 100:.1f} %",
            f"{row['unreadable'] * 100:.1f} %",
        ])  # fmt: skip
    return f"{split_tables(head, lines)}\n{legend(COLUMNS)}"
