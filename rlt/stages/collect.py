"""Collection: the teacher's explanations for a set of problems, as it wrote them, and which of them students get."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlt.config import CollectConfig, DataConfig, StudentOptions
from rlt.data.explanations import Shards, explanation_row, schema, write_card
from rlt.data.problems import iter_problems
from rlt.data.rows import JsonlWriter, read_rows, write_rows, write_text
from rlt.data.selection import Fits, Report, choose_all, choose_best, choose_random, problem_of_row, select
from rlt.engines.base import Engine, Request, Sampling, request_seed
from rlt.engines.build import build_engine
from rlt.errors import DataError, RltError, RunError
from rlt.models.loading import context_length, load_config, load_tokenizer
from rlt.outputs import Result, StageFolder, begin
from rlt.text.formats import Format, check_template, load_format, teacher_prompt
from rlt.text.tokens import encode
from rlt.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlt.reward.students import Opened

# Explanations that are scored and noted together.
WINDOW = 64
# What collection began with: a digest of the problems, and the engine's context.
NOTE = "data.json"


def run(config: CollectConfig) -> Result:
    """A folder with `samples` explanations of every problem, in shards; with a selection, these are in `raw/`.

    `selected.jsonl` (or .parquet) then has what students get, and `report/dropped.jsonl` why other rows are left out.
    Killed and started again it goes on, and leaves the files that it would have left. Raises DataError for a problem
    whose prompt leaves no room for an explanation (or leaves it out, where `data.on_invalid` is `skip`).
    """
    fmt = load_format(config.format)
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    check_template(fmt, tokenizer)
    with ExitStack() as stack:
        models = _open_students(config, fmt, stack)  # what they refuse is told before anything is collected
        fits = _fits(config, fmt, models)
        survey = _survey(config.data, fmt)
        folder = begin("collect", config)
        if folder.result:
            return folder.result
        raw = folder.path if fits is None else folder.path / "raw"
        try:
            with ExitStack() as engines:  # closed before rewards are computed: they need the memory
                context, engine = _context(config, folder, survey, engines)
                room = _room(config, fmt, tokenizer, survey, context)
                _note(folder, survey, context)
                shards = Shards(
                    raw, folder.path / "state", survey.problems, config.samples, config.file_format, room.left_out
                )
                stack.callback(shards.close)
                _collect(config, fmt, tokenizer, shards, engine, engines)
            metrics = {**_numbers(shards), "without_room": len(room.left_out), "short_of_room": room.short}
            if fits is not None:
                metrics |= _select(config, fmt, models, fits, shards, folder)
            _card(config, folder, metrics)
            result = folder.finish({**metrics, "invalid_rows": survey.dropped})
        except RltError:
            _forget(folder, raw)
            raise
        except OSError as error:
            raise DataError(
                f"{folder.path}: cannot be written ({error.strerror or error}). What was written is kept."
            ) from error
    print(
        f"collect: {metrics['explanations']} explanations in {raw}, {metrics['unclosed']} of them without closing tag"
    )
    return result


def _forget(folder: StageFolder, raw: Path) -> None:
    """Where nothing was collected yet, leave the folder as it was found, for the corrected command."""
    state = folder.path / "state"
    if not folder.resumed and not any(raw.glob("explanations-*")) and not any(state.glob("journal-*")):
        (state / NOTE).unlink(missing_ok=True)
        if state.is_dir():
            state.rmdir()
        folder.state_file.unlink(missing_ok=True)


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


def _context(
    config: CollectConfig, folder: StageFolder, survey: _Survey, engines: ExitStack
) -> tuple[int | None, Engine | None]:
    """Tokens that prompt and explanation may have together, and the engine where it had to be asked (a server).

    What was noted when collection began counts. Raises RunError where that was with other problems.
    """
    path = folder.path / "state" / NOTE
    if path.exists():
        noted = json.loads(path.read_text(encoding="utf-8"))
        if noted["sha256"] != survey.digest:
            raise RunError(
                f"{folder.path}: begun with other problems than {config.data.path} has now. Put the data back, or choose "
                "another --output."
            )
        return noted["context"], None
    if config.engine == "openai":
        engine = _engine(config, engines)
        return engine.context_length, engine
    given = config.engine_options.get("max_model_len")
    return given or context_length(load_config(config.model, config.trust_remote_code)), None


def _engine(config: CollectConfig, engines: ExitStack) -> Engine:
    engine = build_engine(config, config.model, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
    return engines.enter_context(closing(engine))


def _note(folder: StageFolder, survey: _Survey, context: int | None) -> None:
    path = folder.path / "state" / NOTE
    if not path.exists():
        write_text(path, json.dumps({"sha256": survey.digest, "context": context}) + "\n")


@dataclass(frozen=True)
class _Room:
    """What the context leaves for explanations: places of problems whose prompt fills it, and how many problems cannot
    have `max_tokens`."""

    left_out: frozenset[int] = frozenset()
    short: int = 0


def _room(
    config: CollectConfig, fmt: Format, tokenizer: PreTrainedTokenizerBase, survey: _Survey, context: int | None
) -> _Room:
    """Count the prompts that could be too long, say what was found, and raise DataError as `on_invalid` says."""
    if context is None:
        return _Room()
    left_out, rooms, first = [], [], ""
    frame = len(teacher_prompt(fmt, tokenizer, Problem("", "?", "?")).encode())
    for position, problem in enumerate(iter_problems(config.data, fmt, dropped=_Dropped())):
        # A token has at least one byte, so most prompts need not be tokenized.
        if frame + len(problem.question.encode()) + len(problem.solution.encode()) + config.max_tokens <= context:
            continue
        tokens = len(encode(tokenizer, teacher_prompt(fmt, tokenizer, problem)))
        if tokens < context:
            rooms += [context - tokens] if context - tokens < config.max_tokens else []
            continue
        line = (
            f"{config.data.path}: problem {problem.id}: its prompt has {tokens} tokens, which fill the context of {context}: "
            "there is no room for an explanation"
        )
        if config.data.on_invalid == "error":
            raise DataError(f"{line}. Leave it out, or set `on_invalid: skip`; or use a longer context.")
        left_out.append(position)
        first = first or line
    if len(left_out) == survey.problems:
        raise DataError(f"{first}. That is so for all {survey.problems} problems.")
    if left_out:
        print(f"collect: {len(left_out)} of {survey.problems} problems left out; the first: {first}", flush=True)
    if rooms:
        print(
            f"collect: for {len(rooms)} of {survey.problems} problems the context of {context} tokens leaves fewer than "
            f"`max_tokens` {config.max_tokens}: {min(rooms)} at least",
            flush=True,
        )
    return _Room(frozenset(left_out), len(rooms))


# -- collecting ------------------------------------------------------------------------------------------------------


def _collect(
    config: CollectConfig,
    fmt: Format,
    tokenizer: PreTrainedTokenizerBase,
    shards: Shards,
    engine: Engine | None,
    engines: ExitStack,
) -> None:
    """Write the explanations that are missing, by an engine that is made where there is none."""
    missing = shards.missing()
    first = next(missing, None)
    if first is None:
        return
    engine = engine or _engine(config, engines)
    pending: dict[str, tuple[int, int, Problem]] = {}
    requests = _requests(config, fmt, tokenizer, _chain(first, missing), pending)
    sampling = Sampling(
        config.max_tokens, config.temperature, config.top_p, config.top_k, stop=(fmt.tags.explanation.close,)
    )
    total = (shards.problems - len(shards.left_out)) * config.samples
    with _progress(total, shards.written(), "collect") as bar:
        for completion in engine.generate(requests, sampling):
            position, sample, problem = pending.pop(completion.key)
            if not completion.text and not completion.completion_tokens and completion.finish_reason == "length":
                raise RunError(
                    f"{config.data.path}: problem {problem.id}: its prompt fills the engine's context of "
                    f"{engine.context_length} tokens, which was longer when collection began. Give it that context again."
                )
            shards.add(position, explanation_row(fmt, problem, sample, config.samples, completion, engine.name))
            bar.update()


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
    engines: set[str] = set()
    for row in shards.rows():
        count += 1
        unclosed += not row["closed"]
        long += row["finish_reason"] == "length"
        tokens += row["completion_tokens"]
        logprobs += row["logprob_sum"] or 0.0
        text_only += row["text_only"]
        engines.add(row["engine"])
    numbers = {
        "explanations": count, "problems": shards.problems - len(shards.left_out), "unclosed": unclosed,
        "length_limited": long, "mean_tokens": round(tokens / count, 3), "text_only": text_only,
        "engines": sorted(engines),
    }  # fmt: skip
    return numbers if text_only else {**numbers, "mean_logprob": round(logprobs / max(tokens, 1), 6)}


def _progress(total: int, done: int, what: str) -> Any:
    from tqdm import tqdm

    quiet = os.environ.get("RLT_QUIET") == "1"
    return tqdm(
        total=total, initial=done, desc=what, unit=" explanations", dynamic_ncols=True, leave=False, disable=quiet,
        file=sys.stderr,
    )  # fmt: skip


# -- selecting -------------------------------------------------------------------------------------------------------

_Models = tuple["Opened", "PreTrainedTokenizerBase | None"]
"""The students, by name, and the teacher's tokenizer where r_kl counts: checked, and without weights."""


