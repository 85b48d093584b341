"""A student's RL on right answers: the reward by hand, and two real steps."""

import json

import pytest

from rlt.config import STAGES
from rlt.data.rows import read_rows
from rlt.errors import ConfigError, DataError
from rlt.models.loading import load_model, load_tokenizer
from rlt.pipeline import run_stage
from rlt.stages.coldstart import CorrectnessReward
from rlt.tasks.grading import Graders
from rlt.text.formats import load_format
from rlt.training.sampling import EngineSampling

TRAINER = {
    "max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8, "temperature": 1.0,
    "learning_rate": 1e-2, "save_steps": 1,
}  # fmt: skip


def config(world, output, **keys):
    trainer = {**TRAINER, **keys.pop("trainer", {})}
    values = {
        "output": str(output), "format": "words", "model": world["model"], "data": world["data"], "task": "arithmetic",
        "trainer": trainer, **keys,
    }  # fmt: skip
    return STAGES["coldstart"].model_validate(values)


def test_a_response_is_right_wrong_or_unreadable(world):
    tokenizer, logged = load_tokenizer(world["model"]), {}
    responses = [
        "<think> so 8 </think> <answer> 8 </answer> <end>",
        "<think> so 8 </think> <answer> 4 </answer> <end> <pad> <pad>",
        "<end>",
    ]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in responses]
    with Graders() as graders:
        ends = {tokenizer.eos_token_id}
        reward = CorrectnessReward(graders, load_format("words"), tokenizer, (-1.0, -0.5, 1.0), ends)
        assert reward(ids, ["7 a + 7 b * 7 ?"] * 3, ["8"] * 3, ["arithmetic"] * 3, log_metric=logged.__setitem__) == [
            1.0,
            -0.5,
            -1.0,
        ]
    assert logged == {"correct": pytest.approx(1 / 3), "unreadable": pytest.approx(1 / 3)}


def test_two_steps_change_the_student_and_log_what_was_right(world, tmp_path):
    result = run_stage("coldstart", config(world, tmp_path / "run"))
    rows = [row for _, row in read_rows(tmp_path / "run" / "metrics.jsonl") if "correct" in row]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        right, unreadable = row["correct"], row["unreadable"]
        assert row["reward"] == pytest.approx(right - unreadable - 0.5 * (1 - right - unreadable))
    assert result.metrics["correct_first"] == rows[0]["correct"]
    before, after = (load_model(path, device="cpu").state_dict() for path in (world["model"], str(tmp_path / "run")))
    assert any(not before[name].equal(after[name]) for name in before)
    assert "reinforcement learning with a verifiable reward" in (tmp_path / "run" / "README.md").read_text()
    assert json.loads((tmp_path / "run" / "checkpoint-2" / "complete.json").read_text())["trained_tokens"] == 0


def test_a_prompt_without_room_for_the_response_is_named(world, tmp_path):
    with pytest.raises(
        DataError, match=r"problems\.jsonl: problem 0-0: its prompt of \d+ tokens and 510 of completion exceed"
    ):
        run_stage("coldstart", config(world, tmp_path / "run", trainer={"max_completion_length": 510}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("sampler", "calls"), [("auto", 2), ("engine", 2), ("generate", 0)])
def test_the_engine_samples_unless_generate_is_asked_for(world, tmp_path, monkeypatch, sampler, calls):
    original, sampled = EngineSampling._sample, []
    monkeypatch.setattr(EngineSampling, "_sample", lambda *args: sampled.append(1) or original(*args))
    run_stage("coldstart", config(world, tmp_path / "run", sampler=sampler))
    assert len(sampled) == calls


def test_an_option_that_only_generate_knows_is_refused_before_anything_is_written(world, tmp_path):
    with pytest.raises(ConfigError, match="cannot do `trainer"):
        run_stage("coldstart", config(world, tmp_path / "run", sampler="engine", trainer={"min_p": 0.1}))
    assert not (tmp_path / "run").exists()
