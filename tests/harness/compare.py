"""Counts where rlt's grader and lm-evaluation-harness differ: how the table in docs/evaluation.md was made.

python -m tests.harness.compare RESPONSES.jsonl [--format stratos]    (after `make harness`)

RESPONSES has the columns `question`, `answer` (mathematics) and `response`: `responses.jsonl` of `rlt evaluate`, or recorded
ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from rlt.data.rows import read_rows, write_rows
from rlt.integrations.lm_eval import ExportConfig, export
from rlt.results.tables import text_table
from rlt.tasks.grading import GraderPool
from rlt.text.formats import load_format

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-harness" / "bin" / "python"
HARNESS = ("math_verify", "exact_match")


def main() -> None:
    """Print the counts, then one line per response on which they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("responses", type=Path)
    parser.add_argument("--format", default="stratos")
    wanted = parser.parse_args()
    rows = [row for _, row in read_rows(wanted.responses)]
    items = [(str(row["response"]), str(row["answer"]), str(row["question"])) for row in rows]
    with GraderPool("math", workers=1) as pool:
        ours = pool.grade(items, load_format(wanted.format))
    theirs = harness_verdicts([(question, answer, response) for response, answer, question in items], wanted.format)
    counts, lines = [], []
    for name in HARNESS:
        pairs = [(mine.correct, bool(other[name])) for mine, other in zip(ours, theirs, strict=True)]
        right = [sum(pair[i] for pair in pairs) for i in (0, 1)]
        counts.append([name, str(len(pairs)), *map(str, right), str(sum(a != b for a, b in pairs))])
        lines += [
            f"row {number}: rlt {mine}, {name} {other}; answer {items[number][1]!r}, rlt read {ours[number].extracted!r}"
            for number, (mine, other) in enumerate(pairs)
            if mine != other
        ]
    print(text_table(["harness", "responses", "right by rlt", "right by harness", "differ"], counts, numbers_from=1))
    print(*lines, sep="\n")


def harness_verdicts(items: list[tuple[str, str, str]], format_name: str) -> list[dict[str, int]]:
    """The harness's verdicts on `(question, answer, response)`, by the task that `rlt export lm-eval` writes."""
    with tempfile.TemporaryDirectory() as folder:
        asked, said = Path(folder) / "asked.jsonl", Path(folder) / "said.jsonl"
        write_rows(asked, ({"id": str(i), "question": q, "answer": a} for i, (q, a, _) in enumerate(items)))
        write_rows(said, ({"question_id": str(i), "response": text} for i, (_, _, text) in enumerate(items)))
        export(ExportConfig(benchmark=str(asked), output=Path(folder) / "task", format=format_name))
        command = [str(PYTHON), str(Path(__file__).with_name("verdicts.py")), f"{folder}/task", "rlt_asked", str(said)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"question_id"')]


if __name__ == "__main__":
    main()
