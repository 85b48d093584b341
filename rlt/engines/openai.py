"""The `openai` engine: any server with OpenAI's completions interface, many requests in flight."""

from __future__ import annotations

import math
import queue
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlt.config import EngineOptions
from rlt.engines.base import Completion, Request, Sampling, budget, cut, empty
from rlt.engines.client import PROBE, Server, check_tokenizer, served_model
from rlt.errors import ServerError
from rlt.models.loading import load_tokenizer
from rlt.text.tokens import encode

# Tokens a second of the slowest sequence of a full server. One that is gone breaks the connection; a request's time limit
# is for one that hangs.
SLOWEST = 4.0


class ServedEngine:
    """Continues prompts at a server.

    A vLLM server gets token ids and gives token ids and log-probs. Another server gets and gives text: its completions
    have neither, and stop strings are looked for here, since such a server leaves them out of what it returns.

    Raises ServerError for a server that is absent, serves another model than `model` (unless `served_model` names it),
    or has another tokenizer.
    """

    def __init__(self, options: EngineOptions, model: str, *, trust_remote_code: bool = False) -> None:
        self.tokenizer = load_tokenizer(model, trust_remote_code)
        self.window, self.timeout = options.max_in_flight, options.timeout
        self.server = Server(
            options.url or "", options.api_key_env, timeout=options.timeout, retry_for=options.retry_for,
            max_in_flight=options.max_in_flight,
        )  # fmt: skip
        try:
            served = served_model(self.server, options.served_model)
            self.model: str = served["id"]
            if options.served_model is None:
                self._check_model(model, served.get("root"))
            self.ids = served.get("owned_by") == "vllm"
            self.context_length: int | None = served.get("max_model_len")
            if self.ids:
                check_tokenizer(self.server, self.model, encode(self.tokenizer, PROBE), model)
            self.seeded = options.send_seeds
            if self.seeded is None:
                self.seeded = not (self.ids and self._on_cpu())
                if not self.seeded:
                    self._say("is vLLM on a CPU: requests are sent without seeds (see `send_seeds`).")
        except BaseException:
            self.server.close()
            raise
        self.name = f"openai ({'vllm' if self.ids else 'text only'}): {self.server.clean(self.model)}"
        eos = self.tokenizer.eos_token_id
        self.end_ids = set() if eos is None else {eos}
        if not self.ids:
            self._say("gives text only, no token ids: rows say `text_only` and have no `logprob_sum`.")

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `rlt.engines.base.Engine`. When one request fails for good, those under way still come, then an error."""
        done: queue.SimpleQueue[tuple[Request, int, Future[dict[str, Any]]]] = queue.SimpleQueue()
        source = iter(requests)
        flying: set[Future[dict[str, Any]]] = set()
        failure: ServerError | None = None
        exhausted = False
        try:
            while True:
                while failure is None and not exhausted and len(flying) < self.window:
                    request = next(source, None)
                    if request is None:
                        exhausted = True
                        break
                    ids = encode(self.tokenizer, request.prompt)
                    room = budget(len(ids), sampling, self.context_length)
                    if room == 0:
                        yield empty(request, len(ids), self.ids)
                        continue
                    body, limit = self.body(request, ids, room, sampling), self.timeout + room / SLOWEST
                    future = self.server.submit("POST", "completions", body, timeout=limit)
                    flying.add(future)
                    future.add_done_callback(partial(_put, done, request, len(ids)))
                if not flying:
                    break
                request, prompt_tokens, future = done.get()
                flying.discard(future)
                try:
                    yield self._completion(request, prompt_tokens, future.result(), sampling)
                except ServerError as error:
                    failure = failure or error
        finally:
            for future in flying:
                future.cancel()
        if failure is not None:
            raise failure

    def body(self, request: Request, ids: list[int], room: int, sampling: Sampling) -> dict[str, Any]:
        """The JSON of one request."""
        body: dict[str, Any] = {
            "model": self.model, "prompt": ids if self.ids else request.prompt, "max_tokens": room,
            "temperature": sampling.temperature, "top_p": sampling.top_p,
        }  # fmt: skip
        if self.seeded:
            body["seed"] = request.seed
        if sampling.top_k is not None:
            body["top_k"] = sampling.top_k
        if not self.ids:
            return body
        # A model's generation_config.json would otherwise add its own top_k and repetition penalty.
        neutral = {"top_k": sampling.top_k or 0, "repetition_penalty": 1.0, "min_p": 0.0}
        ours = {"logprobs": 0, "return_token_ids": True, "skip_special_tokens": False, "add_special_tokens": False}
        stop = {"stop": list(sampling.stop), "include_stop_str_in_output": True} if sampling.stop else {}
        return {**body, **neutral, **ours, **stop}

    def close(self) -> None:
        """Close the connections."""
        self.server.close()

    def _completion(
        self, request: Request, prompt_tokens: int, answer: dict[str, Any], sampling: Sampling
    ) -> Completion:
        try:
            written = _written(answer, self.ids)
        except ValueError as error:
            raise ServerError(
                f"{self.server.url}: the answer is no completion ({error}). Is this address an OpenAI interface?"
            ) from error
        # One more is the beginning-of-text token that a server puts before a text.
        if written.prompt_tokens is not None and written.prompt_tokens - prompt_tokens not in (
            0,
            *(() if self.ids else (1,)),
        ):
            raise ServerError(
                f"{self.server.url}: counts {written.prompt_tokens} tokens in a prompt of {prompt_tokens}: it serves "
                "another model than the tokenizer's. Give the served model's folder as `model`."
            )
        if written.reason not in ("stop", "length"):
            reason = self.server.clean(written.reason)
            raise ServerError(f"{self.server.url}: ended a completion with {reason!r}; run the command again.")
        seed = request.seed if self.seeded and sampling.temperature > 0 else None
        text, reason = written.text, written.reason
        if written.ids is None:
            ends = [text.find(tag) + len(tag) for tag in sampling.stop if tag in text]
            text, reason = (text[: min(ends)], "stop") if ends else (text, reason)
            return Completion(request.key, text, reason, prompt_tokens, written.completion_tokens, seed=seed)
        # The server may know further end tokens; its reason is then `stop`, and its last token is one of them.
        ended = (reason == "stop" and written.stop_reason is None) or isinstance(written.stop_reason, int)
        ends_here = {*self.end_ids, *(written.ids[-1:] if ended else ())}
        kept, text, stopped = cut(self.tokenizer, written.ids, sampling.stop, ends_here)
        total, reason = float(sum(written.logprobs[: len(kept)])), "stop" if stopped else reason
        return Completion(request.key, text, reason, prompt_tokens, len(kept), tuple(kept), total, seed)

    def _check_model(self, model: str, root: str | None) -> None:
        """Raise ServerError where a server that says what it was started with was not started with `model`.

        A server of an earlier step that still holds the port has the same tokenizer, so nothing else would tell.
        """
        if root is None or any(same_model(model, name) for name in (root, self.model)):
            return
        root = self.server.clean(root)
        raise ServerError(
            f"{self.server.url}: serves {root}, not {model}. Start a server with that model; if it is that one under another "
            f"name, say so: `served_model: {self.server.clean(self.model)}`."
        )

    def _on_cpu(self) -> bool:
        """Whether the vLLM server runs on a CPU, which it does not say: there alone blocks have 128 tokens by default."""
        metrics = self.server.text(f"{self.server.url.removesuffix('/v1')}/metrics")
        info = next((line for line in metrics.splitlines() if line.startswith("vllm:cache_config_info{")), "")
        return 'block_size="128"' in info and 'user_specified_block_size="False"' in info

    def _say(self, text: str) -> None:
        print(f"{self.server.url} {text}", file=sys.stderr)


def same_model(asked: str, served: str) -> bool:
    """Whether a server's name or path means the model `asked`: the same text, or the same folder seen from elsewhere.

    Example: "runs/x/train" is "/data/runs/x/train", where one is relative; "runs/x/warmup" is another.
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
    """What an answer says, each part of the type that it must have. `ids` is None for a server that gives only text."""

    text: str
    reason: str
    prompt_tokens: int | None
    completion_tokens: int
    ids: list[int] | None
    logprobs: list[float]
    stop_reason: int | str | None


