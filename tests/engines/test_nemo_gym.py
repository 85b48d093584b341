"""NeMo Gym's simple agent and rlt's resources server, in its environment, against a running service."""

# ruff: noqa: F811 - the fixtures of tests/serve
from __future__ import annotations

import pytest
from engines.running import EXPECTED, TOLERANCE, misbehaving, odd_service, run_engine
from engines.scored import of_the_service, sampled_rows
from serve.conftest import folder, served  # noqa: F401


@pytest.fixture(scope="module")
def rows(folder):
    return sampled_rows(folder)


@pytest.fixture(scope="module")
def cases(served, rows):
    """What each case came to, by name: one process of NeMo Gym's environment for all."""
    plain = {"environment": {"RLT_URL": served.url, "RLT_RETRY_FOR": "30"}, "rows": rows, "sampling": {}}
    named = {
        "agent": plain,
        "temperature": {**plain, "sampling": {"temperature": 1.0}},
        "cut": {**plain, "sampling": {"top_p": 0.9}},
        "no solution": {**plain, "rows": [{**rows[0], "label": '{"question": "What?"}'}]},
    }
    with odd_service() as url:
        named |= misbehaving(url, rows)
        results = run_engine("nemo_gym", {"cases": list(named.values())})
    return dict(zip(named, results, strict=True))


def test_the_agents_rollouts_carry_the_rewards_of_their_tokens_and_log_probs(cases, served, rows):
    expected = of_the_service(served, rows)
    assert cases["agent"]["rewards"] == pytest.approx([row["reward"] for row in expected], rel=TOLERANCE)
    for answer, row in zip(cases["agent"]["info"], expected, strict=True):
        assert answer["r_kl"] == pytest.approx(row["r_kl"], rel=TOLERANCE)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("temperature", "at temperature 1, but this service scores at 0.7"),
        ("cut", "top_p 0.9 and top_k None truncate the distribution"),
        ("no solution", "solution"),
    ],
)
def test_what_would_be_another_reward_is_refused(cases, case, words):
    assert words in cases[case]["error"]


# Rows without a reward are the service's matter here: `rlt serve --failed-reward`.
@pytest.mark.parametrize("case", sorted(EXPECTED.keys() - {"failed_reward"}))
def test_a_service_that_fails_is_survived_or_told_and_never_a_missing_reward(cases, case):
    if isinstance(EXPECTED[case], str):
        assert EXPECTED[case] in cases[case]["error"]
    else:
        assert cases[case]["rewards"] == EXPECTED[case]
