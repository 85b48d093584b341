"""Problems as rows for other engines: the teacher's prompt, and a label with what the reward needs.

    python -m rlt.integrations.prompts --data problems.jsonl --model TEACHER --format stratos --output prompts.jsonl

Runs in rlt's own environment, so that engines need neither rlt's formats nor its tokenizers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from rlt.config import DataConfig
from rlt.data.problems import load_problems
from rlt.data.rows import write_rows
from rlt.errors import RltError
from rlt.models.loading import load_tokenizer
from rlt.provenance import date_of
from rlt.text.clock import VARIABLE, pin_date
from rlt.text.formats import DEFAULT_FORMAT, Format, load_format, teacher_prompt
from rlt.types import JsonRow, Problem


def text_row(problem: Problem, prompt: str) -> JsonRow:
    """A row for OpenRLHF and slime: `prompt` is the text that the teacher continues, `label` a JSON object."""
    return {"prompt": prompt, "label": _label(problem)}


def messages_row(fmt: Format, problem: Problem) -> JsonRow:
    """A row for verifiers and NeMo Gym, with messages as `prompt`; raises ConfigError for a format that needs prefill."""
    messages = fmt.teacher_messages(problem)
    return {
        "prompt": messages,
        "responses_create_params": {"input": messages},
        "label": _label(problem),
        **_known(problem),
    }


def verl_row(fmt: Format, problem: Problem, prompt: str, number: int) -> JsonRow:
    """A row for verl. With prefill, it selects the agent loop `rlt`, because verl's own would not continue the turn."""
    prefilled = fmt.solution_turn == "assistant"
    messages = fmt.teacher_messages(problem, fmt.teacher_prefix(problem) if prefilled else None)
    return {
        "data_source": "rlt",
        **({"agent_name": "rlt"} if prefilled else {}),
        "prompt": messages,
        "reward_model": {"style": "rule", "ground_truth": _label(problem)},
        "extra_info": {"index": number, "teacher_prompt": prompt},
    }


def skyrl_row(fmt: Format, problem: Problem) -> JsonRow:
    """A row for SkyRL, with messages as `prompt`; raises ConfigError for a format that needs prefill."""
    known = {"ground_truth": _label(problem), "method": "rule"}
    return {"data_source": "rlt", "env_class": "rlt", "prompt": fmt.teacher_messages(problem), "reward_spec": known}


def _label(problem: Problem) -> str:
    return json.dumps(_known(problem), ensure_ascii=False)


def _known(problem: Problem) -> JsonRow:
    values = {name: getattr(problem, name) for name in ("question", "solution", "answer", "system")}
    return {name: value for name, value in values.items() if value is not None}


def main(arguments: list[str] | None = None) -> int:
    """Write the rows. The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rlt.integrations.prompts", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--data", required=True, help="JSONL, JSON or Parquet file of problems, or a hub dataset")
    parser.add_argument("--model", help="teacher whose chat template renders the prompts; for --kind text and verl")
    parser.add_argument("--format", default=DEFAULT_FORMAT, help="shipped format or YAML file, as in other commands")
    parser.add_argument(
        "--kind", choices=("text", "messages", "verl", "skyrl"), default="text", help="form of the rows"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSONL file to write")
    options = parser.parse_args(arguments)
    if options.kind in ("text", "verl") and options.model is None:
        parser.error(f"--kind {options.kind} needs --model: the prompts are rendered with its chat template")
    try:
        fmt = load_format(options.format)
        problems = load_problems(DataConfig(path=options.data), fmt)
        if options.kind == "messages":
            rows = [messages_row(fmt, problem) for problem in problems]
        elif options.kind == "skyrl":
            rows = [skyrl_row(fmt, problem) for problem in problems]
        else:
            tokenizer = load_tokenizer(options.model)
            pin_date(date_of([], os.environ.get(VARIABLE), [Path(options.model)]))
            prompts = [(problem, teacher_prompt(fmt, tokenizer, problem)) for problem in problems]
            if options.kind == "text":
                rows = [text_row(problem, prompt) for problem, prompt in prompts]
            else:
                rows = [verl_row(fmt, problem, prompt, number) for number, (problem, prompt) in enumerate(prompts)]
    except RltError as error:
        print(f"rlt: error: {error}", file=sys.stderr)
        return 1
    write_rows(options.output, rows)
    print(f"{len(rows)} prompts: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