def _open_students(config: CollectConfig, fmt: Format, stack: ExitStack) -> _Models:
    if not config.student:
        return {}, None
    from rlt.reward.students import ServedStudent, checked_tokenizer, close_students, is_url, open_students

    options = _student_options(config)
    if config.select == "reward":
        tokenizer = checked_tokenizer(config.model, fmt, config) if config.reward.kl_coef else None
        opened = open_students(fmt, config, options, config.reward, tokenizer)
    else:
        tokenizer, opened = None, {}
        for path in config.student:
            served = is_url(path)
            opened[path] = (
                ServedStudent.connect(path, fmt, config, options) if served else checked_tokenizer(path, fmt, config)
            )
    stack.callback(close_students, opened.values())
    return opened, tokenizer


def _student_options(config: CollectConfig) -> StudentOptions:
    # `served_model` is the teacher's here.
    values = {key: getattr(config, key) for key in StudentOptions.model_fields}
    return StudentOptions.model_validate({**values, "served_model": None})


def _fits(config: CollectConfig, fmt: Format, models: _Models) -> Fits | None:
    """What an explanation must be for students; None where no selection was asked for."""
    if not config.student:
        return None if config.select == "all" else Fits(fmt)
    from rlt.reward.students import ServedStudent

    students = []
    for path, student in models[0].items():
        if isinstance(student, ServedStudent):
            tokenizer, context = student.tokenizer, student.context
        else:
            tokenizer, context = student, context_length(load_config(path, config.trust_remote_code))
        students.append((tokenizer, config.student_context or context))
    return Fits(fmt, students)


