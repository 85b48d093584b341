"""Problems as token ids: which tokens are learned, and which rows fit the model's context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from rlt.config import AnyData, ColdstartConfig, DistillConfig, TrainConfig, WarmupConfig
from rlt.data.problems import Problems, load_problems
from rlt.errors import DataError, ModelError
from rlt.models.loading import check_weights, context_length, load_config, load_tokenizer
from rlt.text.formats import Format, Rendered, check_template, load_format, render_student
from rlt.text.tokens import tokenize
from rlt.types import Explanation, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")


@dataclass(frozen=True)
class Text:
    """A stage's problems and its model's tokenizer, format and context; loaded before any weights."""

    fmt: Format
    problems: Problems
    tokenizer: PreTrainedTokenizerBase
    context: int | None
    """Context of the model in tokens; None if its configuration does not say."""
    turn_end: int
    """Id of the token that closes the assistant's turn in the chat template."""


def read_text(
    stage: str, config: WarmupConfig | TrainConfig | DistillConfig | ColdstartConfig, need: tuple[str, ...] = ()
) -> Text:
    """The stage's Text; prints the number of problems. Raises DataError, ModelError or ConfigError."""
    fmt = load_format(config.format)
    problems = load_problems(config.data, fmt, need=need)
    print(f"{stage}: {config.data.path}: {problems.summary()}", flush=True)
    context = context_length(load_config(config.model, config.trust_remote_code))
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    check_template(fmt, tokenizer)
    check_weights(config.model, config.trust_remote_code)
    return Text(fmt, problems, tokenizer, context, turn_end(fmt, tokenizer))


def turn_end(fmt: Format, tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that closes the assistant's turn in the chat template; often, but not always, the eos token.

    Raises ModelError if no special token closes it: the model could not learn to stop.
    """
    probe = render_student(
        fmt, tokenizer, Problem(id="probe", question="2 + 3?", solution="5."), fmt.as_written("Add.")
    )
    (tokens,) = tokenize(tokenizer, [probe])
    _, end = taught_to_student(fmt, probe)
    special = {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}
    for token, (start, stop) in zip(tokens.ids, tokens.offsets, strict=True):
        if start >= end and token in special:
            return token
        if start >= end and probe.text[start:stop].strip():
            break
    raise ModelError(
        f"{tokenizer.name_or_path}: its chat template ends the assistant's turn with {probe.text[end:]!r}, which does not "
        "begin with a special token, so a model could not learn to stop. Use a template that ends a turn with the eos token."
    )


def end_ids(config: TrainConfig | ColdstartConfig, text: Text) -> set[int]:
    """Ids of the tokens that stop sampling: those of the model's generation configuration, and the tokenizer's eos.

    Raises ModelError if the end of turn is not among them: every completion would run into the length limit.
    """
    from transformers import GenerationConfig

    try:
        configured = GenerationConfig.from_pretrained(config.model).eos_token_id
    except OSError:  # no generation_config.json
        configured = load_config(config.model, config.trust_remote_code).get_text_config().eos_token_id
    ids = {*listed(configured), *listed(text.tokenizer.eos_token_id)}
    if text.turn_end not in ids:
        token = text.tokenizer.convert_ids_to_tokens(text.turn_end)
        raise ModelError(
            f"{config.model}: its chat template closes a turn with {token}, but sampling does not stop there. Start from a "
            f"model that `rlt warmup` or `rlt distill` made, or add {text.turn_end} to `eos_token_id` in its "
            "generation_config.json."
        )
    return ids


def listed(ids: int | list[int] | None) -> list[int]:
    """Token ids as a list; a configuration has none, one or several."""
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


# -- supervised examples -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids `(T,)` of one text, and the learned positions; the rest is context."""

    ids: list[int]
    learned: range
    explanation_tokens: int = 0
    """Number of tokens of the explanation."""
    source: str | None = None
    """The source of a mixture that it comes from."""

    def labels(self) -> list[int]:
        """`(T,)` ids at learned positions, -100 elsewhere."""
        return [token if i in self.learned else -100 for i, token in enumerate(self.ids)]


def examples_of(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Rendered],
    learned: Sequence[tuple[int, int]],
    turn_end: int,
) -> list[Example]:
    """One example per text, in order. `learned`: the characters to learn; the end of turn after them is learned too."""
    return [
        Example(tokens.ids, learned_span(tokens.ids, tokens.offsets, *span, turn_end), len(tokens.spans["explanation"]))
        for tokens, span in zip(tokenize(tokenizer, texts), learned, strict=True)
    ]


