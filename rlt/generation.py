"""Who writes: one interface over transformers, vLLM and any OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one prompt is continued; a temperature of 0 is greedy, top_k None is off."""

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

    `text` includes a stop string that ended it. `token_ids` and `logprob_sum` (nats, under the sampling distribution) are
    None where a server gives only text. `finish_reason` is `stop` or `length`.
    """

    key: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    token_ids: tuple[int, ...] | None = None
    logprob_sum: float | None = None


class Engine(Protocol):
    """Anything that continues prompts."""

    context_length: int | None
    """Tokens that prompt and completion may have together, where known."""

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Completions as they are finished, in any order. Requests are drawn lazily, so millions cost no memory."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
