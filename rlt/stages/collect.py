"""Collection: the teacher's explanations for a set of problems, as it wrote them, and which of them students get."""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlt.config import CollectConfig, DataConfig, StudentOptions
from rlt.data import iter_problems
from rlt.errors import DataError, RltError, RunError
from rlt.explanations import Shards, explanation_row, schema, write_card
from rlt.formats import Format, check_template, load_format, teacher_prompt
from rlt.generation import Request, Sampling, build_engine, request_seed
from rlt.models import context_length, load_config, load_tokenizer
from rlt.rows import JsonlWriter, read_rows, write_rows
from rlt.runs import Result, StageFolder, begin, write_text
from rlt.selection import Fits, Report, choose_all, choose_best, choose_random, problem_of_row, select
from rlt.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SELECTED = {"all": choose_all, "reward": choose_best}


def run(config: CollectConfig) -> Result:
    """A folder with `samples` explanations of every problem, in shards; with a selection, these are in `raw/`.

    `selected.jsonl` (or .parquet) then has what students get, and `report/dropped.jsonl` why other rows are left out.
    Killed and started again it goes on, and leaves the files that it would have left.
    """
    fmt = load_format(config.format)
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    check_template(fmt, tokenizer)
    fits = _fits(config, fmt)
    if config.select == "reward":
        _open_scorers(config, fmt)  # what the reward refuses is told before anything is collected
    survey = _survey(config.data, fmt)
    folder = begin("collect", config)
    if folder.result:
        return folder.result
    try:
        _check_same_data(folder, survey)
        raw = folder.path if fits is None else folder.path / "raw"
        shards = Shards(raw, folder.path / "state", survey.problems, config.samples, config.file_format)
        with closing(shards):
            metrics = _collect(config, fmt, tokenizer, shards)
            if fits is not None:
                metrics |= _select(config, fmt, fits, shards, folder)
        _card(config, folder, metrics)
        result = folder.finish({**metrics, "invalid_rows": survey.dropped})
    except OSError as error:
        if isinstance(error, RltError):
            raise
        raise DataError(
            f"{folder.path}: cannot be written ({error.strerror or error}). What was written is kept."
        ) from error
    print(
        f"collect: {metrics['explanations']} explanations in {raw}, {metrics['unclosed']} of them without closing tag"
    )
    return result


# -- the problems ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Survey:
    problems: int
    dropped: int
    digest: str


def _survey(data: DataConfig, fmt: Format) -> _Survey:
    """All rows read once before a model is: they are valid, their ids differ, and a digest tells if they changed."""
    import numpy as np

    digest, ids, dropped = hashlib.sha256(), array("Q"), _Dropped()
    for problem in iter_problems(data, fmt, dropped=dropped):
        digest.update(repr(problem).encode())
        ids.append(_hash(problem.id))
    if not ids:
        raise DataError(f"{data.path}: no problem left; {dropped.number} rows were invalid. The first: {dropped.first}")
    if len(np.unique(np.frombuffer(ids, dtype=np.uint64))) < len(ids):
        raise DataError(f"{data.path}: column `id` repeats. Every problem needs its own, or leave the column out.")
    return _Survey(len(ids), dropped.number, digest.hexdigest())


class _Dropped(list[str]):
    """Stands in for the list of dropped rows without keeping it."""

    number = 0
    first = "there are none"

    def append(self, line: str) -> None:
        self.first = line if self.number == 0 else self.first
        self.number += 1


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _check_same_data(folder: StageFolder, survey: _Survey) -> None:
    path = folder.path / "state" / "data.sha256"
    if not path.exists():
        write_text(path, survey.digest + "\n")
    elif path.read_text(encoding="utf-8").strip() != survey.digest:
        raise RunError(
            f"{folder.path}: begun with other problems than {folder.config.data.path} has now. "  # type: ignore[attr-defined]
            "Put the data back, or choose another --output."
        )


# -- collecting ------------------------------------------------------------------------------------------------------


