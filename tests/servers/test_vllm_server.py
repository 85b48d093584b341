"""The `openai` engine and `rlt collect` against a real vLLM server on the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlt.config import CollectConfig, EngineOptions, ScoreConfig, SelectConfig
from rlt.data.rows import read_rows
from rlt.engines.base import Completion, Request, Sampling
from rlt.engines.build import build_engine
from rlt.errors import ServerError
from rlt.models.loading import load_tokenizer
from rlt.stages import collect, score, select
from rlt.text.formats import load_format, teacher_prompt
from rlt.types import Problem

pytestmark = pytest.mark.server


def requests(model: Path, count: int) -> list[Request]:
    fmt, tokenizer = load_format("stratos"), load_tokenizer(str(model))
    problems = [Problem(str(i), f"What is {i} + {i}?", f"It is {2 * i}.") for i in range(count)]
    return [Request(p.id, teacher_prompt(fmt, tokenizer, p), seed=i) for i, p in enumerate(problems)]


def generate(options: EngineOptions, model: Path, asked: list[Request], sampling: Sampling) -> dict[str, Completion]:
    engine = build_engine(options, str(model), dtype="float32")
    try:
        return {c.key: c for c in engine.generate(asked, sampling)}
    finally:
        engine.close()


def test_greedy_tokens_and_log_probs_are_those_of_the_transformers_engine(vllm_server):
    asked, sampling = requests(vllm_server.model, 6), Sampling(24, temperature=0)
    served = generate(EngineOptions(engine="openai", url=vllm_server.url), vllm_server.model, asked, sampling)
    local = generate(EngineOptions(), vllm_server.model, asked, sampling)
    for key, completion in local.items():
        assert served[key].token_ids == completion.token_ids
        assert served[key].text == completion.text
        assert served[key].prompt_tokens == completion.prompt_tokens
        assert served[key].logprob_sum == pytest.approx(completion.logprob_sum, abs=1e-3)


def test_log_prob_sums_are_the_models_own_at_any_temperature(vllm_server):
    from rlt.models.loading import load_model
    from rlt.models.logprobs import Row, token_logprobs

    asked = requests(vllm_server.model, 4)
    options = EngineOptions(engine="openai", url=vllm_server.url)
    served = generate(options, vllm_server.model, asked, Sampling(16, temperature=0.7))
    tokenizer, model = load_tokenizer(str(vllm_server.model)), load_model(str(vllm_server.model), "float32")
    for request in asked:
        prompt = tokenizer.encode(request.prompt, add_special_tokens=False)
        ids = [*prompt, *served[request.key].token_ids]
        (column,) = token_logprobs(model, [Row(ids, [range(len(prompt), len(ids))])])
        assert served[request.key].logprob_sum == pytest.approx(float(column.sum()), abs=1e-3)


def test_a_server_on_a_cpu_survives_more_prompts_than_it_can_prefill_at_once(vllm_server):
    # With seeds, vLLM 0.32 ends here: prompts of 64 requests do not fit in one step.
    options = EngineOptions(engine="openai", url=vllm_server.url)
    completions = generate(options, vllm_server.model, requests(vllm_server.model, 64), Sampling(4))
    assert len(completions) == 64


def test_a_stop_string_ends_a_completion_and_is_in_its_text(vllm_server):
    asked, options = requests(vllm_server.model, 1), EngineOptions(engine="openai", url=vllm_server.url)
    whole = generate(options, vllm_server.model, asked, Sampling(24, temperature=0))["0"].text
    stop = whole[4:6]
    stopped = generate(options, vllm_server.model, asked, Sampling(24, temperature=0, stop=(stop,)))["0"]
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole[: whole.index(stop) + 2]


def test_the_same_seed_gives_the_same_completion(vllm_server):
    asked = requests(vllm_server.model, 3)
    options = EngineOptions(engine="openai", url=vllm_server.url, send_seeds=True)
    first, again = (generate(options, vllm_server.model, asked, Sampling(16, temperature=1.0)) for _ in range(2))
    assert {key: c.token_ids for key, c in first.items()} == {key: c.token_ids for key, c in again.items()}


def test_another_models_tokenizer_is_refused(vllm_server, tmp_path):
    from byte_models import byte_tokenizer, save, tiny_model

    other = byte_tokenizer(vocabulary=300)
    folder = save(tmp_path, tiny_model(other, 0), other)
    options = EngineOptions(engine="openai", url=vllm_server.url, served_model="tiny")
    with pytest.raises(ServerError, match="whose tokenizer differs from that of"):
        build_engine(options, folder)


def test_a_server_of_another_model_with_the_same_tokenizer_is_refused(vllm_server, tmp_path):
    later = shutil.copytree(vllm_server.model, tmp_path / "train")
    with pytest.raises(ServerError, match=f"serves {vllm_server.model}, not {later}") as error:
        build_engine(EngineOptions(engine="openai", url=vllm_server.url), str(later))
    assert "`served_model: tiny`" in str(error.value)


def test_a_model_that_is_not_served_is_refused_by_name(vllm_server):
    options = EngineOptions(engine="openai", url=vllm_server.url, served_model="large")
    with pytest.raises(ServerError, match="serves tiny, not 'large'"):
        build_engine(options, str(vllm_server.model))


def test_collect_from_the_server(vllm_server, tmp_path):
    data = tmp_path / "problems.jsonl"
    data.write_text(
        "".join(json.dumps({"question": f"What is {i} + 1?", "solution": f"It is {i + 1}."}) + "\n" for i in range(20))
    )
    config = CollectConfig(
        output=tmp_path / "out", model=str(vllm_server.model), data=str(data), engine="openai", url=vllm_server.url,
        samples=2, max_tokens=16, max_in_flight=8,
    )  # fmt: skip
    result = collect.run(config)
    rows = [row for _, row in read_rows(tmp_path / "out")]
    assert [(row["problem"], row["sample"]) for row in rows] == [(str(i), s) for i in range(20) for s in range(2)]
    assert all(row["engine"] == "openai (vllm): tiny" and not row["text_only"] for row in rows)
    assert all(row["logprob_sum"] < 0 and row["completion_tokens"] <= 16 for row in rows)
    assert result.metrics["explanations"] == 40
    assert {row["seed"] for row in rows} == {None}  # on a CPU none is sent


def test_the_best_by_the_reward_of_a_served_student_is_selected(vllm_server, tmp_path):
    data = tmp_path / "problems.jsonl"
    data.write_text(
        "".join(
            json.dumps({"question": f"What is {i}?", "solution": f"{i}.", "system": "Hi."}) + "\n" for i in range(3)
        )
    )
    # A format whose closing tag is a letter, so that a model with random weights closes its explanations.
    made = load_format("stratos").model_dump(mode="json") | {
        "teacher_system_prompt": None,
        "student_system_prompt": None,
    }
    made["tags"]["explanation"] = ["[", "e"]
    (tmp_path / "letters.yaml").write_text(json.dumps(made))
    config = CollectConfig(
        output=tmp_path / "out", model=str(vllm_server.model), data=str(data), format=str(tmp_path / "letters.yaml"),
        samples=6, temperature=1.0, max_tokens=24, dtype="float32",
    )  # fmt: skip
    collect.run(config)
    score.run(
        ScoreConfig(
            output=tmp_path / "scores.jsonl", data=tmp_path / "out", format=config.format, student=vllm_server.url,
            teacher=str(vllm_server.model), score_temperature=1.0, dtype="float32",
        )
    )  # fmt: skip
    result = select.run(
        SelectConfig(
            output=tmp_path / "best", data=str(tmp_path / "out"), scores=tmp_path / "scores.jsonl", keep="best",
            format=config.format, student=str(vllm_server.model),
        )
    )  # fmt: skip
    rewards = {row["id"]: row["reward"] for _, row in read_rows(tmp_path / "scores.jsonl")}
    kept = [row for _, row in read_rows(tmp_path / "best")]
    assert result.metrics["selected"] == len(kept) > 0
    closed = [row for _, row in read_rows(tmp_path / "out") if row["closed"]]
    for row in kept:
        assert row["reward"] == max(rewards[r["id"]] for r in closed if r["problem"] == row["problem"])
