"""The reward over HTTP: the numbers of `rlt score`, the contracts of other engines, and what bad input gets."""

from __future__ import annotations

import json
import math
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from plain_reward import continued, encoded, logprobs
from serve.conftest import CLOSE, FMT, begin

from rlt.cli import main
from rlt.config import RewardOptions
from rlt.data.rows import read_rows, write_rows
from rlt.errors import ConfigError
from rlt.models.loading import load_model, load_tokenizer
from rlt.reward.trl import TeacherReward, teacher_rows
from rlt.types import Problem

PROBLEMS = [Problem(str(i), f"What is {i} + 2?", f"It is {i + 2}.") for i in range(6)]
ROWS = [
    {"question": p.question, "solution": p.solution, "completion": "So, " * i + "we add." + CLOSE * (i % 2)}
    for i, p in enumerate(PROBLEMS)
]


def test_the_columns_and_numbers_are_those_of_rlt_score(served, folder, tmp_path):
    write_rows(tmp_path / "rows.jsonl", ROWS)
    main([
        "score", "--student", str(folder / "student"), "--teacher", str(folder / "teacher"), "--data",
        str(tmp_path / "rows.jsonl"), "--format", str(folder / "format.yaml"), "--output", str(tmp_path / "out.jsonl"),
    ])  # fmt: skip
    expected = [{k: v for k, v in row.items() if k != "id"} for _, row in read_rows(tmp_path / "out.jsonl")]
    status, answer = served.ask("/score", {"rows": ROWS})
    assert status == 200
    for got, row in zip(answer["rows"], expected, strict=True):
        assert list(got) == list(row)
        numbers = {name: value for name, value in row.items() if value is not None}
        assert {name: got[name] for name in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-6)
        assert got["error"] is None


def test_the_policys_tokens_and_log_probs_give_the_reward_of_training(served, folder):
    tokenizer, policy = load_tokenizer(str(folder / "teacher")), load_model(str(folder / "teacher"), device="cpu")
    student = str(folder / "student")
    reward = TeacherReward(student, tokenizer, FMT, RewardOptions(), placebos=0)
    prompts = [row["prompt"] for row in teacher_rows(PROBLEMS, FMT, tokenizer)]
    ids = [continued(tokenizer, p, row["completion"])[0] for p, row in zip(prompts, ROWS, strict=True)]
    before = [encoded(tokenizer, p)[0] for p in prompts]
    known = [logprobs(policy, b + i, 0.7, len(b)) for b, i in zip(before, ids, strict=True)]
    columns = {name: [row[name] for row in ROWS] for name in ("question", "solution")}
    expected = reward(prompts, [""] * 6, ids, **columns, policy_logprobs=[torch.tensor(k) for k in known])
    rows = [
        {"question": r["question"], "solution": r["solution"], "token_ids": i, "logprobs": k, "temperature": 0.7}
        for r, i, k in zip(ROWS, ids, known, strict=True)
    ]
    _, answer = served.ask("/score", {"rows": rows})
    assert [row["reward"] for row in answer["rows"]] == pytest.approx(expected, rel=1e-5)
    # And the service's own teacher computes the same r_kl from the text.
    _, of_text = served.ask("/score", {"rows": ROWS})
    assert [r["r_kl"] for r in answer["rows"]] == pytest.approx([r["r_kl"] for r in of_text["rows"]], abs=1e-4)


def test_rows_stream_back_as_they_are_done(served):
    import urllib.request

    body = json.dumps({"rows": ROWS}).encode()
    headers = {"Content-Type": "application/json", "Accept": "application/x-ndjson"}
    with urllib.request.urlopen(urllib.request.Request(served.url + "/score", body, headers), timeout=60) as answer:
        lines = [json.loads(line) for line in answer]
    assert sorted(line["row"] for line in lines) == list(range(6))
    assert all(math.isfinite(line["reward"]) for line in lines)


ROW = ROWS[1]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**ROW, "solution": ""}, "row 0: column `solution` is empty"),
        ({**ROW, "question": 5}, "row 0: `question`: input should be a valid string"),
        ({**ROW, "color": "red"}, "row 0: `color`: extra inputs are not permitted"),
        ({"question": "a"}, "row 0: `solution`: field required"),
        ({**ROW, "completion": None}, "row 0: has neither `explanation` nor `completion`"),
        ({**ROW, "completion": "a" * 400_001}, "the limit is 400000"),
        ({**ROW, "token_ids": [1, 2], "logprobs": [-1.0], "temperature": 0.7}, "1 values for 2 `token_ids`"),
        ({**ROW, "token_ids": [10**6]}, "1000000 is not a token of"),
        ({**ROW, "token_ids": [1], "logprobs": [-1.0]}, "`temperature` is missing"),
        ({**ROW, "token_ids": [1], "logprobs": [-1.0], "temperature": 1.0}, "this service scores at 0.7"),
        ({**ROW, "logprobs": [-1.0]}, "`logprobs` without `token_ids`"),
        ("text", "row 0: `the row`"),
    ],
)
def test_a_bad_row_is_refused_with_its_number_and_field(served, row, words):
    status, answer = served.ask("/score", {"rows": [row]})
    assert status == 422
    assert words in answer["detail"]


