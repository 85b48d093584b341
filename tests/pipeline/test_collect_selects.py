"""`rlt collect --select reward` with real models: the rewards are those of the reward engine, the best one is kept."""

from __future__ import annotations

import contextlib
import json
from itertools import groupby

import pytest

from rlt.config import CollectConfig, ScoreConfig
from rlt.data.rows import read_rows
from rlt.reward.items import ScoredRow
from rlt.stages import collect, score
from rlt.types import RewardParts
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


class Rewards:
    """In the place of the reward engine: the reward is the explanation's length, and after so many rows it is killed."""

    def __init__(self, room: float = float("inf")) -> None:
        self.room, self.scored = room, 0

    def in_place(self):
        return contextlib.nullcontext()

    def score(self, items):
        if self.scored + len(items) > self.room:
            raise KeyboardInterrupt
        self.scored += len(items)
        return [ScoredRow(RewardParts(reward=float(len(item.written)))) for item in items]

    def close(self) -> None:
        pass


def test_rewards_are_noted_and_not_computed_twice(world, tmp_path, monkeypatch):
    teacher, student, data = world
    config = CollectConfig(
        output=tmp_path / "out", model=teacher, data=data, format="words", samples=4, temperature=1.0, max_tokens=60,
        select="reward", student=student, batch_size=120,
    )  # fmt: skip
    monkeypatch.setattr(collect, "WINDOW", 20)
    first, second = Rewards(room=4), Rewards()
    monkeypatch.setattr(collect, "_reward_engine", lambda *_: first)
    with pytest.raises(KeyboardInterrupt):
        collect.run(config)
    noted = len((tmp_path / "out" / "state" / "rewards.jsonl").read_text().splitlines())
    assert 0 < noted < 120
    monkeypatch.setattr(collect, "_reward_engine", lambda *_: second)
    collect.run(config)
    dropped = {row["id"]: row["reason"] for _, row in read_rows(tmp_path / "out" / "report" / "dropped.jsonl")}
    fitting = 120 - sum("another" not in reason for reason in dropped.values())
    assert first.scored + second.scored == fitting


def test_students_are_placed_and_batched_as_the_configuration_says():
    config = CollectConfig(
        output="out", model="teacher", data="data.jsonl", engine="openai", url="http://host:8000/v1", served_model="t",
        select="reward", student="a, http://host:8001/v1#b", student_placement="offload", batch_tokens=4096,
    )  # fmt: skip
    options = collect._student_options(config)
    assert options.student == ["a", "http://host:8001/v1#b"]
    assert (options.student_placement, options.batch_tokens) == ("offload", 4096)
    assert options.served_model is None  # that is the teacher's


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"select": "reward"}, "`select: reward` needs `student`"),
        ({"student_context": 512}, "`student_context` needs `student`"),
        ({"select": "reward", "student": "s", "student_placement": "sharded"}, "needs several processes"),
    ],
)
def test_selections_that_cannot_be_are_refused_before_anything_is_collected(options, said):
    with pytest.raises(ValueError, match=said):
        CollectConfig(output="out", model="teacher", data="data.jsonl", **options)
