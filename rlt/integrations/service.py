"""Client of a running `rlt serve`, with the standard library alone: this file also works copied into another environment.

Engines pin other versions of transformers than rlt does, so the reward is computed in another process, and this is all
that an engine's environment needs.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between tries; doubled each time


class ServiceError(RuntimeError):
    """The service is not there, refuses the rows, or is another one than the run began with."""


class RewardService:
    """The service at `url`, such as http://127.0.0.1:8100.

    A request is retried for `retry_for` seconds after a broken connection, a time-out, 429 and 5xx, and then raises
    ServiceError: a reward is never silently zero or missing. So does an answer from a service with other students,
    another format or other options than the first answer's: rewards of two judges must not meet in one run.
    `token_env` names the environment variable with the bearer token.
    """

    def __init__(
        self, url: str, *, token_env: str | None = None, timeout: float = 600.0, retry_for: float = 300.0
    ) -> None:
        self.url, self.timeout, self.retry_for = url.rstrip("/"), timeout, retry_for
        self._headers = {"Content-Type": "application/json"}
        if token_env is not None:
            if not os.environ.get(token_env):
                raise ServiceError(f"{token_env} is not set: it must hold the service's token")
            self._headers["Authorization"] = f"Bearer {os.environ[token_env]}"
        self._service: str | None = None

    def info(self) -> dict[str, Any]:
        """What the service serves: format, options, students with the hash of their weights."""
        return self._request("/info", None)

    def score(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """For each row of `POST /score` its reward, parts and `error`, in order."""
        answer = self._request("/score", {"rows": [dict(row) for row in rows]})
        scored = answer.get("rows")
        if not isinstance(scored, list) or len(scored) != len(rows):
            raise ServiceError(f"{self.url}: answers without a row for each of {len(rows)} rows; is it `rlt serve`?")
        return scored

    def _request(self, path: str, body: object) -> dict[str, Any]:
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
                f"{self.url}: serves other students, another format or other options than this run began with. Start the "
                "service as it was."
            )
        self._service = service

    def _read(self, data: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(data)
        except ValueError as error:
            raise ServiceError(f"{self.url}: its answer is not JSON") from error
        if not isinstance(answer, dict):
            raise ServiceError(f"{self.url}: its answer is not a JSON object")
        return answer


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        detail = json.loads(error.read(65536)).get("detail")
    except (ValueError, AttributeError, OSError):
        detail = None
    return " ".join(str(detail or error.reason).split())[:500]
