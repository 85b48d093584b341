"""Teacher RL whose student is the policy itself: live, averaged or frozen; and the control with shuffled rewards."""

import pytest
import torch
from safetensors.torch import load_file

from rlt.config import STAGES
from rlt.data.rows import read_rows
from rlt.errors import ConfigError
from rlt.models import loading
from rlt.pipeline import run_stage
from rlt.recipe import build_recipe
from rlt.reward import students
from rlt.reward.self_student import AveragedSelf
from rlt.reward.trl import TeacherReward

TRAINER = {
    "max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8, "temperature": 1.0,
    "learning_rate": 1e-2, "save_strategy": "no", "optim": "sgd",
}  # fmt: skip


def train(world, output, trainer=None, **keys):
    """The rows of metrics of two steps."""
    config = {
        "output": str(output), "format": "words", "model": world["model"], "student": ["self"], "data": world["data"],
        "placebos": 2, "trainer": {**TRAINER, **(trainer or {})}, **keys,
    }  # fmt: skip
    run_stage("train", STAGES["train"].model_validate(config))
    return [row for _, row in read_rows(output / "metrics.jsonl") if "reward" in row]


@pytest.fixture(scope="module")
def frozen(world, tmp_path_factory):
    """Two steps with the starting model as an ordinary student."""
    return train(world, tmp_path_factory.mktemp("frozen") / "run", student=[world["model"]])


@pytest.mark.parametrize("keys", [{}, {"estimator": "exact"}, {"self_weights": "ema"}, {"self_weights": "frozen"}])
def test_before_the_first_update_the_policy_is_its_starting_model(world, tmp_path, frozen, keys):
    rows = train(world, tmp_path / "run", **keys)
    if "estimator" not in keys:
        assert rows[0]["rlt/r_kl"] == pytest.approx(frozen[0]["rlt/r_kl"], abs=1e-4)
    assert rows[0]["rlt/r_ss"] == pytest.approx(frozen[0]["rlt/r_ss"], abs=1e-4)
    assert rows[0]["rlt/r_ss"] < 0


def test_a_live_student_has_the_new_weights_after_an_update_and_a_frozen_one_the_old(world, tmp_path):
    rate = {"learning_rate": 0.5}
    start = train(world, tmp_path / "frozen", rate, self_weights="frozen")
    live = train(world, tmp_path / "live", rate)
    # The same first step, so the same samples in the second: only the student differs.
    assert live[1]["rlt/explanation_tokens"] == start[1]["rlt/explanation_tokens"]
    assert live[1]["rlt/r_ss"] != pytest.approx(start[1]["rlt/r_ss"], abs=1e-5)


def test_a_live_student_loads_no_model_and_reads_each_batch_once(world, tmp_path, monkeypatch):
    loaded, passes = [], []
    load, score = loading.load_model, students.LocalModel.logprobs
    monkeypatch.setattr(loading, "load_model", lambda path, *a, **k: loaded.append(path) or load(path, *a, **k))

    def counted(self, rows, *arguments, **options):
        passes.append(len(rows))
        return score(self, rows, *arguments, **options)

    monkeypatch.setattr(students.LocalModel, "logprobs", counted)
    train(world, tmp_path / "run", {"max_steps": 1}, placebos=0)
    assert loaded == []
    assert passes == [8]  # both terms of the reward from one pass over the batch of eight


def test_the_average_keeps_its_share_of_every_weight():
    model, policy = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for module, value in ((model, 1.0), (policy, 3.0)):
        for parameter in module.parameters():
            torch.nn.init.constant_(parameter, value)
    average = AveragedSelf.__new__(AveragedSelf)
    average.model = model
    average.follow(policy, 0.75)
    average.follow(policy, 0.75)
    # 1 -> 0.75 * 1 + 0.25 * 3 = 1.5 -> 0.75 * 1.5 + 0.25 * 3 = 1.875
    assert [parameter.item() for parameter in model.parameters()] == [1.875, 1.875]


def test_the_average_is_part_of_a_checkpoint_and_moves_with_each_step(world, tmp_path):
    keys = {"self_weights": "ema", "ema_decay": 0.5}
    train(
        world,
        tmp_path / "run",
        {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.5},
        **keys,
    )
    start, end = (load_file(f"{folder}/model.safetensors") for folder in (world["model"], tmp_path / "run"))
    average = load_file(tmp_path / "run" / "checkpoint-1" / "average" / "model.safetensors")
    assert any(not torch.equal(start[name], end[name]) for name in start)
    for name, weight in average.items():
        torch.testing.assert_close(weight, (start[name] + end[name]) / 2)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"accuracy": {}}, "`accuracy` needs a student that can be sampled"),
        ({"student_placement": "offload"}, "`student_placement` has no effect on `student: self`"),
        ({"self_weights": "ema", "peft": {"r": 2}}, "`self_weights: ema` averages all weights, not LoRA adapters"),
        ({"self_weights": "ema", "student": ["s"]}, "`self_weights: ema` belongs to `student: self`"),
    ],
)
def test_what_the_policy_cannot_do_as_its_own_student_is_refused(keys, said):
    train = {"model": "m", "data": "d.jsonl", "student": "self", **keys}
    with pytest.raises(ConfigError, match=said):
        build_recipe({"name": "r", "train": train}, "r.yaml")


def test_with_lora_the_live_student_is_the_model_with_its_adapter(world, tmp_path):
    pytest.importorskip("peft")
    peft = {"r": 4, "lora_alpha": 64, "target_modules": "all-linear", "init_lora_weights": False}
    live = train(world, tmp_path / "live", {"max_steps": 1}, peft=peft)
    start = train(world, tmp_path / "frozen", {"max_steps": 1}, peft=peft, self_weights="frozen")
    # The adapter changes the model from the start; the frozen student has none.
    assert live[0]["rlt/r_ss"] != pytest.approx(start[0]["rlt/r_ss"], abs=1e-4)


# -- the control -------------------------------------------------------------------------------------------------------


def test_shuffled_rewards_are_the_same_rewards_dealt_out_in_another_order_the_same_again():
    reward = TeacherReward.__new__(TeacherReward)
    reward.seed = 3
    rewards, ids = [None, *map(float, range(20))], [[i] for i in range(21)]
    dealt = reward._dealt_out(rewards, ids)
    assert dealt[0] is None
    assert dealt != rewards
    assert sorted(dealt[1:]) == rewards[1:]
    assert dealt == reward._dealt_out(rewards, ids)
