"""The `openai` engine: any server with OpenAI's completions interface, many requests in flight."""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

from rlt.config import EngineOptions
from rlt.errors import ServerError
from rlt.generation import Completion, Request, Sampling, budget, cut
from rlt.models import load_tokenizer
from rlt.server import Server

# Rare words, digits, spaces and scripts: two tokenizers that agree on all of it are one.
PROBE = "Two tokenizers: 31415 + 9265 =\n\n  'π' naïve  <|im_end|> Übergröße 東京 </think>"


class ServedEngine:
    """Continues prompts at a server.

    A vLLM server gets token ids and gives token ids and log-probs. Another server gets and gives text: its completions
    have neither, and stop strings are looked for here, since such a server leaves them out of what it returns.
    """

    def __init__(self, options: EngineOptions, model: str, *, trust_remote_code: bool = False) -> None:
        self.tokenizer = load_tokenizer(model, trust_remote_code)
        self.max_in_flight = options.max_in_flight
        self.server = Server(
            options.url or "", options.api_key_env, timeout=options.timeout, retries=options.retries,
            max_in_flight=options.max_in_flight,
        )  # fmt: skip
        try:
            served = self._served_model(options.served_model)
            self.model: str = served["id"]
            self.ids = served.get("owned_by") == "vllm"
            self.context_length: int | None = served.get("max_model_len")
            if self.ids:
                self._check_tokenizer(model)
            wanted = options.send_seeds
            self.seeded: bool = wanted if wanted is not None else not (self.ids and self._on_cpu())
        except BaseException:
            self.server.close()
            raise
        self.name = "openai (vllm)" if self.ids else "openai (text only)"
        eos = self.tokenizer.eos_token_id
        self.end_ids = set() if eos is None else {eos}
        if not self.seeded:
            print(
                f"{self.server.url} is vLLM on a CPU: requests are sent without seeds (see `send_seeds`).",
                file=sys.stderr,
            )
        if not self.ids:
            print(
                f"{self.server.url} gives text only, no token ids: rows say `text_only` and have no `logprob_sum`.",
                file=sys.stderr,
            )

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `rlt.generation.Engine`. When one request fails for good, those under way still come, then an error."""
        done: queue.SimpleQueue[tuple[Request, int, Future[dict[str, Any]]]] = queue.SimpleQueue()
        source = iter(requests)
        flying: set[Future[dict[str, Any]]] = set()
        failure: ServerError | None = None
        exhausted = False
        try:
            while True:
                while failure is None and not exhausted and len(flying) < self.max_in_flight:
                    request = next(source, None)
                    if request is None:
                        exhausted = True
                        break
                    ids = self.tokenizer.encode(request.prompt, add_special_tokens=False, verbose=False)
                    room = budget(len(ids), sampling, self.context_length)
                    if room == 0:
                        yield Completion(request.key, "", "length", len(ids), 0, () if self.ids else None)
                        continue
                    future = self.server.submit("POST", "completions", self.body(request, ids, room, sampling))
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
            choice = answer["choices"][0]
            reason, text = choice["finish_reason"], choice["text"]
            usage = answer.get("usage") or {}
            counted = usage.get("prompt_tokens", prompt_tokens)
            ids = choice["token_ids"] if self.ids else None
            logprobs = choice["logprobs"]["token_logprobs"] if self.ids else []
        except (KeyError, IndexError, TypeError) as error:
            raise ServerError(
                f"{self.server.url}: the answer is no completion (no {error}). Is this address an OpenAI interface?"
            ) from error
        # One more is the beginning-of-text token that a server puts before a text.
        if counted - prompt_tokens not in ((0,) if self.ids else (0, 1)):
            raise ServerError(
                f"{self.server.url}: counts {counted} tokens in a prompt of {prompt_tokens}: it serves another model "
                "than the tokenizer's. Give the served model's folder as `model`."
            )
        if reason not in ("stop", "length"):
            raise ServerError(f"{self.server.url}: ended a completion with {reason!r}; run the command again.")
        if ids is None:
            ends = [text.find(tag) + len(tag) for tag in sampling.stop if tag in text]
            text, reason = (text[: min(ends)], "stop") if ends else (text, reason)
            return Completion(request.key, text, reason, prompt_tokens, usage.get("completion_tokens", 0))
        if len(ids) != len(logprobs):
            raise ServerError(f"{self.server.url}: {len(ids)} token ids and {len(logprobs)} log-probs in one answer.")
        # The server may know further end tokens; its reason is then `stop`, and its last token is one of them.
        ended = (reason == "stop" and choice.get("stop_reason") is None) or isinstance(choice.get("stop_reason"), int)
        kept, text, stopped = cut(self.tokenizer, ids, sampling.stop, {*self.end_ids, *(ids[-1:] if ended else ())})
        total = float(sum(logprobs[: len(kept)]))
        return Completion(
            request.key, text, "stop" if stopped else reason, prompt_tokens, len(kept), tuple(kept), total
        )

    def _served_model(self, wanted: str | None) -> dict[str, Any]:
        models = self.server.request("GET", "models").get("data")
        if not isinstance(models, list) or not models or not all(isinstance(m, dict) and "id" in m for m in models):
            raise ServerError(
                f"{self.server.url}: lists no models. Is this address an OpenAI interface (ending in /v1)?"
            )
        names = [model["id"] for model in models]
        if wanted is None and len(names) > 1:
            raise ServerError(f"{self.server.url}: serves {', '.join(names)}. Name one as `served_model`.")
        if wanted is not None and wanted not in names:
            raise ServerError(f"{self.server.url}: serves {', '.join(names)}, not {wanted!r}. Change `served_model`.")
        return models[0 if wanted is None else names.index(wanted)]

    def _on_cpu(self) -> bool:
        """Whether the vLLM server runs on a CPU, which it does not say: there alone blocks have 128 tokens by default."""
        metrics = self.server.text(f"{self._root}/metrics")
        info = next((line for line in metrics.splitlines() if line.startswith("vllm:cache_config_info{")), "")
        return 'block_size="128"' in info and 'user_specified_block_size="False"' in info

    @property
    def _root(self) -> str:
        return self.server.url.removesuffix("/v1")

    def _check_tokenizer(self, model: str) -> None:
        body = {"model": self.model, "prompt": PROBE, "add_special_tokens": False}
        theirs = self.server.request("POST", f"{self._root}/tokenize", body).get("tokens")
        if theirs != self.tokenizer.encode(PROBE, add_special_tokens=False):
            raise ServerError(
                f"{self.server.url}: serves {self.model}, whose tokenizer is not that of {model}. Give the served "
                "model's folder as `model`, or another server."
            )


def _put(done: Any, request: Request, prompt_tokens: int, future: Future[dict[str, Any]]) -> None:
    done.put((request, prompt_tokens, future))
