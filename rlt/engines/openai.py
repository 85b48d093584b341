"""The `openai` engine: any server with OpenAI's completions API, many requests in flight."""

from __future__ import annotations

import math
import queue
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from rlt.config import EngineOptions
from rlt.engines.base import Completion, InFlight, Request, Sampling, cut
from rlt.engines.client import PROBE, Client, check_tokenizer, served_model
from rlt.errors import ServerError
from rlt.models.loading import load_tokenizer
from rlt.text.tokens import encode
from rlt.types import JsonRow

# Tokens per second of the slowest sequence on a busy server. The time-out is for a server that hangs: one that dies breaks
# the connection.
SLOWEST = 4.0


class OpenAIEngine:
    """Continues prompts at a server.

    A vLLM server receives token ids and returns token ids and log-probs. Other servers receive and return text. Their
    completions have no ids or log-probs and are cut at stop strings here, because such servers omit the stop string.

    Raises ServerError if the server cannot be reached, serves a model other than `model` (unless `served_model` names
    it), or has another tokenizer.
    """

    def __init__(self, options: EngineOptions, model: str, *, trust_remote_code: bool = False) -> None:
        self.tokenizer = load_tokenizer(model, trust_remote_code)
        self.window, self.timeout = options.max_in_flight, options.timeout
        self.client = Client(
            options.url or "", options.api_key_env, timeout=options.timeout, retry_for=options.retry_for,
            max_in_flight=options.max_in_flight,
        )  # fmt: skip
        try:
            served = served_model(self.client, options.served_model)
            self.model = served.id
            if options.served_model is None:
                self._check_model(model, served.root)
            self.ids = served.owner == "vllm"
            self.context_length = served.context_length
            if self.ids:
                check_tokenizer(self.client, self.model, encode(self.tokenizer, PROBE), model)
            self.seeded = self._seeded(options.send_seeds)
        except BaseException:
            self.client.close()
            raise
        self.name = f"openai ({'vllm' if self.ids else 'text only'}): {self.client.clean(self.model)}"
        eos = self.tokenizer.eos_token_id
        self.end_ids = set() if eos is None else {eos}
        if not self.ids:
            self._say("returns text without token ids: rows are marked `text_only` and have no `logprob_sum`.")

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `rlt.engines.base.Engine`. If a request finally fails, those in flight complete before its error."""
        return _AtServer(self, sampling).completions(requests, sampling)

    def body(self, request: Request, ids: list[int], room: int, sampling: Sampling) -> JsonRow:
        """The JSON body of one request."""
        body: JsonRow = {
            "model": self.model, "prompt": ids if self.ids else request.prompt, "max_tokens": room,
            "temperature": sampling.temperature, "top_p": sampling.top_p,
        }  # fmt: skip
        if self.seeded:
            body["seed"] = request.seed
        if sampling.top_k is not None:
            body["top_k"] = sampling.top_k
        if not self.ids:
            return body
        # Otherwise the model's generation_config.json would add its own top_k and repetition penalty.
        neutral = {"top_k": sampling.top_k or 0, "repetition_penalty": 1.0, "min_p": 0.0}
        ours = {"logprobs": 0, "return_token_ids": True, "skip_special_tokens": False, "add_special_tokens": False}
        stop = {"stop": list(sampling.stop), "include_stop_str_in_output": True} if sampling.stop else {}
        return {**body, **neutral, **ours, **stop}

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def completion(self, request: Request, prompt_tokens: int, answer: JsonRow, sampling: Sampling) -> Completion:
        """The completion in a server's answer; raises ServerError if the answer is not one for this request."""
        try:
            written = _written(answer, self.ids)
        except ValueError as error:
            raise ServerError(
                f"{self.client.url}: the answer is not a completion ({error}). Is this an OpenAI-compatible API?"
            ) from error
        # A server may add a beginning-of-text token and count it.
        counts = (prompt_tokens,) if self.ids else (prompt_tokens, prompt_tokens + 1)
        if written.prompt_tokens is not None and written.prompt_tokens not in counts:
            raise ServerError(
                f"{self.client.url}: counts {written.prompt_tokens} tokens in a prompt of {prompt_tokens}, so its model has "
                "another tokenizer. Set `model` to the served model's folder."
            )
        if written.reason not in ("stop", "length"):
            reason = self.client.clean(written.reason)
            raise ServerError(f"{self.client.url}: ended a completion with '{reason}'. Run the command again.")
        seed = request.seed if self.seeded and sampling.temperature > 0 else None
        text, reason = written.text, written.reason
        if written.ids is None:
            ends = [text.find(tag) + len(tag) for tag in sampling.stop if tag in text]
            text, reason = (text[: min(ends)], "stop") if ends else (text, reason)
            return Completion(request.key, text, reason, prompt_tokens, written.completion_tokens, seed=seed)
        # The server may know more end tokens than the tokenizer: after reason `stop`, the last token is one.
        ended = (reason == "stop" and written.stop_reason is None) or isinstance(written.stop_reason, int)
        ends_here = {*self.end_ids, *(written.ids[-1:] if ended else ())}
        kept, text, stopped = cut(self.tokenizer, written.ids, sampling.stop, ends_here)
        total, reason = float(sum(written.logprobs[: len(kept)])), "stop" if stopped else reason
        return Completion(request.key, text, reason, prompt_tokens, len(kept), tuple(kept), total, seed)

    def _check_model(self, model: str, root: str | None) -> None:
        """Raise ServerError if the server reports a model other than `model`.

        An earlier step's server that still holds the port has the same tokenizer, so no other check would notice.
        """
        if root is None or any(same_model(model, name) for name in (root, self.model)):
            return
        root = self.client.clean(root)
        raise ServerError(
            f"{self.client.url}: serves {root}, not {model}. Start a server with that model, or, if it is the same model "
            f"under another name, set `served_model: {self.client.clean(self.model)}`."
        )

    def _seeded(self, wanted: bool | None) -> bool:
        """Whether requests carry seeds: see `send_seeds`, and `rlt.engines` for vLLM on a CPU."""
        if wanted is not None:
            return wanted
        if self.ids and self._on_cpu():
            self._say("is vLLM on a CPU: requests are sent without seeds (see `send_seeds`).")
            return False
        return True

    def _on_cpu(self) -> bool:
        """Whether the vLLM server runs on a CPU. Inferred: only there do blocks have 128 tokens by default."""
        metrics = self.client.text(f"{self.client.url.removesuffix('/v1')}/metrics")
        info = next((line for line in metrics.splitlines() if line.startswith("vllm:cache_config_info{")), "")
        return 'block_size="128"' in info and 'user_specified_block_size="False"' in info

    def _say(self, text: str) -> None:
        print(f"{self.client.url} {text}", file=sys.stderr)


