"""Client of one model server: JSON requests over HTTP, with retries, many in flight."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import logging
import os
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakSet

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, InvalidHeader, NewConnectionError
from urllib3.exceptions import TimeoutError as PoolTimeout

from rlt.errors import ConfigError, ServerError
from rlt.types import JsonRow

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Seconds before the first retry, doubled for each further one up to the longest.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
# Seconds after which a server that never answered is reported: it is down, or the address is wrong.
ABSENT_AFTER = 10.0
# Seconds between two messages about waiting for a server.
TELL_EVERY = 30.0
# Maximum size of an answer in bytes. The longest real ones, log-probs of a million tokens, are about as large.
LARGEST_ANSWER = 64 * 2**20
PIECE = 2**16
# Files that a process has open apart from its connections.
OTHER_FILES = 256
# Rare words, digits, spaces and scripts: two tokenizers that agree on all of it are taken to be the same.
PROBE = "Two tokenizers: 31415 + 9265 =\n\n  'π' naïve  <|im_end|> Übergröße 東京 </think>"


class Client:
    """JSON over HTTP with the server at `url`, such as http://127.0.0.1:8000/v1.

    A request is retried after 429, 5xx, a time-out or a broken connection, for `retry_for` seconds from its first
    failure, with exponential backoff and jitter; `Retry-After` is honoured. A server that never answered is given up
    after ABSENT_AFTER seconds. `timeout` limits each attempt as a whole, in seconds, from connecting to the last byte
    (except the host name's lookup). Answers larger than LARGEST_ANSWER are rejected. The environment variable
    `api_key_env` holds the key, which never appears in logs, files or errors. Proxies are taken from the environment.
    Methods are thread-safe; each request in flight has a thread and a connection.
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
        parts = _address(url)
        _allow_files(max_in_flight)
        self.url, self.timeout, self.retry_for = url.rstrip("/"), timeout, retry_for
        self._key, self._key_env = _key(api_key_env), api_key_env
        self._headers = {"Content-Type": "application/json"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._threads = ThreadPoolExecutor(max_in_flight, thread_name_prefix="rlt-client")
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._answered, self._told = False, float("-inf")
        self._opened: WeakSet[_Bounded] = WeakSet()
        self._pool, self._absolute = _pool(parts, max_in_flight + 1, self._register)  # + 1: the calling thread

    def request(self, method: str, path: str, body: JsonRow | None = None, *, timeout: float | None = None) -> JsonRow:
        """The JSON object in the server's answer. `timeout`: for this request only. Raises a ServerError of one line."""
        address = path if path.startswith("http") else f"{self.url}/{path}"
        limit = self.timeout if timeout is None else timeout
        failing_since, tries = None, 0
        while True:
            asked, tries = 0.0, tries + 1
            try:
                answer = self._send(method, address, body, limit)
            except ServerError:  # an OSError too
                raise
            except (HTTPError, OSError, http.client.HTTPException) as error:
                reason = self.clean(_cause(error, limit))
            else:
                self._answered = True
                if answer.status == 200:
                    return self._json(answer)
                reason = f"it answers {answer.status} ({self.clean(_message(answer))})"
                if answer.status != 429 and answer.status < 500:
                    raise ServerError(f"{self.url}: {reason}{self._advice(answer.status)}")
                asked = answer.retry_after
            now = time.monotonic()
            failing_since = now if failing_since is None else failing_since
            patience = self.retry_for if self._answered else min(self.retry_for, ABSENT_AFTER)
            if asked > patience:
                raise ServerError(f"{self.url}: {reason} and asks to wait {asked:.0f} s. Run the command again then.")
            wait = max(asked, _backoff(tries))
            if now + wait > failing_since + patience:
                break
            self._tell(reason, failing_since + patience - now)
            if self._closing.wait(wait):
                break
        again = f" ({tries} tries in {now - failing_since:.0f} s)" if tries > 1 else ""
        raise ServerError(f"{self.url}: {reason}{again}. Check `url` and the server, then run the command again.")

    def submit(
        self, method: str, path: str, body: JsonRow | None = None, *, timeout: float | None = None
    ) -> Future[JsonRow]:
        """A future of `request`; at most `max_in_flight` run at once."""
        return self._threads.submit(self.request, method, path, body, timeout=timeout)

    def text(self, address: str) -> str:
        """The text at a full address of this server; empty if it cannot be fetched."""
        try:
            answer = self._send("GET", address, None, self.timeout)
        except (HTTPError, OSError, http.client.HTTPException, ServerError):
            return ""
        return answer.text if answer.status == 200 else ""

    def close(self) -> None:
        """Close all connections; requests in flight fail."""
        with self._lock:
            self._closing.set()
            opened = list(self._opened)
        for connection in opened:
            connection.shut()
        self._pool.close()
        self._threads.shutdown(cancel_futures=True)

    def clean(self, text: str, limit: int = 300) -> str:
        """A server's or library's message as one printable line of at most `limit` characters, without the key.

        Control characters are escaped: on a terminal, they could move the cursor or forge lines.
        """
        # The key first: a key cut in two would not be found.
        hidden = text.replace(self._key, "***") if self._key else text
        line = " ".join(hidden.split())[:limit]
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)[:limit]

    def _register(self, connection: _Bounded) -> None:
        with self._lock:
            if self._closing.is_set():
                raise ConnectionError("closed")
            self._opened.add(connection)

    def _tell(self, reason: str, left: float) -> None:
        """Report waiting, but not for every request: hundreds of them fail together."""
        with self._lock:
            if time.monotonic() - self._told < TELL_EVERY:
                return
            self._told = time.monotonic()
        print(f"{self.url}: {reason}. Retrying for another {left:.0f} s.", file=sys.stderr, flush=True)

    def _send(self, method: str, address: str, body: JsonRow | None, limit: float) -> _Answer:
        """One attempt. Raises urllib3's TimeoutError if it takes longer than `limit` seconds in all."""
        target = address if self._absolute else urlsplit(address)._replace(scheme="", netloc="").geturl() or "/"
        try:
            response = self._pool.urlopen(
                method, target, None if body is None else json.dumps(body).encode(), self._headers, retries=False,
                redirect=False, assert_same_host=False, timeout=urllib3.Timeout(total=limit), preload_content=False,
            )  # fmt: skip
            try:
                if (response.length_remaining or 0) > LARGEST_ANSWER:
                    raise _TooLarge
                # In pieces: otherwise memory is allocated for a body that claims 10^12 bytes. Not decompressed: no
                # compression was requested, and a small answer could expand to gigabytes.
                data = b"".join(response.stream(PIECE, decode_content=False))
            except BaseException:
                response.close()  # not reused: the rest of this answer would be read as the next one
                raise
            response.release_conn()
        except _TooLarge:
            raise ServerError(
                f"{self.url}: its answer is larger than {LARGEST_ANSWER >> 20} MB. Is this an OpenAI-compatible API?"
            ) from None
        return _Answer(response.status, _retry_after(response), data.decode("utf-8", errors="replace"))

    def _json(self, answer: _Answer) -> JsonRow:
        try:
            value = json.loads(answer.text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            start = self.clean(answer.text, 80)
            raise ServerError(f"{self.url}: answers '{start}', not a JSON object. Is this an OpenAI-compatible API?")
        return value

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            if self._key is None:
                return ". It needs an API key: set `api_key_env` to the environment variable that holds it."
            return f". It rejects the key in {self._key_env}."
        if status == 404:
            return ". Check `url` (it usually ends in /v1) and `served_model`."
        return "."


@dataclass(frozen=True, slots=True)
class Served:
    """A server's model card: `root` is the path or name it was loaded from; `owner` is `vllm` for vLLM."""

    id: str
    root: str | None
    owner: str | None
    context_length: int | None


def served_model(client: Client, wanted: str | None) -> Served:
    """The server's model `wanted`; None: its only one.

    Raises ServerError if the server lists no models, several while `wanted` is None, or only others.
    """
    listed = client.request("GET", "models").get("data")
    models = [_served(card) for card in listed] if isinstance(listed, list) else []
    known = [model for model in models if model is not None]
    if not known or len(known) < len(models):
        raise ServerError(f"{client.url}: lists no models. Is this an OpenAI-compatible API (ending in /v1)?")
    names = client.clean(", ".join(model.id for model in known))
    if wanted is None and len(known) > 1:
        raise ServerError(f"{client.url}: serves {names}. Set `served_model` to one of them.")
    found = known[0] if wanted is None else next((model for model in known if model.id == wanted), None)
    if found is None:
        raise ServerError(f"{client.url}: serves {names}, not {wanted!r}. Change `served_model`.")
    return found


def check_tokenizer(client: Client, name: str, ids: list[int], model: str) -> None:
    """Raise ServerError unless the vLLM server's model `name` tokenizes PROBE into `ids`, as `model` does."""
    body: JsonRow = {"model": name, "prompt": PROBE, "add_special_tokens": False}
    theirs = client.request("POST", f"{client.url.removesuffix('/v1')}/tokenize", body).get("tokens")
    if theirs != ids:
        raise ServerError(
            f"{client.url}: serves {client.clean(name)}, whose tokenizer differs from that of {model}. Use the served "
            "model's folder as the model, or use another server."
        )


# -- one answer --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    retry_after: float
    text: str


class _TooLarge(Exception):
    """The server sent more than LARGEST_ANSWER. Not an OSError: urllib3 would wrap it in its own."""


class _Bounded(HTTPConnection):
    """A connection that limits the total time and size of each answer.

    urllib3 limits the time of each read, which a server that sends single bytes never exceeds, and not the size.
    `register` is called with each new connection.
    """

    def __init__(self, *args: Any, register: Callable[[_Bounded], None], **options: Any) -> None:
        super().__init__(*args, **options)
        register(self)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        until = time.monotonic() + cast(float, self.timeout)  # what is left of urllib3's total time-out
        self.response_class = partial(_BoundedResponse, until=until)  # type: ignore[assignment]
        return super().getresponse()

    def shut(self) -> None:
        """Make the thread that waits for this connection's answer fail."""
        if self.sock is not None:
            with contextlib.suppress(OSError):  # the other side closed it just now
                self.sock.shutdown(socket.SHUT_RDWR)


class _BoundedTls(_Bounded, HTTPSConnection):
    pass


class _BoundedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, *, until: float) -> None:
        super().__init__(sock, debuglevel, method)
        self.fp = io.BufferedReader(_BoundedReader(self.fp.detach(), sock, until))


class _BoundedReader(io.RawIOBase):
    """What http.client reads from: before each read, the socket's time-out is set to the remaining time."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, until: float) -> None:
        self._raw, self._sock, self._until, self._room = raw, sock, until, LARGEST_ANSWER

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if self._room <= 0:
            raise _TooLarge
        self._sock.settimeout(left)
        count = self._raw.readinto(buffer)
        self._room -= count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _cause(error: BaseException, limit: float) -> str:
    """The underlying error: urllib3 wraps the system's error and repeats the address."""
    # In urllib3, a refused connection is a kind of time-out.
    if isinstance(error, PoolTimeout) and not isinstance(error, NewConnectionError):
        return f"no answer within {limit:g} s; increase `timeout` if the server needs longer"
    while True:
        inner = error.__cause__ or next((part for part in error.args[::-1] if isinstance(part, BaseException)), None)
        if inner is None:
            return str(error) or type(error).__name__
        error = inner


def _message(answer: _Answer) -> str:
    """The message of an error answer: OpenAI's `error.message`, or the whole answer."""
    try:
        value = json.loads(answer.text)
        error = value.get("error", value) if isinstance(value, dict) else value
        return str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, RecursionError):
        return answer.text


