"""Evaluate a model on benchmarks: responses, grades, and statistics with intervals.

`responses.jsonl` has one row per sample, written when the sample is finished; verdicts are added at the end. After an
interruption, the same command generates the missing samples. Questions of a private benchmark (GPQA) are never written:
rows have their hash and the response.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from tqdm.auto import tqdm

from rlt.config import EvaluateConfig
from rlt.data.overlap import refuse, shared, training_data
from rlt.data.rows import JsonlWriter, read_rows, write_rows, write_text
from rlt.engines.base import Completion, Engine, Request, Sampling, request_seed
from rlt.engines.build import build_engine
from rlt.errors import ConfigError, DataError, RltError, RunError
from rlt.models.loading import context_length, load_config, load_tokenizer
from rlt.outputs import Result, StageFolder, begin, read_state
from rlt.results import intervals
from rlt.results.benchmarks import (
    BenchmarkNumbers,
    Evaluated,
    Evaluation,
    ResponseRow,
    Sampled,
    evaluation,
    numbers,
    table,
)
from rlt.results.inspect_log import write_logs
from rlt.tasks import load_grader
from rlt.tasks.benchmarks import (
    Benchmark,
    Question,
    fingerprint,
    load_benchmark,
    load_questions,
)
from rlt.tasks.grading import Graders
from rlt.terminal import quiet
from rlt.text.formats import Format, check_template, load_format, student_prompt
from rlt.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


UNREADABLE = 0.95  # share of responses without a readable answer above which a warning is printed


class Preset(NamedTuple):
    """Sampling settings of a preset."""

    samples: int
    temperature: float
    top_p: float
    max_tokens: int


# `paper`: SkyThought's defaults at the commit with which RLT was evaluated (PAPER: greedy, 32,768 tokens, one sample).
PRESETS = {"paper": Preset(1, 0.0, 1.0, 32768), "robust": Preset(8, 0.6, 0.95, 32768)}
RESPONSES, RESULTS = "responses.jsonl", "results.json"
LOGS = "inspect"  # one file per benchmark, for `inspect view`

Rows = dict[str, ResponseRow]
"""Key `benchmark/question/sample` -> row of responses.jsonl."""


def run(config: EvaluateConfig) -> Result:
    """The folder with `responses.jsonl` and `results.json`; metrics: `benchmarks` (name -> `numbers`) and the sampling."""
    folder = begin("evaluate", config)
    if folder.result:
        if not quiet():
            print(table(evaluation(folder.result.metrics)))
        return folder.result
    try:
        asked = _prepare(config)
        rows = _written(folder, asked)
        engine = None
        if any(row is None for row in rows.values()):
            engine = build_engine(config, config.model, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
            _check_context(asked, engine.context_length, config)
    except RltError:
        if not folder.resumed:  # nothing was generated: the corrected command may use the folder
            folder.state_file.unlink(missing_ok=True)
        raise
    if engine is not None:
        with closing(engine):
            _generate(asked, rows, engine, folder.path / RESPONSES)
    done = _grade(config, asked, {key: row for key, row in rows.items() if row is not None})
    write_rows(folder.path / RESPONSES, done.values())
    metrics = _metrics(config, asked, done)
    results = _results(config, asked, metrics)
    write_text(folder.path / RESULTS, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_logs(folder.path / LOGS, list(done.values()), results, _shown_prompts(asked))
    if not quiet():
        print(table(metrics))
    return folder.finish(metrics)


# -- what is asked, checked before a model is loaded -------------------------------------------------------------------


@dataclass(frozen=True)
class _Set:
    """One benchmark with its questions and prompts, in order."""

    benchmark: Benchmark
    questions: list[Question]
    prompts: list[str]
    prompt_tokens: list[int]


@dataclass(frozen=True)
class _Asked:
    """Everything that is asked, and how."""

    sets: list[_Set]
    format: Format
    sampling: Sampling
    samples: int
    strict: bool
    seed: int

    def each(self) -> Iterator[tuple[str, _Set, int, int]]:
        """`(key, set, position of the question, sample)` of every response, in order."""
        for part in self.sets:
            for position, question in enumerate(part.questions):
                for sample in range(self.samples):
                    yield f"{part.benchmark.name}/{question.id}/{sample}", part, position, sample


def _prepare(config: EvaluateConfig) -> _Asked:
    fmt, keep_system = _with_system_prompt(load_format(config.format), config.system_prompt)
    sampling, samples, strict = _sampling(config)
    loaded = _load(config)
    _check_answers(config, loaded)
    _check_overlap(config, loaded)
    # A server says itself how long its context is; see `run`.
    local = config.engine != "openai"
    context = context_length(load_config(config.model, config.trust_remote_code)) if local else None
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    check_template(fmt, tokenizer)
    sets = []
    for benchmark, questions in loaded:
        prompts = [_prompt(config, fmt, tokenizer, benchmark, question, keep_system) for question in questions]
        ids = tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
        sets.append(_Set(benchmark, questions, prompts, [len(row) for row in ids]))
    asked = _Asked(sets, fmt, sampling, samples, strict, config.seed)
    _check_context(asked, context, config)
    return asked


def _with_system_prompt(fmt: Format, choice: str) -> tuple[Format, bool]:
    """The format with the chosen system prompt, and whether a dataset's own prompt takes precedence."""
    if choice == "format":
        return fmt, True
    if choice == "none":
        return fmt.model_copy(update={"student_system_prompt": None}), False
    if not Path(choice).is_file():
        raise ConfigError(f"`system_prompt`: {choice!r} is neither `format`, `none` nor a text file.")
    return fmt.model_copy(update={"student_system_prompt": Path(choice).read_text(encoding="utf-8").strip()}), False