def _select(
    config: CollectConfig, fmt: Format, models: _Models, fits: Fits, shards: Shards, folder: StageFolder
) -> dict[str, Any]:
    report, rewarded = Report(), config.select == "reward"
    choose = {"random": choose_random(config.seed), "reward": choose_best}.get(config.select, choose_all)
    judged = _rewarded(config, fmt, models, fits, shards, folder) if rewarded else _judged(fits, shards)
    dropped = folder.path / "report" / "dropped.jsonl"
    dropped.unlink(missing_ok=True)
    with JsonlWriter(dropped) as lines:
        chosen = select(judged, choose, lambda row, why: lines.write([{"id": row["id"], "reason": why}]), report)
        columns = schema({"reward": "float64"} if rewarded else {}) if config.file_format == "parquet" else None
        write_rows(folder.path / f"selected.{config.file_format}", chosen, columns)
    print(f"collect: {report.text()}")
    return {
        "selected": report.kept, "dropped": dict(report.dropped), "problems_without": report.problems_without,
    }  # fmt: skip


def _judged(fits: Fits, shards: Shards) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Each row with the reason for which it is dropped, or None."""
    with _progress(shards.written(), 0, "select") as bar:
        for row in shards.rows():
            yield row, fits.reason(row)
            bar.update()


def _rewarded(
    config: CollectConfig, fmt: Format, models: _Models, fits: Fits, shards: Shards, folder: StageFolder
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The same with each row's `reward`. All are noted in `state/rewards.jsonl`, so that none is computed twice."""
    path, total = folder.path / "state" / "rewards.jsonl", shards.written()
    with JsonlWriter(path) as notes:
        done = sum(1 for _ in read_rows(path))
        rows = islice(shards.rows(), done, None)
        windows = iter(lambda: list(islice(rows, WINDOW)), [])
        with _progress(total, done, "score") as bar:
            for verdicts in _scored(config, fmt, models, fits, windows) if done < total else ():
                notes.write(verdicts)
                bar.update(len(verdicts))
    return (
        ({**row, "reward": verdict["reward"]}, verdict["reason"])
        for row, (_, verdict) in zip(shards.rows(), read_rows(path), strict=True)
    )