def test_one_bad_row_fails_no_other(served):
    _, alone = served.ask("/score", {"rows": [ROW]})
    status, answer = served.ask(
        "/score", {"rows": [{**ROW, "solution": ""}, ROW, {**ROW, "completion": "long " * 3000}]}
    )
    assert status == 200
    bad, good, long = answer["rows"]
    assert good["reward"] == pytest.approx(alone["rows"][0]["reward"], rel=1e-5)
    assert bad["reward"] is None
    assert "row 0: column `solution` is empty" in bad["error"]
    assert "but the context of" in long["error"]


@pytest.mark.parametrize(
    ("raw", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[1]", 422, "must be a JSON object"),
        (b'{"rows": {}}', 422, 'must be {"rows": [...]}'),
        (b'{"rows": []}', 422, "0 rows in one request"),
        (b'{"rows": [1], "more": 1}', 422, 'must be {"rows": [...]}'),
        (b" " * 4_000_000, 413, "bytes; send fewer rows"),
    ],
)
def test_a_bad_request_gets_one_line(served, raw, status, words):
    got, answer = served.ask("/score", raw=raw)
    assert got == status
    assert words in answer["detail"]


def test_openrlhfs_contract(served):
    labels = [json.dumps({"question": row["question"], "solution": row["solution"]}) for row in ROWS]
    body = {"query": ["P" + row["completion"] for row in ROWS], "prompts": ["P"] * 6, "labels": labels}
    status, answer = served.ask("/openrlhf", body)
    _, expected = served.ask("/score", {"rows": ROWS})
    assert status == 200
    rewards = [row["reward"] for row in expected["rows"]]
    assert answer["rewards"] == answer["scores"] == pytest.approx(rewards, rel=1e-5)
    assert answer["extra_logs"]["r_kl"] == pytest.approx([row["r_kl"] for row in expected["rows"]], rel=1e-4, abs=1e-6)
    assert served.ask("/openrlhf", {**body, "labels": ["5"] * 6})[0] == 422
    assert "does not start with its `prompts`" in served.ask("/openrlhf", {**body, "prompts": ["Q"] * 6})[1]["detail"]


def test_slimes_contract(served):
    label = {"question": ROW["question"], "solution": ROW["solution"]}
    status, answer = served.ask("/slime", {"prompt": "P", "response": ROW["completion"], "label": label})
    _, expected = served.ask("/score", {"rows": [ROW]})
    assert (status, answer["reward"]) == (200, pytest.approx(expected["rows"][0]["reward"], rel=1e-5))


def test_nemo_gyms_contract(served, folder):
    tokenizer = load_tokenizer(str(folder / "teacher"))
    ids = tokenizer.encode(ROW["completion"], add_special_tokens=False)
    said = {"content": [{"type": "output_text", "text": ROW["completion"]}]}
    sampled = {"generation_token_ids": ids, "generation_log_probs": [-1.0] * len(ids), "prompt_token_ids": [1]}
    task = {"question": ROW["question"], "solution": ROW["solution"], "responses_create_params": {"temperature": 0.7}}
    assert served.ask("/seed_session", {}) == (200, {})
    status, plain = served.ask("/verify", {**task, "response": {"output": [said]}})
    _, expected = served.ask("/score", {"rows": [ROW]})
    assert (status, plain["reward"]) == (200, pytest.approx(expected["rows"][0]["reward"], rel=1e-5))
    status, answer = served.ask("/verify", {**task, "response": {"output": [{**said, **sampled}]}})
    row = {"question": ROW["question"], "solution": ROW["solution"], "token_ids": ids, "temperature": 0.7}
    _, expected = served.ask("/score", {"rows": [{**row, "logprobs": [-1.0] * len(ids)}]})
    assert (status, answer["reward"]) == (200, pytest.approx(expected["rows"][0]["reward"], rel=1e-5))
    assert answer["question"] == ROW["question"]


def test_it_says_what_it_serves_and_counts_what_it_does(served):
    status, about = served.ask("/info")
    assert status == 200
    assert about["options"]["score_temperature"] == 0.7
    assert about["students"][0]["weights"] != about["teacher"]["weights"]
    served.ask("/score", {"rows": [ROW]})
    text = served.ask("/metrics")[1]
    counted = dict(line.split() for line in text.splitlines() if line.startswith(("rlt_rows_total", "rlt_queue_rows")))
    assert float(counted["rlt_rows_total"]) >= 1
    assert float(counted["rlt_queue_rows"]) == 0


def test_many_clients_of_one_row_each_get_their_own_rewards(served):
    rows = [{**ROWS[i % 6], "question": f"What is {i}?"} for i in range(96)]
    with ThreadPoolExecutor(32) as pool:
        alone = list(pool.map(lambda row: served.ask("/score", {"rows": [row]})[1]["rows"][0]["reward"], rows))
    _, together = served.ask("/score", {"rows": rows})
    assert alone == pytest.approx([row["reward"] for row in together["rows"]], rel=1e-4, abs=1e-5)