def _written(answer: dict[str, Any], with_ids: bool) -> _Written:
    """Raises ValueError, naming the field, for an answer that is none."""
    choices = _part(answer, "choices", list)
    if not choices or type(choices[0]) is not dict:
        raise ValueError("`choices` has no object in it")
    choice = choices[0]
    usage = _part(answer, "usage", dict, optional=True) or {}
    text, reason = _part(choice, "text", str), _part(choice, "finish_reason", str)
    prompt_tokens = _part(usage, "prompt_tokens", int, optional=True)
    completion_tokens = _part(usage, "completion_tokens", int, optional=True) or 0
    if not with_ids:
        return _Written(text, reason, prompt_tokens, completion_tokens, None, [], None)
    ids = _part(choice, "token_ids", list)
    logprobs = _part(_part(choice, "logprobs", dict), "token_logprobs", list)
    if set(map(type, ids)) - {int} or (ids and not 0 <= min(ids) <= max(ids) < 2**31):
        raise ValueError("`token_ids` are not all ids")
    if set(map(type, logprobs)) - {int, float} or not all(map(math.isfinite, logprobs)):
        raise ValueError("`token_logprobs` are not all numbers")
    if len(ids) != len(logprobs):
        raise ValueError(f"{len(ids)} token ids and {len(logprobs)} log-probs")
    return _Written(text, reason, prompt_tokens, completion_tokens, ids, logprobs, choice.get("stop_reason"))


def _part(holder: dict[str, Any], name: str, kind: type, optional: bool = False) -> Any:
    value = holder.get(name)
    if type(value) is kind or (optional and value is None):
        return value
    raise ValueError(f"`{name}` is {'missing or null' if value is None else f'a {type(value).__name__}'}")


def _put(done: Any, request: Request, prompt_tokens: int, future: Future[dict[str, Any]]) -> None:
    done.put((request, prompt_tokens, future))