def _scored(
    config: CollectConfig, fmt: Format, models: _Models, fits: Fits, windows: Iterator[list[dict[str, Any]]]
) -> Iterator[list[dict[str, Any]]]:
    """The verdicts on each window of rows, in order, computed here or by workers of a Ray cluster."""
    if config.ray is not None:
        from rlt.engines.cluster import in_order, spread

        make = partial(_replica, config)
        yield from in_order(spread(make, windows, address=config.ray, workers=config.ray_workers, gpus=1.0))
        return
    with closing(_reward_engine(config, fmt, models)) as engine:
        yield from (_verdicts(engine, fmt, fits, window) for window in windows)


def _replica(config: CollectConfig) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    fmt = load_format(config.format)
    models = _open_students(config, fmt, ExitStack())
    fits = _fits(config, fmt, models) or Fits(fmt)
    return partial(_verdicts, _reward_engine(config, fmt, models), fmt, fits)


def _reward_engine(config: CollectConfig, fmt: Format, models: _Models) -> Any:
    """The reward that `config.reward` names: the students, and the teacher for r_kl where that counts."""
    from rlt.reward.scoring import RewardEngine
    from rlt.reward.students import LocalModel, load_students

    (opened, tokenizer), options = models, _student_options(config)
    students = load_students(opened, config, options)
    teacher = None
    if tokenizer is not None:
        place = "offload" if config.student_placement == "offload" else "same"
        beside = options.model_copy(update={"student_placement": place})
        teacher = LocalModel.from_tokenizer(config.model, tokenizer, config, beside)
    return RewardEngine(students, fmt, config.reward, teacher, seed=config.seed)


def _verdicts(engine: Any, fmt: Format, fits: Fits, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`id`, `reason` and `reward` of each row; only what fits is scored."""
    from rlt.reward.items import item_of_completion

    reasons = [fits.reason(row) for row in rows]
    wanted = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    items = [item_of_completion(fmt, problem_of_row(row), row["completion"]) for row in wanted]
    with engine.in_place():
        parts = iter([scored.parts for scored in engine.score(items)] if items else [])
    verdicts = []
    for row, reason in zip(rows, reasons, strict=True):
        reward = None
        if reason is None:
            part = next(parts)
            reward = part.reward
            reason = None if reward is not None else f"it cannot be scored: {part.error}"
        verdicts.append({"id": row["id"], "reason": reason, "reward": reward})
    return verdicts


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
