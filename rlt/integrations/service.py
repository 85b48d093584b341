"""Client of a running `rlt serve`, with only the standard library.

Engines pin other versions of transformers than rlt, so the reward is computed in another process. This file is all that
an engine's environment needs; it also works as a copy.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between tries, doubled each time
IN_FLIGHT = 64  # concurrent requests of one process
LOGGED = ("r_ss", "r_kl", "explanation_kl_max", "format_penalty")

JsonRow = dict[str, object]


class ServiceError(RuntimeError):
    """The service cannot be reached, rejects the rows, or is not the one the run started with."""


class RewardService:
    """The service at `url`, such as http://127.0.0.1:8100.

    A request is retried for `retry_for` seconds after a broken connection, a time-out, 429 and 5xx, and then raises
    ServiceError: a reward is never silently zero or missing. An answer from a service with other students, format or
    options than the first answer's raises it too: a run must not mix rewards of two judges. `service` is the hash that the
    first answer must have; None accepts any. `token_env` names the environment variable with the bearer token.
    `failed_reward` is the reward of a row that cannot be scored, for engines that do not support missing rewards.
    """

    def __init__(
        self,
        url: str,
        *,
        token_env: str | None = None,
        timeout: float = 600.0,
        retry_for: float = 300.0,
        service: str | None = None,
        failed_reward: float | None = None,
    ) -> None:
        self.url, self.timeout, self.retry_for = url.rstrip("/"), timeout, retry_for
        self.failed_reward = failed_reward
        self._headers = {"Content-Type": "application/json"}
        if token_env is not None:
            if not os.environ.get(token_env):
                raise ServiceError(f"{token_env} is not set: it must contain the service's token")
            self._headers["Authorization"] = f"Bearer {os.environ[token_env]}"
        self._service = service

    @classmethod
    @functools.cache
    def from_environment(cls) -> RewardService:
        """The service configured by the environment, one per process.

        RLT_URL is its address. RLT_TOKEN, RLT_TIMEOUT, RLT_RETRY_FOR (seconds), RLT_SERVICE (the hash it must have) and
        RLT_FAILED_REWARD are optional. Raises ServiceError without RLT_URL and for a value that is not a number.
        """
        url = os.environ.get("RLT_URL")
        if not url:
            raise ServiceError("RLT_URL is not set: it must contain the address of a running `rlt serve`")
        numbers: dict[str, float] = {}
        for variable, option in (
            ("RLT_TIMEOUT", "timeout"),
            ("RLT_RETRY_FOR", "retry_for"),
            ("RLT_FAILED_REWARD", "failed_reward"),
        ):
            value = os.environ.get(variable)
            try:
                numbers |= {} if not value else {option: float(value)}
            except ValueError as error:
                raise ServiceError(f"{variable}: {value!r} is not a number") from error
        token_env = "RLT_TOKEN" if os.environ.get("RLT_TOKEN") else None
        return cls(url, token_env=token_env, service=os.environ.get("RLT_SERVICE") or None, **numbers)

    def info(self) -> JsonRow:
        """The service's format, options and students, with the hash of their weights."""
        return self._request("/info", None)

    def score(self, rows: Sequence[Mapping[str, object]]) -> list[JsonRow]:
        """For each row of `POST /score`, its reward, parts and `error`, in order."""
        answer = self._request("/score", {"rows": [dict(row) for row in rows]})
        scored = answer.get("rows")
        if not isinstance(scored, list) or len(scored) != len(rows):
            raise ServiceError(f"{self.url}: the answer does not have {len(rows)} rows. Is this `rlt serve`?")
        return scored

    async def reward(self, row: Mapping[str, object]) -> tuple[float, dict[str, float]]:
        """The reward of one row of `POST /score` and its parts, without blocking the event loop.

        Raises ServiceError for a row that cannot be scored, unless there is a `failed_reward`.
        """
        (scored,) = await asyncio.get_running_loop().run_in_executor(_threads(), self.score, [row])
        return self.number(scored), parts_of(scored)

    async def post(self, path: str, body: Mapping[str, object]) -> JsonRow:
        """The answer to `body` at `path`, without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(_threads(), self._request, path, body)

    def number(self, scored: Mapping[str, object]) -> float:
        """The reward of a scored row, or `failed_reward`; raises ServiceError if there is neither."""
        reward = scored.get("reward")
        if isinstance(reward, (int, float)) and math.isfinite(reward):
            return float(reward)
        if self.failed_reward is not None:
            return self.failed_reward
        raise ServiceError(
            f"{self.url}: a row cannot be scored: {scored.get('error')}. Set RLT_FAILED_REWARD to give such rows a reward."
        )

    def _request(self, path: str, body: object) -> JsonRow:
        data = None if body is None else json.dumps(body).encode()
        deadline, wait = time.monotonic() + self.retry_for, FIRST_WAIT
        while True:
            try:
                request = urllib.request.Request(self.url + path, data, self._headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    self._same(answer.headers.get("rlt-service"))
                    return self._read(answer.read())
            except urllib.error.HTTPError as error:
                reason, asked = f"{error.code}: {_detail(error)}", float(error.headers.get("Retry-After") or 0)
                if error.code != 429 and error.code < 500:
                    raise ServiceError(f"{self.url}{path}: {reason}") from error
            except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
                reason, asked = str(getattr(error, "reason", error)), 0.0
            pause = max(wait, asked)
            if time.monotonic() + pause > deadline:
                raise ServiceError(f"{self.url}{path}: {reason}. Start it: rlt serve --student DIR --port ...")
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)

    def _same(self, service: str | None) -> None:
        if service is None:
            raise ServiceError(f"{self.url}: not a reward service of rlt")
        if self._service is not None and service != self._service:
            raise ServiceError(
                f"{self.url}: serves other students, another format or other options than when this run started (service "
                f"{service}, not {self._service}). Restart the service as it was."
            )
        self._service = service

    def _read(self, data: bytes) -> JsonRow:
        try:
            answer = json.loads(data)
        except ValueError as error:
            raise ServiceError(f"{self.url}: its answer is not JSON") from error
        if not isinstance(answer, dict):
            raise ServiceError(f"{self.url}: its answer is not a JSON object")
        return answer


@functools.cache
def _threads() -> ThreadPoolExecutor:
    # asyncio's own pool has only a few threads, but a rollout worker waits for many rewards at once.
    return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="rlt")


def parts_of(scored: Mapping[str, object]) -> dict[str, float]:
    """The numbers of LOGGED that a scored row has."""
    return {name: float(value) for name in LOGGED if isinstance(value := scored.get(name), (int, float))}


def labelled(label: object) -> JsonRow:
    """`question`, `solution` and, if present, `answer` and `system` of a label: a JSON object, as text or parsed.

    Raises ServiceError for any other label.
    """
    try:
        values = json.loads(label) if isinstance(label, str) else label
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, Mapping) or None in (values.get("question"), values.get("solution")):
        raise ServiceError(
            'the label must be a JSON object such as {"question": "...", "solution": "..."}, because the reward needs the '
            f"solution; got {str(label)[:60]!r}. `python -m rlt.integrations.prompts` writes such labels."
        )
    return {name: values[name] for name in ("question", "solution", "answer", "system") if values.get(name) is not None}


def whole_distribution(where: str, top_p: float | None, top_k: float | None) -> None:
    """Raise ServiceError if an engine's log-probs are from a distribution truncated by top-p or top-k."""
    if (top_p is not None and top_p < 1) or (top_k is not None and top_k > 0):
        raise ServiceError(
            f"{where}: top_p {top_p} and top_k {top_k} truncate the distribution, but r_kl needs all of it. Set top_p to 1 "
            "and turn top_k off."
        )


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        detail = json.loads(error.read(65536)).get("detail")
    except (ValueError, AttributeError, OSError):
        detail = None
    return " ".join(str(detail or error.reason).split())[:500]
