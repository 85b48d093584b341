"""One server by URL: JSON requests, retried where that helps, many in flight; the key in no log, file or error."""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import threading
import time
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

import httpx

from rlt.errors import ConfigError, ServerError

# First wait before a request is sent again, doubled each time, and the longest, in seconds.
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0


class Server:
    """JSON over HTTP with the server at `url`, such as http://127.0.0.1:8000/v1.

    A request is sent again after 429, 5xx, a time-out or a broken connection, up to `retries` times, with exponential
    backoff and jitter; `Retry-After` is honoured. `timeout` bounds each attempt as a whole, in seconds. The key comes
    from the environment variable `api_key_env`. All connections live in one thread; methods can be called from any.
    """

    def __init__(
        self,
        url: str,
        api_key_env: str | None = None,
        *,
        timeout: float = 600.0,
        retries: int = 5,
        max_in_flight: int = 64,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"`url`: {parts.hostname or url!r} is no address; it begins with http:// or https://.")
        if parts.username or parts.password:
            raise ConfigError(
                f"`url`: the address of {parts.hostname} has a name or key in it, which would be written into the run. "
                "Put the key into an environment variable and name that as `api_key_env`."
            )
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self._key = _key(api_key_env)
        self._key_env = api_key_env
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rlt-server", daemon=True)
        self._thread.start()
        # Servers close what was idle for some seconds (uvicorn: 5); to use it at that moment costs a try.
        limits = httpx.Limits(
            max_connections=max_in_flight, max_keepalive_connections=max_in_flight, keepalive_expiry=2.0
        )
        # No time limits of httpx: each attempt has one as a whole, see `_request`.
        self._client = httpx.AsyncClient(headers=headers, timeout=None, limits=limits)

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that the server answers; raises ServerError in one line."""
        return self.submit(method, path, body).result()

    def submit(self, method: str, path: str, body: dict[str, Any] | None = None) -> Future[dict[str, Any]]:
        """The same, as a future."""
        return asyncio.run_coroutine_threadsafe(self._request(method, path, body), self._loop)

    def text(self, address: str) -> str:
        """The text at a full address of this server, beside its interface; empty where there is none."""
        return asyncio.run_coroutine_threadsafe(self._text(address), self._loop).result()

    def close(self) -> None:
        """Close all connections; requests under way are given up."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._shutdown(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shutdown(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    async def _text(self, address: str) -> str:
        try:
            async with asyncio.timeout(self.timeout):
                response = await self._client.get(address)
        except (TimeoutError, httpx.TransportError):
            return ""
        return response.text if response.status_code == 200 else ""

    async def _request(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        address = path if path.startswith("http") else f"{self.url}/{path}"
        reason, wait = "", 0.0
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(wait)
            # Half of the wait is random, so that requests that failed together do not come back together.
            wait = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)
            try:
                async with asyncio.timeout(self.timeout):
                    response = await self._client.request(method, address, json=body)
            except TimeoutError:
                reason = f"no answer within {self.timeout:g} s; set `timeout` higher if it only needs longer"
                continue
            except httpx.TransportError as error:
                reason = self._clean(str(error)) or type(error).__name__
                continue
            status = response.status_code
            if status == 200:
                return self._json(response)
            reason = f"it answers {status} ({self._clean(_message(response))})"
            if status != 429 and status < 500:
                raise ServerError(f"{self.url}: {reason}{self._advice(status)}")
            asked = _retry_after(response)
            if asked is not None:
                if asked > self.timeout:
                    raise ServerError(
                        f"{self.url}: {reason} and asks to wait {asked:.0f} s. Run the command again then."
                    )
                wait = max(asked, wait)
        tries = f" ({self.retries + 1} tries)" if self.retries else ""
        raise ServerError(f"{self.url}: {reason}{tries}. Check `url` and the server, then run the command again.")

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            start = self._clean(response.text[:80])
            raise ServerError(
                f"{self.url}: answers {start!r}, which is no JSON object. Is this address an OpenAI interface?"
            )
        return answer

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            if self._key is None:
                return ". It wants a key: name the environment variable that holds it as `api_key_env`."
            return f". It refuses the key in {self._key_env}."
        if status == 404:
            return ". Check `url` (it usually ends in /v1) and `served_model`."
        return "."

    def _clean(self, text: str) -> str:
        """One line of a server's or library's words, without the key."""
        line = " ".join(text.split())[:300]
        return line.replace(self._key, "***") if self._key else line


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"`api_key_env`: the environment variable {variable} is not set.")
    return key


def _message(response: httpx.Response) -> str:
    try:
        answer = response.json()
    except ValueError:
        return response.text
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait (a number or a date), or None."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
