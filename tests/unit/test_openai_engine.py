"""The `openai` engine without a server: which names mean one model, how answers are read, how long is waited."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from byte_models import byte_tokenizer, save, tiny_model
from real_tokenizers import real_tokenizer

from rlt.config import EngineOptions
from rlt.engines import openai
from rlt.engines.base import Request, Sampling
from rlt.engines.openai import OpenAIEngine, same_model
from rlt.errors import ServerError
from rlt.text.tokens import encode


@pytest.mark.parametrize(
    ("asked", "name", "same"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct", True),
        ("runs/x/train", "/data/runs/x/train", True),
        ("/data/runs/x/train", "runs/x/train/", True),
        ("runs/x/train", "runs/x/warmup", False),
        ("/data/runs/x/train", "/other/runs/x/train", False),
        ("runs/x/train", "runs/y/train", False),
        (".", "/data/runs/x/train", False),
    ],
)
def test_when_a_server_serves_the_model_that_was_asked_for(asked: str, name: str, same: bool) -> None:
    assert same_model(asked, name) is same


def test_one_folder_by_two_paths_is_one_model(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "teacher")
    assert same_model(str(tmp_path / "link"), str(tmp_path / "teacher"))


class FakeClient:
    """Stands in for `rlt.engines.client.Client`: vLLM that answers each request with `choice`."""

    url = "http://host/v1"

    def __init__(self, model: str, choice: dict[str, Any]) -> None:
        self.card = {"id": "tiny", "root": model, "owned_by": "vllm", "max_model_len": 4096}
        self.choice, self.bodies, self.limits = choice, list[dict[str, Any]](), list[float]()

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        if path == "models":
            return {"data": [self.card]}
        assert body is not None
        return {"tokens": byte_tokenizer().encode(body["prompt"], add_special_tokens=False)}

    def submit(self, method: str, path: str, body: dict[str, Any], *, timeout: float) -> Future[dict[str, Any]]:
        self.bodies.append(body)
        self.limits.append(timeout)
        future: Future[dict[str, Any]] = Future()
        future.set_result({"choices": [self.choice]})
        return future

    def text(self, address: str) -> str:
        return ""

    def clean(self, text: str, limit: int = 300) -> str:
        return text[:limit]

    def close(self) -> None:
        pass


GOOD = {
    "text": "ab", "finish_reason": "stop", "token_ids": [65, 66], "logprobs": {"token_logprobs": [-0.5, -1]},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = byte_tokenizer()
    return save(tmp_path_factory.mktemp("model"), tiny_model(tokenizer, 0), tokenizer)


def engine_of(model: str, monkeypatch: pytest.MonkeyPatch, choice: dict[str, Any], **options: Any) -> OpenAIEngine:
    monkeypatch.setattr(openai, "Client", lambda *_, **__: FakeClient(model, choice))
    return OpenAIEngine(EngineOptions(engine="openai", url=FakeClient.url, **options), model)


ONE = [Request("a", "What?", 5)]


def test_the_time_limit_grows_with_the_tokens_that_may_be_written(model, monkeypatch):
    engine = engine_of(model, monkeypatch, GOOD, timeout=600)
    list(engine.generate(ONE, Sampling(1024)))
    assert engine.client.limits == [600 + 1024 / 4]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_ids": None}, "`token_ids` is missing or null"),
        ({"token_ids": [65, None]}, "`token_ids` are not all token ids"),
        ({"token_ids": [65, -1]}, "`token_ids` are not all token ids"),
        ({"token_ids": [65]}, "1 token ids and 2 log-probs"),
        ({"logprobs": None}, "`logprobs` is missing or null"),
        ({"logprobs": {"token_logprobs": None}}, "`token_logprobs` is missing or null"),
        ({"logprobs": {"token_logprobs": [-0.5, None]}}, "`token_logprobs` are not all finite numbers"),
        ({"logprobs": {"token_logprobs": [-0.5, float("nan")]}}, "`token_logprobs` are not all finite numbers"),
    ],
)
def test_token_ids_and_log_probs_are_checked_where_they_are_read(model, monkeypatch, change, said):
    engine = engine_of(model, monkeypatch, {**GOOD, **change})
    with pytest.raises(ServerError, match="the answer is not a completion") as error:
        list(engine.generate(ONE, Sampling(8)))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("send_seeds", "temperature", "sent", "said"), [(None, 1.0, 5, 5), (False, 1.0, None, None), (True, 0.0, 5, None)]
)
def test_a_seed_is_claimed_only_where_it_was_used(model, monkeypatch, capsys, send_seeds, temperature, sent, said):
    engine = engine_of(model, monkeypatch, GOOD, send_seeds=send_seeds)
    (completion,) = engine.generate(ONE, Sampling(8, temperature=temperature))
    assert engine.client.bodies[0].get("seed") == sent  # type: ignore[attr-defined]
    assert completion.seed == said
    assert "on a CPU" not in capsys.readouterr().err  # nobody asked whether it is


def test_a_leading_space_of_sentencepiece_stays_in_what_a_server_wrote(tmp_path, monkeypatch):
    tokenizer = real_tokenizer("mistral")
    tokenizer.save_pretrained(tmp_path)
    ids = encode(tokenizer, "Why? So we add.")[len(encode(tokenizer, "Why?")) :]
    choice = {"text": "So we add.", "finish_reason": "length", "token_ids": ids}
    choice["logprobs"] = {"token_logprobs": [-0.5] * len(ids)}
    monkeypatch.setattr(openai, "check_tokenizer", lambda *_: None)
    engine = engine_of(str(tmp_path), monkeypatch, choice)
    (completion,) = engine.generate([Request("a", "Why?", 5)], Sampling(8))
    assert completion.text == " So we add."