def _load(config: EvaluateConfig) -> list[tuple[Benchmark, list[Question]]]:
    names = config.benchmark or ([config.data] if config.data else [])
    if not names:
        raise ConfigError("nothing to evaluate on: set `benchmark` (names or files) or `data` (a file).")
    if config.data is not None and len(names) > 1:
        raise ConfigError(f"`data` replaces the download of one benchmark, but {len(names)} are given.")
    loaded: list[tuple[Benchmark, list[Question]]] = []
    for name in names:
        benchmark, path = load_benchmark(name, config.task)
        if any(benchmark.name == other.name for other, _ in loaded):
            raise ConfigError(f"`benchmark`: two are named {benchmark.name}; evaluate them separately.")
        loaded.append((benchmark, load_questions(benchmark, path or config.data, config.limit)))
    return loaded


def _check_answers(config: EvaluateConfig, loaded: Sequence[tuple[Benchmark, list[Question]]]) -> None:
    for _, questions in loaded:
        tasks = [question.task for question in questions]
        for task in dict.fromkeys(tasks):
            load_grader(task)
        with Graders(config.grade_workers, config.grade_timeout) as graders:
            reasons = graders.check(tasks, [(question.answer, question.question) for question in questions])
        for question, reason in zip(questions, reasons, strict=True):
            if reason is not None:
                raise DataError(
                    f"{question.where}: column `answer`: {reason}, so no response could be graded ({question.task}). "
                    "Fix or remove the row, or choose another `task`."
                )


def _check_overlap(config: EvaluateConfig, loaded: Sequence[tuple[Benchmark, list[Question]]]) -> None:
    """Raise DataError if the model was trained on questions of a file; for a public benchmark, print how many."""
    trained = list(training_data(config.model, lambda path: (read_state(Path(path)) or {}).get("config")))
    for benchmark, questions in loaded:
        for data in [] if config.allow_overlap else trained:
            both = shared(data, ((question.where, question.question) for question in questions))
            if benchmark.hub is None and benchmark.generate is None:
                refuse(both, benchmark.title, data)
            elif both:
                share = f"{len(both)} of {len(questions)} questions of {benchmark.name}"
                print(f"evaluate: {share} are in the training data {data.path}", flush=True)


def _prompt(
    config: EvaluateConfig,
    fmt: Format,
    tokenizer: PreTrainedTokenizerBase,
    benchmark: Benchmark,
    question: Question,
    keep_system: bool,
) -> str:
    text = benchmark.instructed(question.question) if config.instruction == "benchmark" else question.question
    problem = Problem(question.id, text, solution="", system=question.system if keep_system else None)
    return student_prompt(fmt, tokenizer, problem)


