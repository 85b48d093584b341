"""One server by URL: JSON requests, retried where that helps, many in flight; the key in no log, file or error."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import io
import json
import os
import random
import socket
import ssl
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from rlt.errors import ConfigError, ServerError

# First wait before a request is sent again, doubled each time, and the longest, in seconds.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
# A server that has never answered is absent, or its address is wrong: that is told after so many seconds.
ABSENT_AFTER = 10.0
# Seconds between two lines that say that a server is being waited for.
TELL_EVERY = 30.0
# Files that a process has open beside its connections.
OTHER_FILES = 256
# Rare words, digits, spaces and scripts: two tokenizers that agree on all of it are one.
PROBE = "Two tokenizers: 31415 + 9265 =\n\n  'π' naïve  <|im_end|> Übergröße 東京 </think>"
# Servers close a connection that was idle for some seconds (uvicorn: 5); to use it at that moment would cost a try.
IDLE = 2.0


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    headers: http.client.HTTPMessage
    text: str


class Server:
    """JSON over HTTP with the server at `url`, such as http://127.0.0.1:8000/v1.

    A request is sent again after 429, 5xx, a time-out or a broken connection, for `retry_for` seconds from the first
    failure on, with exponential backoff and jitter; `Retry-After` is honoured. Only a server that has never answered is
    given up after ABSENT_AFTER seconds. `timeout` bounds each attempt as a whole, in seconds, from connecting to the
    last byte (looking up the host's name aside). The key comes from the environment variable `api_key_env`. Methods can
    be called from any thread.

    A thread and a connection for each request in flight, from the standard library: beside a server on the same machine
    every millisecond of the client is the server's, and this costs a fraction of what an asynchronous client does.
    """

    def __init__(
        self,
        url: str,
        api_key_env: str | None = None,
        *,
        timeout: float = 600.0,
        retry_for: float = 300.0,
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
        _allow_files(max_in_flight)
        self.url, self.timeout, self.retry_for = url.rstrip("/"), timeout, retry_for
        self._parts, self._key, self._key_env = parts, _key(api_key_env), api_key_env
        self._headers = {"Content-Type": "application/json"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._pool = ThreadPoolExecutor(max_in_flight, thread_name_prefix="rlt-server")
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._answered, self._told = False, float("-inf")
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []
        self._used: set[http.client.HTTPConnection] = set()

    def request(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """The JSON object that the server answers; raises ServerError in one line. `timeout`: this request's own."""
        address = path if path.startswith("http") else f"{self.url}/{path}"
        limit = self.timeout if timeout is None else timeout
        failing_since, tries = None, 0
        while True:
            asked, tries = 0.0, tries + 1
            try:
                response = self._send(method, address, body, limit)
            except TimeoutError:
                reason = f"no answer within {limit:g} s; set `timeout` higher if it only needs longer"
            except (OSError, http.client.HTTPException) as error:
                reason = self.clean(str(error)) or type(error).__name__
            else:
                self._answered = True
                if response.status == 200:
                    return self._json(response)
                reason = f"it answers {response.status} ({self.clean(_message(response))})"
                if response.status != 429 and response.status < 500:
                    raise ServerError(f"{self.url}: {reason}{self._advice(response.status)}")
                asked = _retry_after(response) or 0.0
            now = time.monotonic()
            failing_since = now if failing_since is None else failing_since
            patience = self.retry_for if self._answered else min(self.retry_for, ABSENT_AFTER)
            if asked > patience:
                raise ServerError(f"{self.url}: {reason} and asks to wait {asked:.0f} s. Run the command again then.")
            # Half of the wait is random, so that requests that failed together do not come back together.
            backoff = min(FIRST_WAIT * 2 ** min(tries - 1, 16), LONGEST_WAIT) * random.uniform(0.5, 1.0)
            wait = max(asked, backoff)
            if now + wait > failing_since + patience:
                break
            self._tell(reason, failing_since + patience - now)
            if self._closing.wait(wait):
                break
        again = f" ({tries} tries in {now - failing_since:.0f} s)" if tries > 1 else ""
        raise ServerError(f"{self.url}: {reason}{again}. Check `url` and the server, then run the command again.")

    def submit(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float | None = None
    ) -> Future[dict[str, Any]]:
        """The same, as a future; at most `max_in_flight` are under way."""
        return self._pool.submit(self.request, method, path, body, timeout=timeout)

    def text(self, address: str) -> str:
        """The text at a full address of this server, beside its interface; empty where there is none."""
        try:
            response = self._send("GET", address, None, self.timeout)
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

    def clean(self, text: str, limit: int = 300) -> str:
        """One line of a server's or library's words, without the key, at most `limit` characters."""
        # The key first: cut in two it would no longer be found.
        hidden = text.replace(self._key, "***") if self._key else text
        return " ".join(hidden.split())[:limit]

    def _tell(self, reason: str, left: float) -> None:
        """Say now and then that the server is being waited for: hundreds of requests fail together."""
        with self._lock:
            if time.monotonic() - self._told < TELL_EVERY:
                return
            self._told = time.monotonic()
        print(f"{self.url}: {reason}. Trying again for {left:.0f} s.", file=sys.stderr, flush=True)

    # -- one attempt -------------------------------------------------------------------------------------------------

    def _send(self, method: str, address: str, body: dict[str, Any] | None, limit: float) -> _Response:
        """Raises TimeoutError when all of it took longer than `limit` seconds."""
        until = time.monotonic() + limit
        connection = self._connection(limit)
        try:
            data = None if body is None else json.dumps(body).encode()
            parts = urlsplit(address)
            target = address if _proxied(parts) else parts._replace(scheme="", netloc="").geturl() or "/"
            connection.response_class = partial(_TimedResponse, until=until)  # type: ignore[assignment]
            connection.request(method, target, data, self._headers)
            response = connection.getresponse()
            content = response.read()
        except BaseException:
            with self._lock:
                self._used.discard(connection)
            connection.close()
            raise
        with self._lock:
            self._used.discard(connection)
            if not response.will_close:
                self._idle.append((time.monotonic(), connection))
        return _Response(response.status, response.headers, content.decode("utf-8", errors="replace"))

    def _connection(self, limit: float) -> http.client.HTTPConnection:
        if self._closing.is_set():
            raise ConnectionError("closed")
        with self._lock:
            while self._idle:
                since, connection = self._idle.pop()
                if time.monotonic() - since < IDLE:
                    break
                connection.close()
            else:
                connection = self._new_connection(limit)
            self._used.add(connection)
        if connection.sock is not None:
            connection.sock.settimeout(limit)
        return connection

    def _new_connection(self, limit: float) -> http.client.HTTPConnection:
        parts, proxy = self._parts, _proxy(self._parts)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host, through = (parts.hostname or "", port) if proxy is None else (proxy.hostname or "", proxy.port or 80)
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, through, timeout=limit)
        secure = http.client.HTTPSConnection(host, through, timeout=limit, context=ssl.create_default_context())
        if proxy is not None:
            secure.set_tunnel(parts.hostname or "", port)
        return secure

    def _json(self, response: _Response) -> dict[str, Any]:
        try:
            answer = json.loads(response.text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            start = self.clean(response.text, 80)
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


def served_model(server: Server, wanted: str | None) -> dict[str, Any]:
    """What a server says of its model `wanted` (None: of its only one): `id`, and `root`, `owned_by`, `max_model_len`.

    Raises ServerError where it lists no models, several and `wanted` is None, or others than `wanted`.
    """
    models = server.request("GET", "models").get("data")
    texts, numbers = ("id", "root", "owned_by"), ("max_model_len",)
    known = isinstance(models, list) and models and all(
        isinstance(model, dict) and isinstance(model.get("id"), str)
        and all(isinstance(model.get(key), str | None) for key in texts)
        and all(isinstance(model.get(key), int | None) for key in numbers)
        for model in models
    )  # fmt: skip
    if not known:
        raise ServerError(f"{server.url}: lists no models. Is this address an OpenAI interface (ending in /v1)?")
    names = [model["id"] for model in models]  # type: ignore[union-attr]
    listed = server.clean(", ".join(names))
    if wanted is None and len(names) > 1:
        raise ServerError(f"{server.url}: serves {listed}. Name one as `served_model`.")
    if wanted is not None and wanted not in names:
        raise ServerError(f"{server.url}: serves {listed}, not {wanted!r}. Change `served_model`.")
    return models[0 if wanted is None else names.index(wanted)]  # type: ignore[index,no-any-return]


def check_tokenizer(server: Server, name: str, ids: list[int], model: str) -> None:
    """Raise ServerError where the vLLM server's model `name` makes other tokens of PROBE than `ids`, those of `model`."""
    body = {"model": name, "prompt": PROBE, "add_special_tokens": False}
    theirs = server.request("POST", f"{server.url.removesuffix('/v1')}/tokenize", body).get("tokens")
    if theirs != ids:
        raise ServerError(
            f"{server.url}: serves {server.clean(name)}, whose tokenizer is not that of {model}. Give the served model's "
            "folder as the model, or another server."
        )


class _TimedResponse(http.client.HTTPResponse):
    """An answer that is read until a moment and no longer, however slowly its status, headers or body drip."""

    def __init__(self, sock: socket.socket, *, until: float, **options: Any) -> None:
        super().__init__(sock, **options)
        self.fp: Any = io.BufferedReader(_TimedSocket(self.fp.detach(), sock, until))


class _TimedSocket(io.RawIOBase):
    """What http.client reads from: before each read, the socket gets what is left of the time."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, until: float) -> None:
        self._raw, self._sock, self._until = raw, sock, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _allow_files(connections: int) -> None:
    """Let this process have so many connections open at once; raises ConfigError where it may not have them."""
    try:
        import resource
    except ImportError:  # on Windows, where there is no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ConfigError(
            f"`max_in_flight` {connections} needs that many open files, and this process may have {hard}. Set "
            f"`max_in_flight` to {max(1, hard - OTHER_FILES)} or less, or raise the limit (`ulimit -Hn`)."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
