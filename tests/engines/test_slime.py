"""slime's reward function, on samples with the fields that slime's have: slime itself is not on the package index."""

# ruff: noqa: F811 - the fixtures of tests/serve
from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from engines.running import EXPECTED, TOLERANCE, misbehaving, odd_service
from engines.scored import of_the_service, sampled_rows
from serve.conftest import folder, served  # noqa: F401

from rlt.integrations.service import RewardService, ServiceError
from rlt.integrations.slime import reward

ARGUMENTS = {"reward_key": None, "rollout_temperature": 0.7, "rollout_top_p": 1.0, "rollout_top_k": -1}


@pytest.fixture(scope="module")
def rows(folder):
    return sampled_rows(folder)


@pytest.fixture
def use(monkeypatch):
    """Sets the environment that names the service."""
    cleared = RewardService.from_environment.__func__.cache_clear

    def use(environment):
        cleared()
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    yield use
    cleared()


def sample(row, **more):
    return SimpleNamespace(**{
        "label": row["label"], "tokens": [1, 2, 3, *row["token_ids"]], "response_length": len(row["token_ids"]),
        "loss_mask": None, "rollout_log_probs": row["logprobs"], **more,
    })  # fmt: skip


def asked(samples, **arguments):
    return asyncio.run(reward(SimpleNamespace(**{**ARGUMENTS, **arguments}), samples))


def test_one_sample_and_a_group_get_the_services_rewards(served, rows, use):
    use({"RLT_URL": served.url})
    expected = of_the_service(served, rows)
    assert asked([sample(row) for row in rows]) == pytest.approx([row["reward"] for row in expected], rel=TOLERANCE)
    one = asked(sample(rows[1]), reward_key="score")
    assert one["score"] == pytest.approx(expected[1]["reward"], rel=TOLERANCE)
    assert one["r_kl"] == pytest.approx(expected[1]["r_kl"], rel=TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "more", "words"),
    [
        ({"rollout_top_p": 0.9}, {}, "top_p 0.9 and top_k -1 truncate the distribution"),
        ({"rollout_temperature": 1.0}, {}, "at temperature 1, but this service scores at 0.7"),
        ({}, {"loss_mask": [1, 0, 1]}, "tokens that the policy did not sample"),
        ({}, {"label": "It is 2."}, "the label must be a JSON object"),
    ],
)
def test_what_would_be_another_reward_is_refused(served, rows, use, arguments, more, words):
    use({"RLT_URL": served.url})
    with pytest.raises(ServiceError, match=words):
        asked(sample(rows[0], **more), **arguments)


@pytest.mark.parametrize("case", EXPECTED)
def test_a_service_that_fails_is_survived_or_told_and_never_a_missing_reward(rows, use, case):
    with odd_service() as url:
        given = misbehaving(url, rows)[case]
        use(given["environment"])
        if isinstance(EXPECTED[case], str):
            with pytest.raises(ServiceError, match=EXPECTED[case]):
                asyncio.run(_each(given["rows"]))
        else:
            assert asyncio.run(_each(given["rows"])) == EXPECTED[case]


async def _each(rows):
    return [await reward(SimpleNamespace(**ARGUMENTS), sample(row)) for row in rows]
