"""Problems as rows that other engines read: the teacher's prompt, and a label with what the reward needs.

    python -m rlt.integrations.prompts --data problems.jsonl --model TEACHER --format stratos --output prompts.jsonl

Runs in rlt's own environment, so that engines need neither rlt's formats nor its tokenizers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rlt.config import DataConfig
from rlt.data.problems import load_problems
from rlt.data.rows import write_rows
from rlt.errors import RltError
from rlt.models.loading import load_tokenizer
from rlt.text.formats import DEFAULT_FORMAT, Format, load_format, teacher_prompt
from rlt.types import JsonRow, Problem


def text_row(problem: Problem, prompt: str) -> JsonRow:
    """A row for OpenRLHF and slime: `prompt` is the text that the teacher continues, `label` a JSON object."""
    return {"prompt": prompt, "label": _label(problem)}


def messages_row(fmt: Format, problem: Problem) -> JsonRow:
    """A row for verifiers and NeMo Gym, whose `prompt` is messages; raises ConfigError for a format that needs prefill."""
    messages = fmt.teacher_messages(problem)
    return {
        "prompt": messages,
        "responses_create_params": {"input": messages},
        "label": _label(problem),
        **_known(problem),
    }


def _label(problem: Problem) -> str:
    return json.dumps(_known(problem), ensure_ascii=False)


def _known(problem: Problem) -> JsonRow:
    values = {name: getattr(problem, name) for name in ("question", "solution", "answer", "system")}
    return {name: value for name, value in values.items() if value is not None}


def main(arguments: list[str] | None = None) -> int:
    """Write the rows; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rlt.integrations.prompts", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="JSONL, JSON or Parquet file of problems, or a hub dataset")
    parser.add_argument("--model", help="teacher whose chat template renders the prompts; for --kind text")
    parser.add_argument("--format", default=DEFAULT_FORMAT, help="as in every command of rlt")
    parser.add_argument("--kind", choices=("text", "messages"), default="text", help="what `prompt` is")
    parser.add_argument("--output", type=Path, required=True, help="JSONL file to write")
    options = parser.parse_args(arguments)
    if options.kind == "text" and options.model is None:
        parser.error("--kind text needs --model: the prompts are rendered with its chat template")
    try:
        fmt = load_format(options.format)
        problems = load_problems(DataConfig(path=options.data), fmt)
        if options.kind == "messages":
            rows = [messages_row(fmt, problem) for problem in problems]
        else:
            tokenizer = load_tokenizer(options.model)
            rows = [text_row(problem, teacher_prompt(fmt, tokenizer, problem)) for problem in problems]
    except RltError as error:
        print(f"rlt: error: {error}", file=sys.stderr)
        return 1
    write_rows(options.output, rows)
    print(f"{len(rows)} prompts: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
