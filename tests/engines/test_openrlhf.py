"""OpenRLHF's executors and samples generator, in its environment, against a running service."""

# ruff: noqa: F811 - the fixtures of tests/serve
from __future__ import annotations

import json

import pytest
from engines.running import EXPECTED, ROOT, TOLERANCE, misbehaving, odd_service, run_engine
from engines.scored import of_the_service, sampled_rows
from serve.conftest import folder, served  # noqa: F401

AGENT = str(ROOT / "rlt" / "integrations" / "openrlhf.py")
NO_LOGPROBS, CUT = {"logprobs": None}, {"top_p": 0.9}


@pytest.fixture(scope="module")
def rows(folder):
    return sampled_rows(folder)


@pytest.fixture(scope="module")
def cases(served, folder, rows):
    """What each case came to, by name: one process of OpenRLHF's environment for all."""
    environment = {"RLT_URL": served.url, "RLT_RETRY_FOR": "30"}
    plain = {"environment": environment, "agent": AGENT, "rows": rows, "sampling": {}}
    named = {
        "agent": plain,
        "no logprobs": {**plain, "sampling": NO_LOGPROBS},
        "cut": {**plain, "sampling": CUT},
        "temperature": {**plain, "sampling": {"temperature": 1.0}},
        "no solution": {**plain, "rows": [{**rows[0], "label": "It is 2."}]},
        "url": {**plain, "remote_url": served.url + "/openrlhf"},
        "url of nothing": {**plain, "rows": rows[:1], "remote_url": "http://127.0.0.1:9/openrlhf"},
    }
    with odd_service() as url:
        named |= {name: {**case, "agent": AGENT} for name, case in misbehaving(url, rows).items()}
        results = run_engine("openrlhf", {"tokenizer": str(folder / "teacher"), "cases": list(named.values())})
    return dict(zip(named, results, strict=True))


def test_the_agents_rewards_come_from_the_policys_log_probs(cases, served, rows):
    expected = of_the_service(served, rows)
    assert cases["agent"]["rewards"] == pytest.approx([row["reward"] for row in expected], rel=TOLERANCE)
    for info, row in zip(cases["agent"]["info"], expected, strict=True):
        logged = {name: row[name] for name in ("reward", "r_ss", "r_kl", "format_penalty")}
        assert {name: info[name] for name in logged} == pytest.approx(logged, rel=TOLERANCE)


def test_without_log_probs_and_by_url_r_kl_is_the_services_own(cases, served, rows):
    asked = [{**json.loads(row["label"]), "completion": row["completion"]} for row in rows]
    _, answer = served.ask("/score", {"rows": asked})
    expected = pytest.approx([row["reward"] for row in answer["rows"]], rel=TOLERANCE)
    assert cases["no logprobs"]["rewards"] == expected
    assert [reward for (reward,) in cases["url"]["rewards"]] == expected


def test_openrlhfs_own_url_loses_the_reward_of_a_service_that_is_away(cases):
    assert cases["url of nothing"]["rewards"] == [None]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("cut", "top_p 0.9 and top_k -1 truncate the distribution"),
        ("temperature", "`logprobs` are at temperature 1, but this service scores at 0.7"),
        ("no solution", "the label must be a JSON object"),
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