def test_a_token_is_asked_for_a_full_queue_says_when_and_sigterm_finishes(folder):
    running = begin(
        folder, "--student", str(folder / "student"), "--token-env", "MY_TOKEN", "--max-queue", "4", "--max-wait-ms", "3000",
        "--failed-reward", "-9", environment={"MY_TOKEN": "s3cret"},
    )  # fmt: skip
    right = {"Authorization": "Bearer s3cret"}
    assert running.ask("/score", {"rows": [ROW]})[0] == 401
    assert running.ask("/info", headers={"Authorization": "Bearer wrong"})[0] == 401
    assert running.ask("/score", {"rows": ROWS}, headers=right)[0] == 429
    slime = {"prompt": "", "response": "long " * 3000, "label": {"question": "a", "solution": "b"}}
    assert running.ask("/slime", slime, headers=right)[1]["reward"] == -9
    answers = []
    asking = threading.Thread(target=lambda: answers.append(running.ask("/score", {"rows": [ROW]}, headers=right)))
    asking.start()
    time.sleep(1)  # the row waits for others to fill its batch
    running.process.send_signal(signal.SIGTERM)
    asking.join(30)
    assert answers[0][0] == 200
    assert answers[0][1]["rows"][0]["r_kl"] is None  # no teacher, no log-probs
    assert running.process.wait(30) == 0


def test_a_client_that_goes_away_frees_its_place(folder):
    running = begin(folder, "--student", str(folder / "student"), "--max-queue", "6", "--max-wait-ms", "4000")
    host, port = running.url.removeprefix("http://").split(":")
    body = json.dumps({"rows": ROWS}).encode()
    with socket.create_connection((host, int(port))) as gone:
        head = (
            f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        gone.sendall(head.encode() + body)
        time.sleep(0.5)
        assert running.ask("/score", {"rows": [ROW]})[0] == 429
    time.sleep(1.5)
    assert running.ask("/score", {"rows": [ROW]})[0] == 200
    running.process.terminate()
    running.process.wait(30)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--student", "./nowhere"], "not a model folder"),
        (
            ["--student", "{student}", "--token-env", "NOT_SET_ANYWHERE"],
            "the environment variable named by `token_env` is not set",
        ),
        (["--student", "{student}", "--port", "{taken}"], "cannot listen on"),
        (["--student", "{student}", "--prot", "1"], "prot"),
        ([], "name at least one"),
    ],
)
def test_what_is_wrong_ends_it_before_any_weights_are_loaded(folder, capsys, monkeypatch, flags, words):
    monkeypatch.setattr("rlt.models.loading.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"student": str(folder / "student"), "taken": taken.getsockname()[1]}
        status = main(["serve", "--format", str(folder / "format.yaml"), *(flag.format(**values) for flag in flags)])
    assert status == 2
    assert words in capsys.readouterr().err


def test_two_replicas_share_an_address_and_a_dead_one_is_started_again(folder):
    running = begin(folder, "--student", str(folder / "student"), "--replicas", "2")
    import subprocess

    children = subprocess.run(
        ["pgrep", "-P", str(running.process.pid), "-f", "spawn_main"], capture_output=True, text=True, check=False
    ).stdout.split()
    assert len(children) == 2
    subprocess.run(["kill", "-9", children[0]], check=True)
    line = running.process.stdout.readline()
    assert "restarting it" in line
    for _ in range(600):  # the other one may still be loading
        status, _ = running.ask("/score", {"rows": [ROW]})
        if status == 200:
            break
        assert status == 503
        time.sleep(0.1)
    assert status == 200
    running.process.terminate()
    running.process.wait(30)


def test_templates_print_the_date_that_the_student_was_trained_with(tmp_path, folder, monkeypatch):
    from byte_models import CHATML, byte_tokenizer, save, tiny_model

    from rlt.config import ServeConfig
    from rlt.serve.application import Metrics
    from rlt.serve.server import dated, load_service
    from rlt.text import clock

    monkeypatch.setenv(clock.VARIABLE, "")
    tokenizer = byte_tokenizer(tags=FMT.tags.all(), template="{{ strftime_now('%d %b %Y') }}\n" + CHATML)
    student = save(tmp_path / "student", tiny_model(tokenizer, 0), tokenizer)
    state = {
        "stage": "distill",
        "complete": True,
        "date": "2025-01-31",
        "config": {"format": str(folder / "format.yaml")},
    }
    (tmp_path / "student" / "stage.json").write_text(json.dumps(state))

    def about(**options):
        monkeypatch.setenv(clock.VARIABLE, "")
        service = load_service(dated(ServeConfig(student=[str(student)], **options)), Metrics())
        service.queue.close()
        return service

    trained, other = about(), about(date="2025-02-01")
    assert trained.info["date"] == "2025-01-31"
    assert other.info["date"] == "2025-02-01"
    assert trained.name != other.name
    with pytest.raises(ConfigError, match=r"`date` is 'today'; it must be written as"):
        dated(ServeConfig(student=[str(student)], date="today"))


def test_a_template_that_prints_no_date_gives_one_service_on_all_days(served):
    assert served.ask("/info")[1]["date"] is None
