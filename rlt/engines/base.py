"""Who writes: one interface over transformers, vLLM and any OpenAI-compatible server, here or on a Ray cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rlt.text.tokens import decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one prompt is continued; a temperature of 0 is greedy, top_k None is off.

    Nothing else shapes the distribution: a checkpoint's own sampling defaults (a repetition penalty, say) are not used.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to continue. `key` comes back with the completion; `seed` makes it repeatable where the engine can."""

    key: str
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine wrote for a request.

    `text` includes a stop string that ended it, and not the end-of-turn token; `token_ids` has all that were sampled.
    `logprob_sum` is in nats under the model itself (temperature 1, nothing truncated), as servers report it, so that it
    means the same with every engine. Both are None where a server gives only text. `finish_reason` is `stop` (a stop
    string or the end of the turn) or `length` (`max_tokens`, or what the context leaves; a prompt that fills the
    context alone has 0 completion tokens). `seed` is the request's where it was used: None if decoding was greedy, or
    the engine draws without seeds.

    Example: Completion("3/0", "five</explanation>", "stop", 12, 2, (7, 9), -0.81, seed=1234)
    """

    key: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    token_ids: tuple[int, ...] | None = None
    logprob_sum: float | None = None
    seed: int | None = None


class Engine(Protocol):
    """Anything that continues prompts."""

    context_length: int | None
    """Tokens that prompt and completion may have together, where known."""

    name: str
    """Engine and version, and for a server which model it serves, for the rows that it writes."""

    window: int
    """Requests that it may draw before it gives the first completion."""

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Completions as they are finished, in any order. Requests are drawn lazily, so millions cost no memory."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


def request_seed(seed: int, *parts: str | int) -> int:
    """A seed in [0, 2**31) that depends on nothing but its arguments: not on order, batch or number of workers.

    Example: request_seed(0, problem.id, sample)
    """
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def budget(prompt_tokens: int, sampling: Sampling, context_length: int | None) -> int:
    """Tokens that may be generated after a prompt: `max_tokens`, or what the context leaves, not below 0."""
    if context_length is None:
        return sampling.max_tokens
    return max(0, min(sampling.max_tokens, context_length - prompt_tokens))


def empty(request: Request, prompt_tokens: int, ids: bool = True) -> Completion:
    """The completion of a prompt that fills the context; `ids`: whether the engine gives token ids."""
    return Completion(request.key, "", "length", prompt_tokens, 0, () if ids else None, 0.0 if ids else None)


def cut(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: Sequence[str], end_ids: Collection[int]
) -> tuple[list[int], str, bool]:
    """`(ids, text, stopped)` of sampled ids up to their end: the first end token or stop string.

    An end token stays in the ids and is not in the text. The token with which a stop string becomes complete is the
    last one kept; the text ends exactly with the stop string.
    """
    end = next((i for i, token in enumerate(ids) if token in end_ids), None)
    kept = list(ids if end is None else ids[: end + 1])
    body = kept if end is None else kept[:-1]
    text = decode(tokenizer, body)
    found = [(position, tag) for tag in stop if (position := text.find(tag)) >= 0]
    if not found:
        return kept, text, end is not None
    position, tag = min(found)
    # Bisect for the shortest run of ids whose text has the tag; usually it is all of them.
    low, high = 0, len(body)
    if tag not in decode(tokenizer, body[:-1]):
        low = high - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tag in decode(tokenizer, body[:middle]) else (middle, high)
    return body[:high], text[: position + len(tag)], True
