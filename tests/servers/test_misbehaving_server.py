"""What the `openai` engine and `rlt collect` do with servers that misbehave: a real HTTP server on loopback."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from byte_models import byte_tokenizer, save, tiny_model

from rlt.config import CollectConfig
from rlt.data.rows import read_rows
from rlt.engines.client import Server
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
    assert "gives text only" in capfd.readouterr().err


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
    assert "no JSON object" in fails(tmp_path, model, server.url)


GOOD = {"text": CLOSED, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"choices": []}, "`choices` has no object in it"),
        ({"choices": None}, "`choices` is missing or null"),
        ({"choices": ["text"]}, "`choices` has no object in it"),
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
    assert "another model" in fails(tmp_path, model, server.url)


def test_a_server_that_asks_to_wait_for_hours(loopback, model, tmp_path):
    server = loopback(lambda handler, number: handler.answer(429, {}, retry_after="7200"))
    assert "asks to wait 7200 s" in fails(tmp_path, model, server.url)


# -- the key ---------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_is_in_no_file_log_or_error(loopback, model, tmp_path, monkeypatch, caplog, capfd):
    seen: list[str] = []

    def misbehave(handler: Handler, number: int) -> bool:
        seen.append(handler.headers["authorization"])
        return number > 10 and handler.answer(401, {"error": {"message": f"bad key {KEY}"}})

    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    message = fails(tmp_path, model, loopback(misbehave).url, api_key_env="MY_KEY")
    assert "refuses the key in MY_KEY" in message
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
        Server(f"http://me:{KEY}@127.0.0.1/v1")
    assert KEY not in str(error.value)
