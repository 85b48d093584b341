"""verifiers' traces and its `Task.score`, in its environment, against a running service."""

# ruff: noqa: F811 - the fixtures of tests/serve
from __future__ import annotations

import json

import pytest
from engines.running import EXPECTED, TOLERANCE, misbehaving, odd_service, run_engine
from engines.scored import PROBLEMS, of_the_service, sampled_rows
from serve.conftest import folder, served  # noqa: F401

from rlt.data.rows import write_rows
from rlt.integrations.prompts import main, messages_row
from rlt.text.formats import load_format


@pytest.fixture(scope="module")
def rows(folder):
    return sampled_rows(folder)


@pytest.fixture(scope="module")
def cases(served, rows, tmp_path_factory):
    """What each case came to, by name: one process of verifiers' environment for all."""
    place = tmp_path_factory.mktemp("verifiers")
    write_rows(place / "problems.jsonl", [{"question": p.question, "solution": p.solution} for p in PROBLEMS])
    assert main([
        "--data", str(place / "problems.jsonl"), "--format", "stratos-user", "--kind", "messages", "--output",
        str(place / "prompts.jsonl"),
    ]) == 0  # fmt: skip
    write_rows(place / "bare.jsonl", [{"question": "What?", "solution": "That."}])
    plain = {"environment": {"RLT_URL": served.url, "RLT_RETRY_FOR": "30"}, "rows": rows, "sampling": {}}
    text = [{"label": row["label"], "completion": row["completion"]} for row in rows]
    named = {
        "function": plain,
        "taskset": {**plain, "data": str(place / "prompts.jsonl")},
        "bare": {**plain, "data": str(place / "bare.jsonl")},
        "text": {**plain, "rows": text},
        "turns": {**plain, "rows": [{**rows[0], "turns": 2}]},
        "cut": {**plain, "sampling": {"top_p": 0.9}},
        "no temperature": {**plain, "sampling": {"temperature": None}},
        "no solution": {**plain, "rows": [{**rows[0], "label": '{"question": "What?"}'}]},
        "no url": {**plain, "environment": {"RLT_URL": ""}},
    }
    with odd_service() as url:
        named |= misbehaving(url, rows)
        results = run_engine("verifiers", {"cases": list(named.values())})
    return dict(zip([*named, "worker"], results, strict=True))


@pytest.mark.parametrize("case", ["function", "taskset"])
def test_the_reward_comes_from_the_traces_tokens_and_log_probs(cases, served, rows, case):
    expected = of_the_service(served, rows)
    assert cases[case]["rewards"] == pytest.approx([row["reward"] for row in expected], rel=TOLERANCE)
    for metrics, row in zip(cases[case]["info"], expected, strict=True):
        assert metrics["rlt/r_kl"] == pytest.approx(row["r_kl"], rel=TOLERANCE)


def test_a_trace_without_tokens_is_scored_by_its_text(cases, served, rows):
    asked = [{**json.loads(row["label"]), "completion": row["completion"]} for row in rows]
    _, answer = served.ask("/score", {"rows": asked})
    assert cases["text"]["rewards"] == pytest.approx([row["reward"] for row in answer["rows"]], rel=TOLERANCE)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("turns", "2 model calls; the reward is for one explanation"),
        ("cut", "top_p 0.9 and top_k None truncate the distribution"),
        ("no temperature", "the sampling temperature is not set"),
        ("no solution", "the label must be a JSON object"),
        ("no url", "RLT_URL is not set"),
        ("bare", "bare.jsonl line 1: `prompt` must be messages"),
    ],
)
def test_what_would_be_another_reward_is_refused(cases, case, words):
    assert words in cases[case]["error"]


@pytest.mark.parametrize("case", EXPECTED)
def test_a_service_that_fails_is_survived_or_told_and_never_a_missing_reward(cases, case):
    if isinstance(EXPECTED[case], str):
        assert EXPECTED[case] in cases[case]["error"]
    else:
        assert cases[case]["rewards"] == EXPECTED[case]


def test_the_adapter_needs_neither_torch_nor_transformers(cases):
    assert cases["worker"] == {"imported": []}


def test_messages_hold_the_solution_and_a_format_that_needs_prefill_is_refused(capsys, tmp_path):
    row = messages_row(load_format("stratos-user"), PROBLEMS[0])
    assert row["prompt"][-1]["role"] == "user"
    assert PROBLEMS[0].solution in row["prompt"][-1]["content"]
    assert json.loads(row["label"]) == {"question": PROBLEMS[0].question, "solution": PROBLEMS[0].solution}
    write_rows(tmp_path / "p.jsonl", [{"question": "What?", "solution": "That."}])
    flags = ["--data", str(tmp_path / "p.jsonl"), "--kind", "messages", "--output", str(tmp_path / "out.jsonl")]
    assert main([*flags, "--format", "stratos"]) == 1
    assert "solution_turn: user" in capsys.readouterr().err
