"""From teacher to student with real models: what is collected is scored, selected by reward, and learned from."""

from __future__ import annotations

from itertools import groupby

import pytest

from rlt.config import CollectConfig, DistillConfig, ScoreConfig, SelectConfig
from rlt.data.rows import read_rows
from rlt.stages import collect, distill, score, select
from tests.words import make_problems


@pytest.fixture(scope="module")
def scored(world, tmp_path_factory):
    """The folder with `explained` and `scores.jsonl`: four explanations of each of 30 problems."""
    folder = tmp_path_factory.mktemp("scored")
    data = make_problems(folder / "problems.jsonl", 30)
    collect.run(
        CollectConfig(
            output=folder / "explained", model=world["model"], data=data, format="words", samples=4, temperature=1.0,
            max_tokens=60, batch_size=120,
        )
    )  # fmt: skip
    score.run(
        ScoreConfig(
            output=folder / "scores.jsonl", student=[world["student"]], teacher=world["model"],
            data=folder / "explained", format="words", preset="paper",
        )
    )  # fmt: skip
    return folder


def test_the_best_by_reward_of_each_problem_that_fits_the_student_is_kept_and_distilled(world, scored, tmp_path):
    result = select.run(
        SelectConfig(
            output=tmp_path / "best", data=str(scored / "explained"), scores=scored / "scores.jsonl", keep="best",
            student=world["student"], format="words",
        )
    )  # fmt: skip
    rows = [row for _, row in read_rows(scored / "explained")]
    rewards = [row["reward"] for _, row in read_rows(scored / "scores.jsonl")]
    kept = {row["problem"]: row for _, row in read_rows(tmp_path / "best")}
    dropped = {row["id"]: row["reason"] for _, row in read_rows(tmp_path / "best" / "report" / "dropped.jsonl")}
    assert len(rows) == len(rewards) == 120 == len(kept) + len(dropped)
    assert result.metrics["selected"] == len(kept) > 3
    rivals = [
        (row, reward)
        for row, reward in zip(rows, rewards, strict=True)
        if row["id"] not in dropped or "another" in dropped[row["id"]]
    ]
    for problem, group in groupby(rivals, key=lambda pair: pair[0]["problem"]):
        best, reward = max(group, key=lambda pair: pair[1])
        assert kept[problem] == {**best, "reward": reward}
    distilled = distill.run(
        DistillConfig(
            output=tmp_path / "student", model=world["student"], data=str(tmp_path / "best"), format="words",
            trainer={"max_steps": 1, "per_device_train_batch_size": 2},
        )
    )  # fmt: skip
    assert distilled.metrics["examples"] == len(kept)
