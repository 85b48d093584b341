"""The numbers of a benchmark, from its graded responses, and their table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rlt.results import intervals
from rlt.results.tables import text_table
from rlt.tasks import load_task
from rlt.types import JsonRow


def numbers(rows: Sequence[JsonRow], task: str) -> JsonRow:
    """A benchmark's numbers: pass@1 with standard error and interval, pass@k, majority@k, lengths and shares.

    `mean_score` where the task gives parts of a point, and `by_task` where there are several tasks: each one's numbers.
    """
    correct, extracted = _by_question(rows)
    samples = len(correct[0])
    solved = intervals.pass_at_1(correct)
    tasks = sorted({row["task"] for row in rows})
    same = getattr(load_task(task), "same", str.__eq__) if len(tasks) == 1 else str.__eq__
    scores = [row["score"] for row in rows if row.get("score") is not None]
    extra: JsonRow = {"mean_score": fmean(scores)} if scores else {}
    if len(tasks) > 1:
        extra["by_task"] = {one: numbers([row for row in rows if row["task"] == one], one) for one in tasks}
    more = sorted({k for k in (2, 4, 8, 16, 32, 64, samples) if 1 < k <= samples})
    return {
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
        **extra,
    }


def _by_question(rows: Sequence[JsonRow]) -> tuple[list[list[bool]], list[list[str | None]]]:
    groups: dict[str, list[JsonRow]] = {}
    for row in rows:
        groups.setdefault(row["question_id"], []).append(row)
    ordered = [sorted(group, key=lambda row: row["sample"]) for group in groups.values()]
    return [[r["correct"] for r in group] for group in ordered], [[r["extracted"] for r in group] for group in ordered]


def table(metrics: JsonRow) -> str:
    """The benchmarks as a table for the terminal: rates in points of 100, each with how it was sampled."""
    head = [
        "benchmark", "questions", "samples", "temperature", "top-p", "seed", "pass@1", "s.e.", "95 %", "pass@k",
        "majority@k", "tokens", "unfinished", "no answer",
    ]  # fmt: skip
    lines = []
    named = [
        (label, {**part, "version": row["version"], "seed": row["seed"]})
        for name, row in metrics["benchmarks"].items()
        for label, part in {
            name: row,
            **{f"{name} ({task})": its for task, its in row.get("by_task", {}).items()},
        }.items()
    ]
    for name, row in named:
        error = row["standard_error"]
        low, high = row["interval"]
        most = str(row["samples"])
        lines.append([
            f"{name} v{row['version']}", str(row["questions"]), most, f"{metrics['temperature']:g}",
            f"{metrics['top_p']:g}", str(row["seed"]), f"{row['pass@1'] * 100:.1f}",
            "-" if error is None else f"{error * 100:.1f}", f"{low * 100:.1f} to {high * 100:.1f}",
            *(f"{row[of][most] * 100:.1f} (k={most})" if most in row[of] else "-" for of in ("pass@k", "majority@k")),
            f"{row['mean_completion_tokens']:.0f}", f"{row['unfinished'] * 100:.1f} %",
            f"{row['unreadable'] * 100:.1f} %",
        ])  # fmt: skip
    return text_table(head, lines)
