"""One server by URL: JSON requests, retried where that helps, many in flight; the key in no log, file or error."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import os
import random
import socket
import ssl
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from rlt.errors import ConfigError, ServerError

# First wait before a request is sent again, doubled each time, and the longest, in seconds.
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
# Servers close a connection that was idle for some seconds (uvicorn: 5); to use it at that moment would cost a try.
IDLE = 2.0


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    headers: http.client.HTTPMessage
    text: str


class Server:
    """JSON over HTTP with the server at `url`, such as http://127.0.0.1:8000/v1.

    A request is sent again after 429, 5xx, a time-out or a broken connection, up to `retries` times, with exponential
    backoff and jitter; `Retry-After` is honoured. `timeout` bounds each attempt as a whole, in seconds. The key comes
    from the environment variable `api_key_env`. Methods can be called from any thread.

    A thread and a connection for each request in flight, from the standard library: beside a server on the same machine
    every millisecond of the client is the server's, and this costs a fraction of what an asynchronous client does.
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
        self._parts, self._key, self._key_env = parts, _key(api_key_env), api_key_env
        self._headers = {"Content-Type": "application/json"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._pool = ThreadPoolExecutor(max_in_flight, thread_name_prefix="rlt-server")
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []
        self._used: set[http.client.HTTPConnection] = set()

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that the server answers; raises ServerError in one line."""
        address = path if path.startswith("http") else f"{self.url}/{path}"
        reason, wait = "", 0.0
        for attempt in range(self.retries + 1):
            if attempt and self._closing.wait(wait):
                break
            # Half of the wait is random, so that requests that failed together do not come back together.
            wait = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)
            try:
                response = self._send(method, address, body)
            except TimeoutError:
                reason = f"no answer within {self.timeout:g} s; set `timeout` higher if it only needs longer"
                continue
            except (OSError, http.client.HTTPException) as error:
                reason = self._clean(str(error)) or type(error).__name__
                continue
            status = response.status
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

    def submit(self, method: str, path: str, body: dict[str, Any] | None = None) -> Future[dict[str, Any]]:
        """The same, as a future; at most `max_in_flight` are under way."""
        return self._pool.submit(self.request, method, path, body)

    def text(self, address: str) -> str:
        """The text at a full address of this server, beside its interface; empty where there is none."""
        try:
            response = self._send("GET", address, None)
        except (OSError, http.client.HTTPException):
            return ""
        return response.text if response.status == 200 else ""

    def close(self) -> None:
        """Close all connections; requests under way are given up."""
        self._closing.set()
        with self._lock:
            for connection in [*self._used, *(connection for _, connection in self._idle)]:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):  # closed by the other side in this moment
                        connection.sock.shutdown(socket.SHUT_RDWR)
        self._pool.shutdown(cancel_futures=True)

    # -- one attempt -------------------------------------------------------------------------------------------------

    def _send(self, method: str, address: str, body: dict[str, Any] | None) -> _Response:
        """Raises TimeoutError when all of it took longer than `timeout`."""
        until = time.monotonic() + self.timeout
        connection = self._connection()
        try:
            data = None if body is None else json.dumps(body).encode()
            parts = urlsplit(address)
            target = address if _proxied(parts) else parts._replace(scheme="", netloc="").geturl() or "/"
            connection.request(method, target, data, self._headers)
            response = connection.getresponse()
            chunks = []
            while True:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if connection.sock is not None:
                    connection.sock.settimeout(left)
                chunk = response.read1(1 << 16)
                if not chunk:
                    break
                chunks.append(chunk)
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
            response.close()  # read1 leaves it open, and the connection then takes no further request
        except BaseException:
            with self._lock:
                self._used.discard(connection)
            connection.close()
            raise
        with self._lock:
            self._used.discard(connection)
            if not response.will_close:
                self._idle.append((time.monotonic(), connection))
        text = b"".join(chunks).decode("utf-8", errors="replace")
        return _Response(response.status, response.headers, text)

    def _connection(self) -> http.client.HTTPConnection:
        if self._closing.is_set():
            raise ConnectionError("closed")
        with self._lock:
            while self._idle:
                since, connection = self._idle.pop()
                if time.monotonic() - since < IDLE:
                    break
                connection.close()
            else:
                connection = self._new_connection()
            self._used.add(connection)
        if connection.sock is not None:
            connection.sock.settimeout(self.timeout)
        return connection

    def _new_connection(self) -> http.client.HTTPConnection:
        parts, proxy = self._parts, _proxy(self._parts)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host, through = (parts.hostname or "", port) if proxy is None else (proxy.hostname or "", proxy.port or 80)
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, through, timeout=self.timeout)
        secure = http.client.HTTPSConnection(host, through, timeout=self.timeout, context=ssl.create_default_context())
        if proxy is not None:
            secure.set_tunnel(parts.hostname or "", port)
        return secure

    def _json(self, response: _Response) -> dict[str, Any]:
        try:
            answer = json.loads(response.text)
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


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for an address (`http_proxy`, `https_proxy`, `no_proxy`), or None."""
    named = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    return urlsplit(named if "://" in named else f"http://{named}") if named else None


def _proxied(parts: SplitResult) -> bool:
    """Whether a request line must name the whole address: plain HTTP through a proxy."""
    return parts.scheme == "http" and _proxy(parts) is not None


def _message(response: _Response) -> str:
    try:
        answer = json.loads(response.text)
    except ValueError:
        return response.text
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _retry_after(response: _Response) -> float | None:
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