def _sampling(config: EvaluateConfig) -> tuple[Sampling, int, bool]:
    """Settings, samples per question, and whether every response must have room for all tokens (`max_tokens` is set)."""
    preset = PRESETS[config.preset or "paper"]
    samples = preset.samples if config.samples is None else config.samples
    temperature = preset.temperature if config.temperature is None else config.temperature
    if samples > 1 and temperature == 0:
        raise ConfigError(
            f"`samples: {samples}` at temperature 0 would give the same response {samples} times. Set a `temperature` above 0 "
            "(and `top_p` if wanted), or `samples: 1`."
        )
    top_p = preset.top_p if config.top_p is None else config.top_p
    sampling = Sampling(config.max_tokens or preset.max_tokens, temperature, top_p, config.top_k)
    return sampling, samples, config.max_tokens is not None


def _check_context(asked: _Asked, context: int | None, config: EvaluateConfig) -> None:
    """Raise DataError if a prompt and its response do not fit into `context` tokens.

    A given `max_tokens` must fit together with the prompt. A preset's 32,768 tokens must fit without it: a model with a
    context of 32,768 generates until its context ends. Otherwise a response gets whatever the context leaves.
    """
    if context is None:
        return
    wanted = asked.sampling.max_tokens if asked.strict or config.preset else 1
    for part in asked.sets:
        position = max(range(len(part.prompts)), key=part.prompt_tokens.__getitem__)
        longest = part.prompt_tokens[position]
        needed = longest + wanted if asked.strict else max(longest + 1, wanted)
        if needed > context:
            room = context - longest
            fix = f"Set --max-tokens {room} or less" if room > 0 else "Leave that question out"
            raise DataError(
                f"{part.benchmark.name}: the context of {context} tokens is too short for a prompt of {longest} "
                f"(question {part.questions[position].id}) and {wanted} new tokens. {fix}, or use a model with a "
                "longer context."
            )


# -- responses ---------------------------------------------------------------------------------------------------------


def _written(folder: StageFolder, asked: _Asked) -> dict[str, ResponseRow | None]:
    """Every key in order with its existing row, or None. Raises RunError if prompts have changed."""
    rows: dict[str, ResponseRow | None] = {key: None for key, *_ in asked.each()}
    path = folder.path / RESPONSES
    if not folder.resumed or not path.exists():
        return rows
    JsonlWriter(path).close()  # cuts off a half-written last line
    prompts = {key: part.prompts[position] for key, part, position, _ in asked.each()}
    for where, found in read_rows(path):
        row = cast(ResponseRow, found)
        if row["key"] not in rows or row["prompt_sha256"] != _sha256(prompts[row["key"]]):
            raise RunError(
                f"{folder.path}: {where} answers a different prompt than the data has now. Restore the data, or choose "
                "another --output."
            )
        rows[row["key"]] = rows[row["key"]] or row
    return rows


def _generate(asked: _Asked, rows: dict[str, ResponseRow | None], engine: Engine, path: Path) -> None:
    """Generate every missing response; each is written when it is finished."""
    with JsonlWriter(path) as writer:
        for part in asked.sets:
            missing = [item for item in asked.each() if item[1] is part and rows[item[0]] is None]
            if not missing:
                continue
            total = len(part.questions) * asked.samples
            if not quiet():
                print(f"evaluate: {part.benchmark.name}, {_how(asked, part)}", flush=True)
            pending = {key: (position, sample) for key, _, position, sample in missing}
            requests = (
                Request(key, part.prompts[position], _seed(asked.seed, part, position, sample))
                for key, _, position, sample in missing
            )
            with tqdm(
                total=total, initial=total - len(missing), unit=" responses", desc=part.benchmark.name, disable=quiet()
            ) as bar:
                for completion in engine.generate(requests, asked.sampling):
                    position, sample = pending.pop(completion.key)
                    row = _row(part, position, sample, completion)
                    writer.write([row])
                    rows[completion.key] = row
                    bar.update()
            if pending:
                raise RltError(
                    f"{part.benchmark.name}: the engine returned {len(pending)} responses too few; run it again."
                )


def _shown_prompts(asked: _Asked) -> dict[str, str]:
    return {key: part.prompts[place] for key, part, place, _ in asked.each() if not part.benchmark.private}


