"""`rlt collect --select reward` with real models: the rewards are those of the reward engine, the best one is kept."""

from __future__ import annotations

import json
from itertools import groupby

import pytest

from rlt.config import CollectConfig, ScoreConfig
from rlt.rows import read_rows
from rlt.stages import collect, score
from tests.words import make_model, make_problems


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return make_model(folder / "teacher"), make_model(folder / "student", 1), make_problems(folder / "p.jsonl", 30)


def test_the_best_by_reward_is_kept_and_its_reward_is_what_score_says(world, tmp_path):
    teacher, student, data = world
    config = CollectConfig(
        output=tmp_path / "out", model=teacher, data=data, format="words", samples=4, temperature=1.0, max_tokens=60,
        select="reward", student=student, batch_size=120, reward={"preset": "paper"},
    )  # fmt: skip
    result = collect.run(config)
    raw = [row for _, row in read_rows(tmp_path / "out" / "raw")]
    kept = {row["problem"]: row for _, row in read_rows(tmp_path / "out")}
    dropped = {row["id"]: row["reason"] for _, row in read_rows(tmp_path / "out" / "report" / "dropped.jsonl")}
    assert len(raw) == 120 == len(kept) + len(dropped)
    assert result.metrics["selected"] == len(kept) > 3
    rivals = [row for row in raw if row["id"] not in dropped or "another" in dropped[row["id"]]]
    source = tmp_path / "rivals.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rivals))
    score.run(
        ScoreConfig(
            output=tmp_path / "scores.jsonl", student=[student], teacher=teacher, data=source, format="words",
            preset="paper",
        )
    )  # fmt: skip
    scores = [row["reward"] for _, row in read_rows(tmp_path / "scores.jsonl")]
    pairs = zip(rivals, scores, strict=True)
    for problem, group in groupby(pairs, key=lambda pair: pair[0]["problem"]):
        assert kept[problem]["reward"] == pytest.approx(max(value for _, value in group), abs=1e-4)