def _collect(config: CollectConfig, fmt: Format, tokenizer: PreTrainedTokenizerBase, shards: Shards) -> dict[str, Any]:
    """Write the explanations that are missing; numbers over all of them."""
    missing = shards.missing()
    first = next(missing, None)
    if first is not None:
        engine = build_engine(config, config.model, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
        with closing(engine):
            pending: dict[str, tuple[int, int, Problem]] = {}
            requests = _requests(config, fmt, tokenizer, _chain(first, missing), pending)
            sampling = Sampling(
                config.max_tokens, config.temperature, config.top_p, config.top_k, stop=(fmt.tags.explanation.close,)
            )
            with _progress(shards.problems * config.samples, shards.written(), "explanation") as bar:
                for completion in engine.generate(requests, sampling):
                    position, sample, problem = pending.pop(completion.key)
                    seed = request_seed(config.seed, problem.id, sample) if engine.seeded else None
                    row = explanation_row(fmt, problem, sample, config.samples, seed, completion, engine.name)
                    shards.add(position, row)
                    bar.update()
    return _numbers(shards)


def _requests(
    config: CollectConfig,
    fmt: Format,
    tokenizer: PreTrainedTokenizerBase,
    missing: Iterator[tuple[int, int]],
    pending: dict[str, tuple[int, int, Problem]],
) -> Iterator[Request]:
    """A request for each missing row, drawn as the engine wants them; `pending` knows those under way by their key."""
    problems = enumerate(iter_problems(config.data, fmt, dropped=_Dropped()))
    at, problem, prompt = -1, None, ""
    for position, sample in missing:
        while at < position:
            at, problem = next(problems)
            prompt = ""
        assert problem is not None
        prompt = prompt or teacher_prompt(fmt, tokenizer, problem)
        key = f"{position}/{sample}"
        pending[key] = (position, sample, problem)
        yield Request(key, prompt, request_seed(config.seed, problem.id, sample))


def _chain(first: tuple[int, int], rest: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    yield first
    yield from rest


def _numbers(shards: Shards) -> dict[str, Any]:
    count = unclosed = long = tokens = text_only = 0
    logprobs = 0.0
    for row in shards.rows():
        count += 1
        unclosed += not row["closed"]
        long += row["finish_reason"] == "length"
        tokens += row["completion_tokens"]
        logprobs += row["logprob_sum"] or 0.0
        text_only += row["text_only"]
    numbers = {
        "explanations": count, "problems": shards.problems, "unclosed": unclosed, "length_limited": long,
        "mean_tokens": round(tokens / count, 3), "text_only": text_only,
    }  # fmt: skip
    return numbers if text_only else {**numbers, "mean_logprob": round(logprobs / max(tokens, 1), 6)}


def _progress(total: int, done: int, unit: str) -> Any:
    from tqdm import tqdm

    quiet = os.environ.get("RLT_QUIET") == "1"
    return tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True, leave=False, disable=quiet, file=sys.stderr)


# -- selecting -------------------------------------------------------------------------------------------------------


def _fits(config: CollectConfig, fmt: Format) -> Fits | None:
    """What an explanation must be for students; None where no selection was asked for."""
    if config.student is None:
        return None if config.select == "all" else Fits(fmt)
    limit = config.student_context or context_length(load_config(config.student, config.trust_remote_code))
    tokenizer = load_tokenizer(config.student, config.trust_remote_code)
    check_template(fmt, tokenizer)
    return Fits(fmt, tokenizer, limit)


def _select(config: CollectConfig, fmt: Format, fits: Fits, shards: Shards, folder: StageFolder) -> dict[str, Any]:
    report = Report()
    choose = choose_random(config.seed) if config.select == "random" else SELECTED[config.select]
    more = {"reward": "float64"} if config.select == "reward" else {}
    dropped = folder.path / "report" / "dropped.jsonl"
    dropped.unlink(missing_ok=True)
    with JsonlWriter(dropped) as lines, _Rewards(config, fmt, folder) as rewards:
        score = rewards.score if config.select == "reward" else None
        chosen = select(
            shards.rows(), fits, choose, score, lambda row, why: lines.write([{"id": row["id"], "reason": why}]), report
        )
        write_rows(_selected(config, folder), chosen, schema(more) if config.file_format == "parquet" else None)
    print(f"collect: {report.text()}")
    return {
        "selected": report.kept, "dropped": dict(report.dropped), "problems_without": report.problems_without,
    }  # fmt: skip


def _selected(config: CollectConfig, folder: StageFolder) -> Any:
    return folder.path / f"selected.{config.file_format}"


class _Rewards:
    """Rewards of rows, kept in `state/rewards.jsonl` so that a run that was cut off does not compute them twice."""

    def __init__(self, config: CollectConfig, fmt: Format, folder: StageFolder) -> None:
        self.config, self.fmt, self.path = config, fmt, folder.path / "state" / "rewards.jsonl"
        self._score: Callable[[Sequence[dict[str, Any]]], list[tuple[float | None, str | None]]] | None = None
        self._known: dict[str, tuple[float | None, str | None]] = {}

    def __enter__(self) -> _Rewards:
        if self.config.select == "reward":
            self._file = JsonlWriter(self.path)
            self._before = (line for _, line in read_rows(self.path))
        return self

    def __exit__(self, *error: object) -> None:
        if self.config.select == "reward":
            self._file.close()

    def score(self, rows: Sequence[dict[str, Any]]) -> list[tuple[float | None, str | None]]:
        """`(reward, error)` of each row."""
        # Rows come in the same order each time, so that what is known is the beginning of what is asked for.
        known = [(line["reward"], line["error"]) for _, line in zip(rows, self._before, strict=False)]
        rest = rows[len(known) :]
        if not rest:
            return known
        scored = self._engine()(rest)
        self._file.write(
            {"id": row["id"], "reward": reward, "error": error}
            for row, (reward, error) in zip(rest, scored, strict=True)
        )
        return [*known, *scored]

    def _engine(self) -> Callable[[Sequence[dict[str, Any]]], list[tuple[float | None, str | None]]]:
        if self._score is None:
            self._score = _scorer(self.config, self.fmt)
        return self._score


def _scorer(
    config: CollectConfig, fmt: Format
) -> Callable[[Sequence[dict[str, Any]]], list[tuple[float | None, str | None]]]:
    """The reward of rows: `config.reward` with the student, and the teacher for r_kl where that counts."""
    from rlt.scoring import RewardEngine, item_of_completion
    from rlt.students import LocalModel, load_students

    options, opened, tokenizer = _open_scorers(config, fmt)
    students = load_students(opened, config, options)
    teacher = None if tokenizer is None else LocalModel.from_tokenizer(config.model, tokenizer, config, options)
    engine = RewardEngine(students, fmt, config.reward, teacher)

    def score(rows: Sequence[dict[str, Any]]) -> list[tuple[float | None, str | None]]:
        scored = engine.score([item_of_completion(fmt, problem_of_row(row), row["completion"]) for row in rows])
        return [(row.parts.reward, row.parts.error) for row in scored]

    return score


def _open_scorers(config: CollectConfig, fmt: Format) -> tuple[StudentOptions, Any, PreTrainedTokenizerBase | None]:
    """The student, and the teacher's tokenizer where r_kl counts, checked and without weights."""
    from rlt.students import checked_tokenizer, open_students

    options = StudentOptions.model_validate({"student": [config.student]})
    tokenizer = checked_tokenizer(config.model, fmt, config) if config.reward.kl_coef else None
    return options, open_students(fmt, config, options, config.reward, tokenizer), tokenizer


def _card(config: CollectConfig, folder: StageFolder, metrics: dict[str, Any]) -> None:
    raw = f"explanations-*.{config.file_format}"
    more = {"reward": "float64"} if config.select == "reward" else {}
    configs: dict[str, tuple[str, dict[str, str]]] = {"default": (raw, {})}
    if "selected" in metrics:
        configs = {"selected": (f"selected.{config.file_format}", more), "raw": (f"raw/{raw}", {})}
    numbers = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in metrics.items())
    write_card(
        folder.path, configs,
        f"# Explanations of {config.model}\n\nWhat a teacher that sees question and solution wrote for each problem of "
        f"`{config.data.path}` (Reinforcement-Learned Teachers, arXiv 2506.08388), collected by `rlt collect`, "
        f"temperature {config.temperature}, format `{config.format}`.\n\n{numbers}\n",
    )  # fmt: skip
