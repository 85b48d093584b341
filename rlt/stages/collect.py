"""Collect the teacher's explanations of a set of problems, exactly as written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import chain
from typing import TYPE_CHECKING

from tqdm import tqdm

from rlt.config import CollectConfig
from rlt.data.explanations import Shards, write_card
from rlt.data.problems import iter_problems
from rlt.data.prompts import Survey, room, survey
from rlt.data.rows import write_text
from rlt.engines.base import Completion, Engine, Request, Sampling, request_seed
from rlt.engines.build import build_engine
from rlt.errors import DataError, RltError, RunError
from rlt.models.loading import context_length, load_config, load_tokenizer
from rlt.outputs import Result, StageFolder, begin
from rlt.terminal import quiet
from rlt.text.formats import Format, check_template, load_format, teacher_prompt
from rlt.types import Explanation, JsonRow, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What collection began with: a digest of the problems, and the engine's context.
NOTE = "data.json"


def run(config: CollectConfig) -> Result:
    """A folder with `samples` explanations of every problem, in shards, and a card.

    Resumable: a killed and restarted run leaves the same files as an uninterrupted one. Raises DataError for a problem
    whose prompt leaves no room for an explanation (`data.on_invalid: skip` leaves the problem out).
    """
    fmt = load_format(config.format)
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    check_template(fmt, tokenizer)
    surveyed = survey(config.data, fmt, tokenizer)
    folder = begin("collect", config)
    if folder.result:
        return folder.result
    try:
        with ExitStack() as stack:
            context, engine = _context(config, folder, surveyed, stack)
            rest = room(config.data, fmt, tokenizer, surveyed, context, config.max_tokens)
            _note(folder, surveyed, context)
            left_out = rest.left_out | surveyed.without_prompt
            shards = Shards(folder.path, fmt, surveyed.problems, config.samples, config.file_format, left_out)
            stack.callback(shards.close)
            _collect(config, fmt, tokenizer, shards, engine, stack)
            metrics = {
                **_numbers(shards), "without_room": len(rest.left_out), "short_of_room": rest.short,
                "invalid_rows": surveyed.dropped + len(surveyed.without_prompt),
            }  # fmt: skip
            _card(config, folder, metrics)
            result = folder.finish(metrics)
    except RltError:
        _forget(folder)
        raise
    except OSError as error:
        raise DataError(
            f"{folder.path}: cannot be written ({error.strerror or error}). What was written is kept."
        ) from error
    print(
        f"collect: {metrics['explanations']} explanations in {folder.path}, {metrics['unclosed']} without a closing tag"
    )
    return result


def _forget(folder: StageFolder) -> None:
    """If nothing has been collected, restore the folder, so that the corrected command can use it."""
    state = folder.path / "state"
    if not folder.resumed and not any(folder.path.glob("explanations-*")) and not any(state.glob("journal-*")):
        (state / NOTE).unlink(missing_ok=True)
        if state.is_dir():
            state.rmdir()
        folder.state_file.unlink(missing_ok=True)


# -- the context ----------------------------------------------------------------------------------------------------


def _context(
    config: CollectConfig, folder: StageFolder, surveyed: Survey, stack: ExitStack
) -> tuple[int | None, Engine | None]:
    """Maximum tokens of prompt and explanation together, and the engine if it had to be asked (a server).

    A resumed run uses the context noted when it began. Raises RunError if it began with different problems.
    """
    path = folder.path / "state" / NOTE
    if path.exists():
        noted = json.loads(path.read_text(encoding="utf-8"))
        if noted["sha256"] != surveyed.digest:
            raise RunError(
                f"{folder.path}: started with different problems than {config.data.path} has now. Restore the data, or "
                "choose another --output."
            )
        return noted["context"], None
    if config.engine == "openai":
        engine = _engine(config, stack)
        return engine.context_length, engine
    given = config.engine_options.get("max_model_len")
    return given or context_length(load_config(config.model, config.trust_remote_code)), None


def _engine(config: CollectConfig, stack: ExitStack) -> Engine:
    engine = build_engine(config, config.model, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
    return stack.enter_context(closing(engine))


def _note(folder: StageFolder, surveyed: Survey, context: int | None) -> None:
    path = folder.path / "state" / NOTE
    if not path.exists():
        write_text(path, json.dumps({"sha256": surveyed.digest, "context": context}) + "\n")


# -- collecting ------------------------------------------------------------------------------------------------------


def _collect(
    config: CollectConfig,
    fmt: Format,
    tokenizer: PreTrainedTokenizerBase,
    shards: Shards,
    engine: Engine | None,
    stack: ExitStack,
) -> None:
    """Write the missing explanations; builds the engine if necessary."""
    missing = shards.missing()
    first = next(missing, None)
    if first is None:
        return
    engine = engine or _engine(config, stack)
    pending: dict[str, tuple[int, int, Problem]] = {}
    requests = _requests(config, fmt, tokenizer, chain([first], missing), pending)
    sampling = Sampling(
        config.max_tokens, config.temperature, config.top_p, config.top_k, stop=(fmt.tags.explanation.close,)
    )
    with tqdm(
        total=(shards.problems - len(shards.left_out)) * config.samples, initial=shards.written(), desc="collect",
        unit=" explanations", dynamic_ncols=True, leave=False, disable=quiet(),
        file=sys.stderr,
    ) as bar:  # fmt: skip
        for completion in engine.generate(requests, sampling):
            position, sample, problem = pending.pop(completion.key)
            if not completion.text and not completion.completion_tokens and completion.finish_reason == "length":
                raise RunError(
                    f"{config.data.path}: problem {problem.id}: its prompt fills the engine's context of "
                    f"{engine.context_length} tokens; the context was longer when collection began. Restore it."
                )
            shards.add(position, _explanation(config, fmt, problem, sample, completion, engine.name))
            bar.update()


def _requests(
    config: CollectConfig,
    fmt: Format,
    tokenizer: PreTrainedTokenizerBase,
    missing: Iterator[tuple[int, int]],
    pending: dict[str, tuple[int, int, Problem]],
) -> Iterator[Request]:
    """A request for each missing row, created when the engine asks for it; `pending`: key -> request in flight."""
    problems = enumerate(iter_problems(config.data, fmt))
    at, prompt = -1, ""
    for position, sample in missing:
        while at < position:
            at, problem = next(problems)
            prompt = ""
        prompt = prompt or teacher_prompt(fmt, tokenizer, problem)
        key = f"{position}/{sample}"
        pending[key] = (position, sample, problem)
        yield Request(key, prompt, request_seed(config.seed, problem.id, sample))


def _explanation(
    config: CollectConfig, fmt: Format, problem: Problem, sample: int, completion: Completion, engine: str
) -> Explanation:
    text, closed = fmt.parse_completion(completion.text)
    return Explanation(
        problem, text, closed, problem.id if config.samples == 1 else f"{problem.id}/{sample}", sample,
        completion.finish_reason, completion.prompt_tokens, completion.completion_tokens, completion.logprob_sum,
        completion.seed, engine, completion.token_ids is None,
    )  # fmt: skip


def _numbers(shards: Shards) -> JsonRow:
    count = unclosed = long = tokens = text_only = 0
    logprobs = 0.0
    engines: set[str] = set()
    for explanation in shards.explanations():
        count += 1
        unclosed += not explanation.closed
        long += explanation.finish_reason == "length"
        tokens += explanation.completion_tokens or 0
        logprobs += explanation.logprob_sum or 0.0
        text_only += explanation.text_only
        engines.add(explanation.engine or "")
    numbers = {
        "explanations": count, "problems": shards.problems - len(shards.left_out), "unclosed": unclosed,
        "length_limited": long, "mean_tokens": round(tokens / count, 3), "text_only": text_only,
        "engines": sorted(engines),
    }  # fmt: skip
    return numbers if text_only else {**numbers, "mean_logprob": round(logprobs / max(tokens, 1), 6)}


def _card(config: CollectConfig, folder: StageFolder, metrics: JsonRow) -> None:
    numbers = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in metrics.items())
    write_card(
        folder.path, {"default": f"explanations-*.{config.file_format}"},
        f"# Explanations of {config.model}\n\nWhat a teacher that sees question and solution wrote for each problem of "
        f"`{config.data.path}` (Reinforcement-Learned Teachers, arXiv 2506.08388), collected by `rlt collect`, "
        f"temperature {config.temperature}, top-p {config.top_p}, format `{config.format}`.\n\n{numbers}\n",
    )  # fmt: skip