def _retry_after(response: urllib3.BaseHTTPResponse) -> float:
    """Seconds that the server asks to wait (as a number or a date); 0 if it does not."""
    try:
        return float(urllib3.Retry().get_retry_after(response) or 0.0)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


def _backoff(tries: int) -> float:
    # Half of the wait is random, so that requests that failed together do not retry together.
    return min(FIRST_WAIT * 2 ** min(tries - 1, 16), LONGEST_WAIT) * random.uniform(0.5, 1.0)


def _served(card: object) -> Served | None:
    """The model of a server's card; None if the card is malformed."""
    if not isinstance(card, dict):
        return None
    name, root, owner, length = (card.get(key) for key in ("id", "root", "owned_by", "max_model_len"))
    if not isinstance(name, str) or not isinstance(root, str | None) or not isinstance(owner, str | None):
        return None
    if not isinstance(length, int | None):
        return None
    return Served(name, root, owner, length)


# -- before the first request ------------------------------------------------------------------------------------------


def _address(url: str) -> SplitResult:
    """The parts of `url`; raises ConfigError if it is not an address or contains a key."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"`url`: {url!r} is not an address ({error}).") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"`url`: {parts.hostname or url!r} is not an address; it must start with http:// or https://."
        )
    if parts.username or parts.password:
        raise ConfigError(
            f"`url`: the address of {parts.hostname} contains a user name or key, which would be written into the run. "
            "Put the key into an environment variable and set `api_key_env` to its name."
        )
    return parts


def _pool(
    parts: SplitResult, connections: int, register: Callable[[_Bounded], None]
) -> tuple[urllib3.HTTPConnectionPool, bool]:
    """Connections to a server, and whether request lines have the whole address (plain HTTP through a proxy)."""
    # urllib3 logs malformed headers with a traceback and all their bytes.
    logging.getLogger("urllib3.connection").setLevel(logging.ERROR)
    named = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    try:
        manager = urllib3.PoolManager(maxsize=connections) if not named else _proxy(named, connections)
        pool = manager.connection_from_host(parts.hostname, parts.port, parts.scheme)
    except (HTTPError, ValueError) as error:
        raise ConfigError(f"`url`: {' '.join(str(error).split())}") from error
    pool.ConnectionCls = _BoundedTls if parts.scheme == "https" else _Bounded
    pool.conn_kw["register"] = register
    return pool, bool(named) and parts.scheme == "http"


def _proxy(named: str, connections: int) -> urllib3.ProxyManager:
    """The proxy of `http_proxy` or `https_proxy`, with its user name and password if given."""
    address = urlsplit(named if "://" in named else f"http://{named}")
    user = f"{address.username}:{address.password or ''}" if address.username else None
    headers = urllib3.make_headers(proxy_basic_auth=user) if user else None
    host = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()
    return urllib3.ProxyManager(host, maxsize=connections, proxy_headers=headers)


def _allow_files(connections: int) -> None:
    """Raise this process's limit of open files for so many connections; raises ConfigError if that is not allowed."""
    try:
        import resource
    except ImportError:  # on Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ConfigError(
            f"`max_in_flight` {connections} needs that many open files, but this process is limited to {hard}. Set "
            f"`max_in_flight` to {max(1, hard - OTHER_FILES)} or less, or raise the limit (`ulimit -Hn`)."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _key(variable: str | None) -> str | None:
    """The key in an environment variable; raises ConfigError if it is not set."""
    if variable is None:
        return None
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):  # not shown: it may be the key itself
        raise ConfigError(
            "`api_key_env` takes the name of an environment variable, such as OPENAI_API_KEY, not the key itself."
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"`api_key_env`: the environment variable {variable} is not set.")
    return key
