"""Trainers through a running service: its rewards, and what happens when it is away or another one."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from serve.conftest import CLOSE, begin

from rlt.integrations.service import RewardService, ServiceError
from rlt.integrations.trl import ServiceReward

ROWS = [{"question": f"What is {i} + 2?", "solution": f"It is {i + 2}.", "completion": "So." + CLOSE} for i in range(3)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ("question", "solution")}


def test_trl_gets_the_services_rewards_and_logs_their_parts(served):
    logged = {}
    reward = ServiceReward(served.url, eos_tokens=["<|im_end|>"])
    completions = [row["completion"] + "<|im_end|>" for row in ROWS]
    got = reward(["p"] * 3, completions, **COLUMNS, log_metric=logged.__setitem__, completion_ids=[[1]] * 3)
    _, answer = served.ask("/score", {"rows": ROWS})
    assert got == pytest.approx([row["reward"] for row in answer["rows"]], rel=1e-5)
    assert logged["rlt/failed"] == 0
    assert logged["rlt/r_kl"] == pytest.approx(sum(row["r_kl"] for row in answer["rows"]) / 3, rel=1e-4)


def test_a_completion_that_cannot_be_scored_gets_none_and_a_batch_of_them_raises(served):
    reward = ServiceReward(served.url)
    got = reward(["p"] * 3, ["So." + CLOSE, "long " * 3000, "So." + CLOSE], **COLUMNS)
    assert [value is None for value in got] == [False, True, False]
    with pytest.raises(ServiceError, match=r"none of 3 completions could be scored; the first: .*context"):
        reward(["p"] * 3, ["long " * 3000] * 3, **COLUMNS)


def test_a_refused_row_is_told_and_not_retried(served):
    with pytest.raises(ServiceError, match="422: row 0: column `solution` is empty"):
        RewardService(served.url, retry_for=60).score([{**ROWS[0], "solution": ""}])


def test_a_service_that_is_away_is_waited_for_and_then_told(served):
    started = time.monotonic()
    with pytest.raises(ServiceError, match=r"rlt serve --student"):
        RewardService("http://127.0.0.1:9", retry_for=1).score(ROWS)
    assert time.monotonic() - started < 10


class Odd(BaseHTTPRequestHandler):
    """Answers what `answers` says, one after another."""

    answers: list

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status, headers, body = self.answers.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


GOOD = json.dumps({"rows": [{"reward": 1.0, "error": None}]}).encode()
ME, OTHER = {"rlt-service": "a"}, {"rlt-service": "b"}


@pytest.fixture
def odd():
    server = HTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_restart_a_full_queue_and_an_error_are_survived(odd):
    Odd.answers = [(503, {}, b"{}"), (429, {"Retry-After": "1"}, b"{}"), (500, {}, b"no"), (200, ME, GOOD)]
    assert RewardService(odd).score(ROWS[:1]) == [{"reward": 1.0, "error": None}]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([(200, ME, GOOD), (200, OTHER, GOOD)], "other students, another format or other options"),
        ([(200, {}, GOOD)], "not a reward service"),
        ([(200, ME, b"<html>")], "not JSON"),
        ([(200, ME, b"[]")], "not a JSON object"),
        ([(200, ME, b'{"rows": []}')], "does not have 1 rows"),
        ([(401, ME, b'{"detail": "missing or invalid bearer token"}')], "401: missing or invalid bearer token"),
    ],
)
def test_what_is_no_reward_raises(odd, answers, words):
    Odd.answers = list(answers)
    service = RewardService(odd, retry_for=0)
    for _ in answers[:-1]:
        service.score(ROWS[:1])
    with pytest.raises(ServiceError, match=words):
        service.score(ROWS[:1])


def test_another_student_at_the_same_address_is_noticed(folder, served):
    one, other = (begin(folder, "--student", str(folder / name)) for name in ("student", "other"))
    service = RewardService(one.url)
    service.score(ROWS)
    service.url = other.url
    with pytest.raises(ServiceError, match="other students"):
        service.score(ROWS)
    for running in (one, other):
        running.process.terminate()
        running.process.wait(30)


def test_a_service_that_restarts_under_load_loses_no_reward_and_one_with_another_student_is_told(folder):
    def start(student, port=0):
        return begin(folder, "--student", str(folder / student), port=port)

    def asked():
        row = {**ROWS[0], "question": "What? " * 50}
        return asyncio.run(_gathered(*(service.reward(row) for _ in range(30))))

    running = start("student")
    port = int(running.url.rpartition(":")[2])
    service = RewardService(running.url, retry_for=120)
    ((expected, parts), *_) = asked()
    assert expected == pytest.approx(parts["r_ss"] + parts["format_penalty"], rel=1e-5)
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(lambda: [asked() for _ in range(4)])
        running.process.kill()
        running.process.wait(30)
        running = start("student", port)
        rewards = [reward for batch in under_way.result(120) for reward, _ in batch]
    assert rewards == pytest.approx([expected] * 120, rel=1e-5)
    running.process.terminate()
    running.process.wait(30)
    running = start("other", port)
    with pytest.raises(ServiceError, match="other students, another format or other options"):
        asked()
    running.process.terminate()
    running.process.wait(30)


async def _gathered(*waiting):
    return await asyncio.gather(*waiting)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("RLT_URL", "", "RLT_URL is not set"), ("RLT_TIMEOUT", "soon", "RLT_TIMEOUT: 'soon' is not a number")],
)
def test_an_environment_without_an_address_or_with_a_wrong_number_is_told(monkeypatch, name, value, words):
    monkeypatch.setenv("RLT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    RewardService.from_environment.__func__.cache_clear()
    with pytest.raises(ServiceError, match=words):
        RewardService.from_environment()