def _how(asked: _Asked, part: _Set) -> str:
    sampling = asked.sampling
    how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}"
    return f"{len(part.questions)} questions x {asked.samples} sample(s), seed {asked.seed}, {how}"


def _seed(seed: int, part: _Set, position: int, sample: int) -> int:
    return request_seed(seed, part.benchmark.name, part.questions[position].id, sample)


def _row(part: _Set, position: int, sample: int, completion: Completion) -> ResponseRow:
    question, benchmark = part.questions[position], part.benchmark
    return {
        "key": completion.key,
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "question_id": question.id,
        "sample": sample,
        "seed": completion.seed,
        "prompt_sha256": _sha256(part.prompts[position]),
        "question_sha256": _sha256(question.question),
        **({} if benchmark.private else {"question": question.question}),
        "answer": question.answer,
        "task": question.task,
        "response": completion.text,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "finish_reason": completion.finish_reason,
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _grade(config: EvaluateConfig, asked: _Asked, rows: Rows) -> Rows:
    """The same rows with `extracted`, `correct` and, if grading failed, `error`."""
    graded: Rows = {}
    for part in asked.sets:
        questions = {question.id: question for question in part.questions}
        mine = {key: row for key, row in rows.items() if row["benchmark"] == part.benchmark.name}
        tasks = [question.task for row in mine.values() for question in [questions[row["question_id"]]]]
        items = [(row["response"], row["answer"], questions[row["question_id"]].question) for row in mine.values()]
        desc = f"grading {part.benchmark.name}"
        with (
            Graders(config.grade_workers, config.grade_timeout) as graders,
            tqdm(total=len(items), unit=" responses", desc=desc, disable=quiet()) as bar,
        ):
            verdicts = graders.grade(tasks, items, asked.format, progress=bar.update)
        for (key, row), verdict in zip(mine.items(), verdicts, strict=True):
            # A row graded before keeps no field of its old verdict.
            row.pop("score", None)
            row |= {"correct": verdict.correct, "extracted": verdict.extracted, "error": verdict.error}
            if verdict.score is not None:
                row["score"] = verdict.score
            graded[key] = row
    return graded


# -- numbers -----------------------------------------------------------------------------------------------------------


def _metrics(config: EvaluateConfig, asked: _Asked, rows: Rows) -> Evaluation:
    benchmarks: dict[str, BenchmarkNumbers] = {}
    for part in asked.sets:
        mine = [row for row in rows.values() if row["benchmark"] == part.benchmark.name]
        task = _task(mine, part.benchmark.task)
        benchmarks[part.benchmark.name] = {
            **numbers(mine, task),
            "seed": config.seed,
            "version": part.benchmark.version,
            "task": task,
            "fingerprint": fingerprint(part.benchmark, part.questions),
        }
        _warn_unreadable(config, part.benchmark.name, benchmarks[part.benchmark.name]["unreadable"])
    sampling = asked.sampling
    return {
        "benchmarks": benchmarks,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_tokens,
        "samples": asked.samples,
        "seed": config.seed,
    }


def _task(rows: Sequence[ResponseRow], default: str) -> str:
    """The tasks of a benchmark's rows."""
    return " + ".join(sorted({row["task"] for row in rows})) or default


def _warn_unreadable(config: EvaluateConfig, name: str, share: float) -> None:
    if share >= UNREADABLE:
        print(
            f"evaluate: {name}: no answer can be read in {share:.0%} of the responses. Was {config.model} trained with the "
            f"format `{config.format}` (`--format`), and is `--max-tokens` large enough?",
            flush=True,
        )


def _results(config: EvaluateConfig, asked: _Asked, metrics: Evaluation) -> Evaluated:
    return {
        "model": config.model,
        "preset": config.preset,
        "engine": config.engine,
        "format": config.format,
        "system_prompt": config.system_prompt,
        "instruction": config.instruction,
        "sampling": cast(Sampled, {**asdict(asked.sampling), "samples": asked.samples, "seed": config.seed}),
        "interval": intervals.INTERVAL,
        "benchmarks": metrics["benchmarks"],
        "sources": {part.benchmark.name: part.benchmark.source for part in asked.sets},
    }
