"""`rlt export lm-eval`: a benchmark as a task of lm-evaluation-harness.

The harness's grader then scores a student. Why not lighteval: the harness's tasks are YAML files found by `--include_path`,
and it installs next to rlt. lighteval's tasks are Python modules, and lighteval 0.13 pins a latex2sympy2_extended that
conflicts with math-verify's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import yaml
from pydantic import Field

from rlt.config import Config
from rlt.data.rows import write_rows, write_text
from rlt.errors import ConfigError
from rlt.tasks.benchmarks import Benchmark, Question, load_benchmark, load_questions, questions_of_rows
from rlt.text.formats import load_format
from rlt.types import JsonMap, JsonRow

GRADED = {
    "math": ("process_math", ("exact_match", "math_verify")),
    "multiple_choice": ("process_choice", ("exact_match",)),
}
"""Task of rlt -> the function of utils.py that gives the harness its verdicts, and their names."""


class ExportConfig(Config):
    """Write a benchmark as a task of lm-evaluation-harness."""

    benchmark: str
    """Benchmark by name, or a file with `question` and `answer`."""
    output: Path
    """Folder for the task, to be passed to `lm_eval --include_path`."""
    data: str | None = None
    """A file to use instead of the benchmark's download."""
    task: str | None = None
    """Task that grades the answers; null: the benchmark's own, or `math` for files."""
    format: str = "stratos"
    """Format the student was trained with, for the system prompt and the tags around the solution."""
    system_prompt: str = "format"
    """`format` (that of the student's format), `none`, or a text file."""
    max_tokens: int = Field(32768, ge=1)
    """Maximum tokens of a response; the default is that of the preset `paper`."""


def export(config: ExportConfig) -> str:
    """The command that runs the task written into `config.output`. Raises ConfigError for tasks other than GRADED."""
    benchmark, path = load_benchmark(config.benchmark, config.task)
    if benchmark.task not in GRADED:
        raise ConfigError(
            f"benchmark {benchmark.name}: lm-evaluation-harness cannot grade its task {benchmark.task}, only "
            f"{', '.join(GRADED)}. Choose one of these with `task` if the answers fit."
        )
    fmt = load_format(config.format)
    system = fmt.student_system_prompt
    if config.system_prompt != "format":
        if config.system_prompt != "none" and not Path(config.system_prompt).is_file():
            raise ConfigError(f"`system_prompt`: {config.system_prompt!r} is neither `format`, `none` nor a text file.")
        none = config.system_prompt == "none"
        system = None if none else Path(config.system_prompt).read_text(encoding="utf-8").strip()
    config.output.mkdir(parents=True, exist_ok=True)
    name = "rlt_" + re.sub(r"\W+", "_", benchmark.name)
    if benchmark.private:
        source = _private_source(benchmark, path or config.data)
    else:
        questions = load_questions(benchmark, path or config.data)
        write_rows(config.output / "questions.jsonl", [_doc(benchmark, question) for question in questions])
        source = _files("json", config.output / "questions.jsonl")
    spec = {
        "benchmark": str(Path(path).resolve()) if path else benchmark.name, "private": benchmark.private,
        "solution_open": fmt.tags.solution.open,
        "solution_close": fmt.tags.solution.close, "thought_close": fmt.tags.thought.close,
    }  # fmt: skip
    write_text(config.output / "spec.json", json.dumps(spec, indent=1) + "\n")
    utils = resources.files("rlt") / "shipped" / "lm_eval" / "utils.py"
    write_text(config.output / "utils.py", utils.read_text(encoding="utf-8"))
    write_text(config.output / f"{name}.yaml", _task(name, benchmark, source, system, config.max_tokens))
    return (
        f"lm_eval --model hf --model_args pretrained=STUDENT --tasks {name} --include_path {config.output} "
        "--apply_chat_template --log_samples --output_path results"
        + ("\n(without --log_samples, which would write the questions to disk)" if benchmark.private else "")
    )


def asked(name: str, rows: Iterable[JsonMap]) -> list[JsonRow]:
    """The rows of a benchmark's dataset in the task's form: `id`, `prompt` and `target`."""
    benchmark, _ = load_benchmark(name)
    return [_doc(benchmark, question) for question in questions_of_rows(benchmark, rows)]


def _doc(benchmark: Benchmark, question: Question) -> JsonRow:
    return {"id": question.id, "prompt": benchmark.instructed(question.question), "target": question.answer}


def _private_source(benchmark: Benchmark, data: str | None) -> JsonRow:
    if data is not None or benchmark.hub is None:
        path = Path(data or "")
        return _files(path.suffix.removeprefix(".").replace("jsonl", "json"), path)
    named = {} if benchmark.hub.name is None else {"dataset_name": benchmark.hub.name}
    return {"dataset_path": benchmark.hub.path, **named, "test_split": benchmark.hub.split}


def _files(kind: str, path: Path) -> JsonRow:
    return {"dataset_path": kind, "dataset_kwargs": {"data_files": {"test": str(path.resolve())}}, "test_split": "test"}


def _task(name: str, benchmark: Benchmark, source: JsonRow, system: str | None, max_tokens: int) -> str:
    function, metrics = GRADED[benchmark.task]
    values: JsonRow = {
        "task": name,
        **source,
        "output_type": "generate_until",
        # With --apply_chat_template the description is the system message.
        **({} if system is None else {"description": system}),
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{target}}",
        "num_fewshot": 0,
        "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": max_tokens},
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics],
        "metadata": {"version": float(benchmark.version), "source": benchmark.source},
    }
    functions = f"process_docs: !function utils.process_docs\nprocess_results: !function utils.{function}\n"
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000) + functions
