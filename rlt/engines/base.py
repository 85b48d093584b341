"""The interface of all engines (transformers, vLLM, servers, Ray), and code they share."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from rlt.errors import RltError
from rlt.text.tokens import decode, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample completions. Temperature 0 is greedy; `top_k` None is off.

    Nothing else shapes the distribution: a checkpoint's sampling defaults, such as a repetition penalty, are ignored.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to continue. Its completion has the same `key`; `seed` makes it repeatable if the engine uses seeds."""

    key: str
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine wrote for a request.

    `text` includes the stop string that ended it but not the end-of-turn token; `token_ids` has every sampled token.
    `logprob_sum`, in nats, is under the model itself (temperature 1, no truncation), as servers report it, so engines are
    comparable. Both are None if a server returns only text. `finish_reason` is `stop` (a stop string or the end of the
    turn) or `length` (`max_tokens` or the context length; a prompt that fills the context has 0 completion tokens).
    `seed` is the request's if it was used: None for greedy decoding and engines without seeds.

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
    """Maximum tokens of prompt and completion together; None if unknown."""

    name: str
    """Engine and version, or a server's model, as recorded in rows."""

    window: int
    """Maximum requests drawn before the first completion is returned."""

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Completions as they finish, in any order. Requests are drawn lazily, so millions take no memory."""
        ...

    def close(self) -> None:
        """Free the engine's resources."""
        ...


def request_seed(seed: int, *parts: str | int) -> int:
    """A seed in [0, 2**31) that depends only on the arguments, not on order, batch or number of workers.

    Example: request_seed(0, problem.id, sample)
    """
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def budget(prompt_tokens: int, sampling: Sampling, context_length: int | None) -> int:
    """Tokens to generate after a prompt: `max_tokens`, or what fits the context, at least 0."""
    if context_length is None:
        return sampling.max_tokens
    return max(0, min(sampling.max_tokens, context_length - prompt_tokens))


def empty(request: Request, prompt_tokens: int, ids: bool = True) -> Completion:
    """The completion of a prompt that fills the context; `ids`: whether the engine returns token ids."""
    return Completion(request.key, "", "length", prompt_tokens, 0, () if ids else None, 0.0 if ids else None)


def cut(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: Sequence[str], end_ids: Collection[int]
) -> tuple[list[int], str, bool]:
    """`(ids, text, stopped)` of sampled ids up to the first end token or stop string.

    An end token is kept in the ids but not in the text. The token that completes a stop string is the last one kept; the
    text ends with the stop string.
    """
    end = next((i for i, token in enumerate(ids) if token in end_ids), None)
    kept = list(ids if end is None else ids[: end + 1])
    body = kept if end is None else kept[:-1]
    text = decode(tokenizer, body)
    found = [(position, tag) for tag in stop if (position := text.find(tag)) >= 0]
    if not found:
        return kept, text, end is not None
    position, tag = min(found)
    # Bisect for the shortest prefix of ids whose text has the tag; usually it is all of them.
    low, high = 0, len(body)
    if tag not in decode(tokenizer, body[:-1]):
        low = high - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tag in decode(tokenizer, body[:middle]) else (middle, high)
    return body[:high], text[: position + len(tag)], True


# -- engines with their own scheduler ----------------------------------------------------------------------------------

Ticket = TypeVar("Ticket", bound=Hashable)
Answer = TypeVar("Answer")


class InFlight(ABC, Generic[Ticket, Answer]):
    """The requests of one `generate` call at an external scheduler: up to `window` of them, refilled as they finish."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context_length: int | None, window: int, ids: bool) -> None:
        self.tokenizer, self.context_length, self.window, self.ids = tokenizer, context_length, window, ids

    @abstractmethod
    def start(self, request: Request, ids: list[int], room: int) -> Ticket:
        """Submit a request for at most `room` tokens after its prompt `ids`. Raises RltError if it is rejected."""

    @abstractmethod
    def ended(self) -> Iterable[tuple[Ticket, Answer]]:
        """Wait for finished requests and return them. Raises RltError if the scheduler itself died."""

    @abstractmethod
    def completion(self, request: Request, prompt_tokens: int, answer: Answer) -> Completion:
        """The completion in an answer. Raises RltError if its request failed."""

    @abstractmethod
    def abandon(self, tickets: Iterable[Ticket]) -> None:
        """Cancel requests whose completions are no longer needed."""

    def completions(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `Engine.generate`. If a request fails, those in flight complete before its error is raised."""
        source = iter(requests)
        flying: dict[Ticket, tuple[Request, int]] = {}
        failure: RltError | None = None
        try:
            while True:
                while failure is None and len(flying) < self.window and (request := next(source, None)) is not None:
                    ids = encode(self.tokenizer, request.prompt)
                    room = budget(len(ids), sampling, self.context_length)
                    if room == 0:
                        yield empty(request, len(ids), self.ids)
                        continue
                    try:
                        flying[self.start(request, ids, room)] = request, len(ids)
                    except RltError as error:
                        failure = error
                if not flying:
                    break
                for ticket, answer in self.ended():
                    request, prompt_tokens = flying.pop(ticket)
                    try:
                        completion = self.completion(request, prompt_tokens, answer)
                    except RltError as error:
                        failure = failure or error
                    else:
                        yield completion
        finally:
            self.abandon(flying)
        if failure is not None:
            raise failure