def render_each(
    problems: Sequence[Problem], fmt: Format, render: Callable[[Explanation], Rendered], data: AnyData
) -> tuple[list[Problem], list[Rendered], list[str]]:
    """`(kept, texts, dropped)`: problems whose explanation can be rendered, their texts, and a line per dropped one.

    A chat template may rewrite a row. Raises DataError at the first such row unless `data.on_invalid` is `skip`, and if no
    row is left.
    """
    kept: list[Problem] = []
    texts: list[Rendered] = []
    dropped: list[str] = []
    for problem in problems:
        try:
            texts.append(render(fmt.finished(problem, problem.explanation or "")))
            kept.append(problem)
        except ModelError as error:
            dropped.append(f"{data.path}: problem {problem.id}: {error}")
            if data.on_invalid == "error":
                raise DataError(f"{dropped[0]}\nRemove the row, or set `data.on_invalid: skip`.") from error
    if not kept:
        raise DataError(f"no problem is left. {dropped[0] if dropped else data.path}")
    if dropped:
        print(f"{len(dropped)} of {len(problems)} rows dropped; the first: {dropped[0]}", flush=True)
    return kept, texts, dropped


def taught_to_teacher(fmt: Format, text: Rendered) -> tuple[int, int]:
    """The characters that a teacher learns: the explanation and its closing tag."""
    start, end = text.spans["explanation"]
    return start, end + len(fmt.tags.explanation.close)


def taught_to_student(fmt: Format, text: Rendered) -> tuple[int, int]:
    """The characters that a student learns: the whole response, from opening thought tag to closing solution tag."""
    return (
        text.spans["explanation"][0] - len(fmt.tags.thought.open + fmt.padding),
        text.spans["solution"][1] + len(fmt.tags.solution.close),
    )


def learned_span(ids: Sequence[int], offsets: Sequence[tuple[int, int]], start: int, end: int, turn_end: int) -> range:
    """Positions of the tokens that cover `[start, end)`, up to and including the next `turn_end` token.

    Without that token a model never learns to stop. White space before it, from the template, is learned too.
    """
    first = next(i for i, (_, stop) in enumerate(offsets) if stop > start)
    last = max(i for i, (begin, _) in enumerate(offsets) if begin < end)
    return range(first, ids.index(turn_end, last + 1) + 1)


# -- what fits the context -----------------------------------------------------------------------------------------------------


def fit_prompts(
    problems: Sequence[Problem],
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    completion: int,
    context: int | None,
    data: AnyData,
) -> tuple[list[int], list[str]]:
    """`(kept, dropped)`: indices of problems whose prompt leaves room for `completion` tokens, and a line per other one.

    `context`: maximum tokens of prompt and completion together (None: no limit). Raises DataError at the first problem
    that does not fit, unless `data.on_invalid` is `skip`, and if none fits.
    """
    encoded = tokenizer(list(prompts), add_special_tokens=False, verbose=False)["input_ids"]
    items = ((problem.id, len(ids), i) for i, (problem, ids) in enumerate(zip(problems, encoded, strict=True)))
    return _keep_short(
        items, None if context is None else context - completion, data,
        lambda length: f"its prompt of {length} tokens and {completion} of completion exceed the context of {context}",
        "lower the completion length",
    )  # fmt: skip


def fit(
    problems: Sequence[Problem], examples: Sequence[Example], limit: int | None, data: AnyData
) -> tuple[list[Example], list[str]]:
    """`(kept, dropped)`: examples of at most `limit` tokens, and a line per longer one. No example is truncated.

    Raises DataError at the first one that is too long, unless `data.on_invalid` is `skip`, and if none is left.
    """
    items = (
        (problem.id, len(example.ids), replace(example, source=problem.source))
        for problem, example in zip(problems, examples, strict=True)
    )
    return _keep_short(
        items,
        limit,
        data,
        lambda length: f"its text of {length} tokens exceeds the limit of {limit}",
        "raise `max_length`",
    )


def _keep_short(
    items: Iterable[tuple[str, int, Item]], limit: int | None, data: AnyData, line: Callable[[int], str], fix: str
) -> tuple[list[Item], list[str]]:
    """Of `(problem id, length, item)`: the items within `limit`, and a line per other one."""
    kept: list[Item] = []
    dropped: list[str] = []
    for name, length, item in items:
        if limit is None or length <= limit:
            kept.append(item)
            continue
        dropped.append(f"{data.path}: problem {name}: {line(length)}")
        if data.on_invalid == "error":
            raise DataError(f"{dropped[0]}. Set `data.on_invalid: skip` to drop it, or {fix}.")
    if not kept:
        raise DataError(
            f"{data.path}: no problem is short enough; the first: {dropped[0] if dropped else 'there are no problems'}"
        )
    if dropped:
        print(
            f"{len(dropped)} of {len(dropped) + len(kept)} rows dropped as too long; the first: {dropped[0]}",
            flush=True,
        )
    return kept, dropped