class _AtServer(InFlight[Future[JsonRow], Future[JsonRow]]):
    """Requests in flight at a server, each a future."""

    def __init__(self, engine: OpenAIEngine, sampling: Sampling) -> None:
        super().__init__(engine.tokenizer, engine.context_length, engine.window, engine.ids)
        self.engine, self.sampling = engine, sampling
        self.done: queue.SimpleQueue[Future[JsonRow]] = queue.SimpleQueue()

    def start(self, request: Request, ids: list[int], room: int) -> Future[JsonRow]:
        body, limit = self.engine.body(request, ids, room, self.sampling), self.engine.timeout + room / SLOWEST
        future = self.engine.client.submit("POST", "completions", body, timeout=limit)
        future.add_done_callback(self.done.put)
        return future

    def ended(self) -> list[tuple[Future[JsonRow], Future[JsonRow]]]:
        future = self.done.get()
        return [(future, future)]

    def completion(self, request: Request, prompt_tokens: int, answer: Future[JsonRow]) -> Completion:
        return self.engine.completion(request, prompt_tokens, answer.result(), self.sampling)

    def abandon(self, tickets: Iterable[Future[JsonRow]]) -> None:
        for future in tickets:
            future.cancel()


def same_model(asked: str, served: str) -> bool:
    """Whether a server's name or path means the model `asked`: the same text, or another path of the same folder.

    Example: "runs/x/train" matches "/data/runs/x/train", because one is relative; "runs/x/warmup" does not.
    """
    if asked == served:
        return True
    ours, theirs = Path(asked).expanduser(), Path(served).expanduser()
    if ours.exists() and theirs.exists():
        return ours.samefile(theirs)
    if ours.is_absolute() and theirs.is_absolute():
        return ours == theirs
    shorter, longer = sorted((ours.parts, theirs.parts), key=len)
    return bool(shorter) and longer[-len(shorter) :] == shorter


# -- reading an answer -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Written:
    """The parts of an answer, with their types checked. `ids` is None if the server returns only text."""

    text: str
    reason: str
    prompt_tokens: int | None
    completion_tokens: int
    ids: list[int] | None
    logprobs: list[float]
    stop_reason: int | str | None


def _written(answer: JsonRow, with_ids: bool) -> _Written:
    """The parts of an answer. Raises ValueError, naming the field, for an answer that is not a completion."""
    choices = part(answer, "choices", list)
    if not choices or type(choices[0]) is not dict:
        raise ValueError("`choices` contains no object")
    choice = choices[0]
    usage = optional(answer, "usage", dict) or {}
    text, reason = part(choice, "text", str), part(choice, "finish_reason", str)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("`text` contains a lone surrogate")  # not encodable in files or for a tokenizer
    prompt_tokens = optional(usage, "prompt_tokens", int)
    completion_tokens = optional(usage, "completion_tokens", int) or 0
    if not with_ids:
        return _Written(text, reason, prompt_tokens, completion_tokens, None, [], None)
    ids = part(choice, "token_ids", list)
    logprobs = part(part(choice, "logprobs", dict), "token_logprobs", list)
    if set(map(type, ids)) - {int} or (ids and not 0 <= min(ids) <= max(ids) < 2**31):
        raise ValueError("`token_ids` are not all token ids")
    if set(map(type, logprobs)) - {int, float} or not all(map(math.isfinite, logprobs)):
        raise ValueError("`token_logprobs` are not all finite numbers")
    if len(ids) != len(logprobs):
        raise ValueError(f"{len(ids)} token ids and {len(logprobs)} log-probs")
    return _Written(text, reason, prompt_tokens, completion_tokens, ids, logprobs, choice.get("stop_reason"))


T = TypeVar("T")


def optional(holder: JsonRow, name: str, kind: type[T]) -> T | None:
    """As `part`; None if the value is missing or null."""
    return None if holder.get(name) is None else part(holder, name, kind)


def part(holder: JsonRow, name: str, kind: type[T]) -> T:
    """The value of `name` in a part of an answer; raises ValueError, naming it, if it is not exactly of this type."""
    value = holder.get(name)
    if type(value) is kind:  # a bool is not an int
        return cast(T, value)
    raise ValueError(f"`{name}` is {'missing or null' if value is None else f'a {type(value).__name__}'}")
