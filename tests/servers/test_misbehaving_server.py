"""What the `openai` engine and `rlt collect` do with servers that misbehave: a real HTTP server on loopback."""

from __future__ import annotations

import gzip
import json
import logging
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from byte_models import byte_tokenizer, save, tiny_model

from rlt.config import CollectConfig
from rlt.data.rows import read_rows
from rlt.engines.client import Client
from rlt.errors import ConfigError, ServerError
from rlt.stages import collect

KEY = "sk-very-secret"
CLOSED = "so.\n\n<|end_of_explanation|>"


class Handler(BaseHTTPRequestHandler):
    """Answers as a well-behaved text server does, unless `server.misbehave(handler, number)` answered already."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        self.answer(200, {"data": [{"id": "tiny", "owned_by": "someone", **server.model}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server: Any = self.server
        with server.lock:
            server.posts += 1
            number = server.posts
            server.flying += 1
            server.most = max(server.most, server.flying)
        handled = server.misbehave(self, number)
        with server.lock:
            server.flying -= 1  # before the answer: the next request may come with it
        if not handled:
            self.answer(200, completion(body, server.tokenizer))

    def answer(self, status: int, body: Any, **headers: str) -> bool:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        return True

    def log_message(self, *_: object) -> None:
        pass


def completion(body: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    prompt = len(tokenizer.encode(body["prompt"], add_special_tokens=False))
    choice = {"text": CLOSED + "<|im_end|>", "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": prompt + 1, "completion_tokens": 5}}


class Loopback(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, tokenizer: Any, misbehave: Callable[[Handler, int], bool | None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokenizer, self.misbehave, self.model = tokenizer, misbehave, {}
        self.lock, self.posts, self.flying, self.most = threading.Lock(), 0, 0, 0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = byte_tokenizer()
    return save(tmp_path_factory.mktemp("model"), tiny_model(tokenizer, 0), tokenizer)


@pytest.fixture
def loopback(model: str) -> Iterator[Callable[..., Loopback]]:
    """Makes servers that end with the test."""
    servers: list[Loopback] = []

    def make(misbehave: Callable[[Handler, int], bool | None] = lambda handler, number: False) -> Loopback:
        servers.append(Loopback(byte_tokenizer(), misbehave))
        return servers[-1]

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlt.engines.client.FIRST_WAIT", 0.01)
    monkeypatch.setattr("rlt.engines.client.LONGEST_WAIT", 0.1)


def config(folder: Path, model: str, url: str, **options: Any) -> CollectConfig:
    data = folder / "problems.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i}+1?", "solution": str(i + 1)}) + "\n" for i in range(20)))
    return CollectConfig(
        output=folder / "out", model=model, data=str(data), engine="openai", url=url,
        **{"max_tokens": 8, "max_in_flight": 4, **options},
    )  # fmt: skip


def explanations(folder: Path) -> list[str]:
    return [row["problem"] for _, row in read_rows(folder / "out")]


ALL = [str(i) for i in range(20)]


# -- survived --------------------------------------------------------------------------------------------


def test_a_text_server_is_used_and_its_rows_say_that_they_are_text(loopback, model, tmp_path, capfd):
    collect.run(config(tmp_path, model, loopback().url))
    (row, *_) = [row for _, row in read_rows(tmp_path / "out")]
    assert row["explanation"] == "so."
    assert row["completion"] == CLOSED
    assert row["closed"]
    assert row["text_only"]
    assert row["logprob_sum"] is None
    assert "returns text without token ids" in capfd.readouterr().err


def test_it_is_never_asked_for_more_at_once_than_allowed(loopback, model, tmp_path):
    server = loopback(lambda handler, number: time.sleep(0.02))
    collect.run(config(tmp_path, model, server.url, max_in_flight=3))
    assert server.most == 3


def test_errors_for_a_while_are_survived(loopback, model, tmp_path):
    server = loopback(lambda handler, number: number <= 60 and handler.answer(500 + number % 4, "down"))
    collect.run(config(tmp_path, model, server.url, retry_for=30))
    assert explanations(tmp_path) == ALL
    assert server.posts == 80


def test_connections_broken_half_way_are_survived(loopback, model, tmp_path):
    def misbehave(handler: Handler, number: int) -> bool:
        if number % 3 != 1:
            return False
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')
        handler.close_connection = True
        return True

    collect.run(config(tmp_path, model, loopback(misbehave).url))
    assert explanations(tmp_path) == ALL


def test_too_many_requests_waits_as_long_as_the_server_asks(loopback, model, tmp_path):
    server = loopback(lambda handler, number: number == 1 and handler.answer(429, {}, retry_after="1"))
    started = time.monotonic()
    collect.run(config(tmp_path, model, server.url))
    assert time.monotonic() - started >= 1.0
    assert explanations(tmp_path) == ALL


def drip(handler: Handler, what: bytes) -> None:
    """A byte every now and then, so that no single read times out."""
    for byte in what:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.1)
    handler.close_connection = True


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_request_that_takes_too_long_is_sent_again(loopback, model, tmp_path, part):
    def misbehave(handler: Handler, number: int) -> bool:
        if number != 2:
            return False
        if part == "body":
            handler.send_response(200)
            handler.send_header("content-length", "1000")
            handler.end_headers()
        drip(handler, b"HTTP/1.1 200 OK\r\nx-very-slow-indeed: 1" if part == "headers" else b" " * 40)
        return True

    started = time.monotonic()
    server = loopback(misbehave)
    collect.run(config(tmp_path, model, server.url, timeout=0.3, max_tokens=1))
    assert explanations(tmp_path) == ALL
    assert server.posts == 21
    assert time.monotonic() - started < 3  # what drips takes four seconds


# -- clear errors ----------------------------------------------------------------------------------------


def fails(folder: Path, model: str, url: str, **options: Any) -> str:
    with pytest.raises(ServerError) as error:
        collect.run(config(folder, model, url, retry_for=0.1, **options))
    message = str(error.value)
    assert "\n" not in message
    assert url in message
    return message


def test_a_server_that_is_not_there(model, tmp_path):
    assert "Connection refused (" in fails(tmp_path, model, "http://127.0.0.1:9/v1")
    assert not (tmp_path / "out" / "stage.json").exists()  # the corrected command may use the folder


def test_a_server_that_never_answered_is_not_waited_for_as_one_that_restarts(model, tmp_path, monkeypatch):
    monkeypatch.setattr("rlt.engines.client.ABSENT_AFTER", 0.2)
    with pytest.raises(ServerError, match=r"tries in \d s"):
        collect.run(config(tmp_path, model, "http://127.0.0.1:9/v1", retry_for=600))


def test_a_server_that_stops_half_way_loses_nothing(loopback, model, tmp_path):
    server = loopback(lambda handler, number: number > 11 and handler.answer(503, "gone"))
    assert "503" in fails(tmp_path, model, server.url)
    written = [json.loads(line) for line in (tmp_path / "out/state/journal-00000.jsonl").read_text().splitlines()]
    assert len(written) == 11
    again = loopback()
    collect.run(config(tmp_path, model, again.url))
    assert again.posts == 9
    assert explanations(tmp_path) == ALL


def test_a_server_that_answers_garbage(loopback, model, tmp_path):
    server = loopback(lambda handler, number: number > 5 and handler.answer(200, "<html>\nWelcome"))
    assert "not a JSON object" in fails(tmp_path, model, server.url)


GOOD = {"text": CLOSED, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"choices": []}, "`choices` contains no object"),
        ({"choices": None}, "`choices` is missing or null"),
        ({"choices": ["text"]}, "`choices` contains no object"),
        ({"choices": [{**GOOD, "text": None}]}, "`text` is missing or null"),
        ({"choices": [{**GOOD, "text": ["so"]}]}, "`text` is a list"),
        ({"choices": [{**GOOD, "finish_reason": None}]}, "`finish_reason` is missing or null"),
        ({"choices": [GOOD], "usage": [1]}, "`usage` is a list"),
        ({"choices": [GOOD], "usage": {"prompt_tokens": "7"}}, "`prompt_tokens` is a str"),
        ({"choices": [{**GOOD, "finish_reason": f"content {KEY}"}]}, "ended a completion with 'content ***'"),
    ],
)
def test_a_server_that_answers_other_json(loopback, model, tmp_path, monkeypatch, answer, said):
    monkeypatch.setenv("MY_KEY", KEY)
    server = loopback(lambda handler, number: handler.answer(200, answer))
    assert said in fails(tmp_path, model, server.url, api_key_env="MY_KEY")


def test_a_count_that_is_null_is_no_count(loopback, model, tmp_path):
    usage = {"prompt_tokens": None, "completion_tokens": None}
    server = loopback(lambda handler, number: handler.answer(200, {"choices": [GOOD], "usage": usage}))
    collect.run(config(tmp_path, model, server.url))
    assert explanations(tmp_path) == ALL


@pytest.mark.parametrize("model_of_server", [{"id": 7}, {"id": None}, {"root": 5}, {"max_model_len": "512"}])
def test_a_server_whose_list_of_models_is_none(loopback, model, tmp_path, model_of_server):
    server = loopback()
    server.model = model_of_server
    assert "lists no models" in fails(tmp_path, model, server.url)


def test_a_server_of_an_earlier_step_that_still_holds_the_port(loopback, model, tmp_path):
    server = loopback()
    server.model = {"root": "runs/x/warmup"}
    said = fails(tmp_path, model, server.url)
    assert f"serves runs/x/warmup, not {model}" in said
    assert "`served_model: tiny`" in said
    collect.run(config(tmp_path, model, server.url, served_model="tiny"))
    (row, *_) = [row for _, row in read_rows(tmp_path / "out")]
    assert row["engine"] == "openai (text only): tiny"


def test_a_server_that_says_it_has_the_teacher_is_used(loopback, model, tmp_path):
    server = loopback()
    server.model = {"root": model}
    assert collect.run(config(tmp_path, model, server.url)).metrics["engines"] == ["openai (text only): tiny"]


def test_a_server_that_counts_other_tokens_has_another_model(loopback, model, tmp_path):
    server = loopback()
    server.tokenizer = byte_tokenizer(vocabulary=290)
    assert "another tokenizer" in fails(tmp_path, model, server.url)


def test_a_server_that_asks_to_wait_for_hours(loopback, model, tmp_path):
    server = loopback(lambda handler, number: handler.answer(429, {}, retry_after="7200"))
    assert "asks to wait 7200 s" in fails(tmp_path, model, server.url)


# -- hostile ---------------------------------------------------------------------------------------------


def raw(handler: Handler, *parts: bytes) -> bool:
    """Bytes as they are, instead of an answer; the connection ends after them."""
    handler.close_connection = True
    for part in parts:
        handler.wfile.write(part)
    return True


def endless(handler: Handler, begin: bytes, piece: bytes) -> bool:
    """Bytes until the other side has enough; `server.sent` counts them."""
    server: Any = handler.server
    server.sent = 0
    raw(handler, begin)
    while True:
        handler.wfile.write(piece)  # raises when the client closes, which ends the thread
        server.sent += len(piece)


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def refused(server: Loopback, **options: Any) -> str:
    """The one printable line in which a client refuses what the server answers to a POST, at most once more asked."""
    client = Client(server.url, retry_for=0.05, **options)
    try:
        with pytest.raises(ServerError) as error:
            client.request("POST", "completions", {"model": "tiny"})
    finally:
        client.close()
    message = str(error.value)
    assert message.isprintable()  # neither line breaks nor escape codes
    assert message.startswith(server.url)
    assert len(message) < 600
    return message


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (OK + b"\r\n", b"[" * 65536),  # ends with the connection, that is never
        (CHUNKED, b"10000\r\n" + b"[" * 65536 + b"\r\n"),
        (OK + b"Content-Length: 1000000000000\r\n\r\n", b"[" * 65536),
        (CHUNKED + b"e8d4a51000\r\n", b"[" * 65536),  # one chunk of 10^12 bytes
        (CHUNKED + b"f" * 40 + b"\r\n", b"[" * 65536),  # and one of more bytes than there are
    ],
)
def test_an_endless_answer_is_read_up_to_a_size(loopback, monkeypatch, begin, piece):
    monkeypatch.setattr("rlt.engines.client.LARGEST_ANSWER", 2**20)
    server = loopback(lambda handler, number: endless(handler, begin, piece))
    tracemalloc.start()
    try:
        assert "its answer is larger than 1 MB" in refused(server)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20  # the answer as pieces, then as one, and what the server of this process holds
    assert server.sent < 16 * 2**20  # the rest waits in the buffers of two sockets
    assert server.posts == 1  # to ask again would bring the same


@pytest.mark.parametrize(
    ("begin", "piece"),
    [(OK, b"x-filler: 1\r\n" * 100), (OK, b"x" * 65536), (b"", b"H" * 65536), (CHUNKED, b"0" * 65536)],
)
def test_endless_headers_status_lines_and_chunk_sizes_are_an_error_of_one_line(loopback, monkeypatch, begin, piece):
    monkeypatch.setattr("rlt.engines.client.LARGEST_ANSWER", 2**20)
    server = loopback(lambda handler, number: endless(handler, begin, piece))
    refused(server)
    assert server.sent < 16 * 2**20


def test_a_small_answer_that_would_decompress_to_gigabytes_is_not_decompressed(loopback, monkeypatch):
    monkeypatch.setattr("rlt.engines.client.LARGEST_ANSWER", 2**20)
    bomb = gzip.compress(b" " * 2**24)
    head = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    assert "not a JSON object" in refused(loopback(lambda handler, number: raw(handler, head, bomb)))


@pytest.mark.parametrize("status", [200, 400, 503])
@pytest.mark.parametrize("opening", ["[", '{"error":'])
def test_json_nested_100000_deep_is_not_json(loopback, status, opening):
    server = loopback(lambda handler, number: handler.answer(status, opening * 100_000))
    assert ("not a JSON object" if status == 200 else f"answers {status}") in refused(server)


NASTY = "\x1b[2J\x1b[1;31mowned\x1b]0;title\x07\r\nrlt: error: \u202egpj.txt\x9b"


@pytest.mark.parametrize("status", [200, 400, 503])
def test_escape_codes_are_shown_and_not_obeyed(loopback, status, capfd):
    body = NASTY if status == 200 else {"error": {"message": NASTY}}
    server = loopback(lambda handler, number: handler.answer(status, body))
    assert r"\x1b[2J\x1b[1;31mowned" in refused(server)
    assert "\x1b" not in "".join(capfd.readouterr())  # nor where a retry is announced


def test_escape_codes_in_a_finish_reason_or_a_models_name(loopback, model, tmp_path):
    server = loopback(lambda handler, number: handler.answer(200, {"choices": [{**GOOD, "finish_reason": NASTY}]}))
    assert fails(tmp_path, model, server.url).isprintable()
    server.model = {"id": NASTY}
    assert fails(tmp_path, model, server.url, served_model="tiny").isprintable()


def test_headers_that_are_none_print_nothing(loopback, capfd):
    head = OK + b"\x1b[31m no header\r\n: none\r\nContent-Length: 2\r\n\r\n[]"
    refused(loopback(lambda handler, number: raw(handler, head)))
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "answer",
    [b"", b"\0\xff\x1b[31m" * 50, b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 99999 X\r\n\r\n"],
)
def test_what_is_not_http_is_an_error_of_one_line(loopback, answer):
    refused(loopback(lambda handler, number: raw(handler, answer)))


def test_half_a_character_is_not_a_text(loopback, model, tmp_path):
    answer = json.dumps({"choices": [{**GOOD, "text": "so \ud83d"}]})
    server = loopback(lambda handler, number: handler.answer(200, answer))
    assert "`text` contains a lone surrogate" in fails(tmp_path, model, server.url)


@pytest.mark.parametrize("asked", ["soon", "-1", "nan", "9" * 5000, "Sun, 99 Foo 2026", ""])
def test_a_wait_that_cannot_be_read_is_the_usual_one(loopback, asked):
    server = loopback(lambda handler, number: handler.answer(429, {}, retry_after=asked))
    assert "answers 429" in refused(server)


def test_closing_wakes_who_waits_for_an_answer(loopback):
    reached = threading.Event()
    server = loopback(lambda handler, number: reached.set() or time.sleep(5))
    client = Client(server.url)
    future = client.submit("POST", "completions", {"model": "tiny"})
    assert reached.wait(5)
    started = time.monotonic()
    client.close()
    assert isinstance(future.exception(), ServerError)
    assert time.monotonic() - started < 3


# -- proxies ---------------------------------------------------------------------------------------------


def test_the_proxy_of_the_environment_is_used_with_its_password(loopback, monkeypatch):
    seen: list[tuple[str, str]] = []

    def proxy(handler: Handler, number: int) -> bool:
        seen.append((handler.path, handler.headers["proxy-authorization"]))
        return handler.answer(200, {"through": "proxy"})

    address = loopback(proxy).url.removesuffix("/v1").replace("//", "//me:secret@")
    monkeypatch.setenv("http_proxy", address)
    monkeypatch.delenv("no_proxy", raising=False)
    client = Client("http://model.invalid:8000/v1")
    assert client.request("POST", "completions", {}) == {"through": "proxy"}
    client.close()
    assert seen == [("http://model.invalid:8000/v1/completions", "Basic bWU6c2VjcmV0")]


def test_no_proxy_is_honoured(loopback, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    client = Client(loopback().url, retry_for=0)
    assert client.request("GET", "models")["data"]
    client.close()


def test_a_proxy_of_another_kind_is_refused(monkeypatch):
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1080")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ConfigError, match="socks5"):
        Client("http://model.invalid/v1")


# -- the key ---------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_is_in_no_file_log_or_error(loopback, model, tmp_path, monkeypatch, caplog, capfd):
    seen: list[str] = []

    def misbehave(handler: Handler, number: int) -> bool:
        seen.append(handler.headers["authorization"])
        return number > 10 and handler.answer(401, {"error": {"message": f"bad key {KEY}"}})

    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    message = fails(tmp_path, model, loopback(misbehave).url, api_key_env="MY_KEY")
    assert "rejects the key in MY_KEY" in message
    assert set(seen) == {f"Bearer {KEY}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in message + caplog.text + "".join(capfd.readouterr())


def test_a_missing_key_is_named(model, tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        collect.run(config(tmp_path, model, "http://127.0.0.1:9/v1", api_key_env="MY_KEY"))


def test_a_server_that_wants_a_key_says_which_option(loopback, model, tmp_path):
    server = loopback(lambda handler, number: handler.answer(401, {}))
    assert "api_key_env" in fails(tmp_path, model, server.url)


def test_an_address_with_a_key_in_it_is_refused_without_printing_it():
    with pytest.raises(ConfigError) as error:
        Client(f"http://me:{KEY}@127.0.0.1/v1")
    assert KEY not in str(error.value)
