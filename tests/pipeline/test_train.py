"""Teacher RL for a few steps on a small world: what is logged, every kind of reward, LoRA, no needless forward passes."""

import json

import pytest

from rlt.config import STAGES, RewardOptions
from rlt.formats import load_format
from rlt.models import load_model, load_tokenizer
from rlt.pipeline import run_stage
from rlt.rows import read_rows
from rlt.scoring import RewardEngine, ScoreItem
from rlt.students import LocalModel
from rlt.teacher_trainer import TeacherTrainer
from rlt.types import Problem
from tests.words import make_model, make_problems

TRAINER = {
    "max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8, "temperature": 1.0,
    "learning_rate": 1e-2, "save_strategy": "no",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return {
        "model": make_model(folder / "model"),
        "student": make_model(folder / "student", 1),
        "other": make_model(folder / "other", 2),
        "data": make_problems(folder / "problems.jsonl", 8),
    }


def train(world, output, trainer=None, **keys):
    config = {
        "output": str(output), "format": "words", "model": world["model"], "student": [world["student"]],
        "data": world["data"], "placebos": 2, "trainer": {**TRAINER, **(trainer or {})}, **keys,
    }  # fmt: skip
    run_stage("train", STAGES["train"].model_validate(config))
    metrics = next(row for _, row in read_rows(output / "metrics.jsonl") if "reward" in row)
    return metrics, [row for _, row in read_rows(output / "samples.jsonl")]


def local(path):
    return LocalModel(load_model(path, device="cpu"), load_tokenizer(path))


@pytest.mark.parametrize("keys", [{}, {"score_temperature": 1.0}, {"estimator": "exact"}, {"preset": "paper"}])
def test_training_computes_the_reward_that_scoring_computes(world, tmp_path, keys):
    metrics, samples = train(world, tmp_path / "run", keep_samples=8, **keys)
    engine = RewardEngine(
        [local(world["student"])], load_format("words"), RewardOptions(**keys), teacher=local(world["model"])
    )
    items = [
        ScoreItem(
            Problem(id=str(i), question=row["question"], solution=row["solution"]), row["explanation"], row["closed"]
        )
        for i, row in enumerate(samples)
    ]
    for sample, scored in zip(samples, engine.score(items), strict=True):
        for part in ("reward", "r_ss", "r_kl", "explanation_kl_max", "format_penalty"):
            assert sample[part] == pytest.approx(getattr(scored.parts, part), abs=1e-4), part
    assert metrics["reward"] == pytest.approx(sum(s["reward"] for s in samples) / len(samples), abs=1e-4)


def test_each_part_its_spread_and_the_placebos_are_logged(world, tmp_path):
    metrics, _ = train(world, tmp_path / "run")
    wanted = {
        "r_ss",
        "r_ss_spread",
        "r_kl",
        "r_kl_spread",
        "reward_spread",
        "unclosed",
        "lift_over_empty",
        "lift_over_shuffled",
    }
    assert {f"rlt/{name}" for name in wanted} | {"completions/mean_length", "completions/clipped_ratio"} <= set(metrics)


def test_two_students_and_their_smallest_reward(world, tmp_path):
    both = [world["student"], world["other"]]
    smallest, _ = train(world, tmp_path / "min", student=both, aggregate="min")
    mean, _ = train(world, tmp_path / "mean", student=both)
    assert smallest["reward"] < mean["reward"]


def test_the_accuracy_reward_alone_lies_between_0_and_its_weight(world, tmp_path):
    accuracy = {"samples": 2, "weight": 5.0, "only": True, "task": "arithmetic", "max_tokens": 4}
    metrics, samples = train(world, tmp_path / "run", accuracy=accuracy)
    assert all(0 <= sample["reward"] - sample["format_penalty"] <= 5 for sample in samples)
    assert metrics["reward"] == pytest.approx(5 * metrics["rlt/accuracy"] + metrics["rlt/format_penalty"], abs=1e-5)


@pytest.mark.parametrize(("keys", "passes"), [({"kl_coef": 0.0}, 0), ({"trainer": {"temperature": 0.7}}, 2)])
def test_the_policy_runs_for_the_reward_once_a_batch_or_not_at_all(world, tmp_path, monkeypatch, keys, passes):
    trainers = []
    start = TeacherTrainer.__init__
    monkeypatch.setattr(
        TeacherTrainer, "__init__", lambda self, *a, **k: (start(self, *a, **k), trainers.append(self))[0]
    )
    trainer = {**keys.pop("trainer", {}), "max_steps": 2}
    train(world, tmp_path / "run", trainer=trainer, **keys)
    assert trainers[0].policy_passes == passes


def test_a_sampler_with_other_weights_stops_the_run(world, tmp_path):
    import torch

    from rlt.errors import RunError

    class Ours(TeacherTrainer):
        def __init__(self):
            from types import SimpleNamespace

            self.sync_threshold, self._metrics = 0.5, {"train": {"sampler_difference": []}}
            self.accelerator, self.model = SimpleNamespace(gather=lambda x: x), SimpleNamespace(training=True)
            self.state = SimpleNamespace(global_step=3)

    ours, mask = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[1, 1, 0]])
    Ours().check_sampler(ours, torch.tensor([[-1.2, -1.8, 9.0]]), mask)  # mean difference 0.2; padding does not count
    with pytest.raises(RunError, match=r"step 3: the sampler's log-probs differ from the trainer's by 1 nats a token"):
        Ours().check_sampler(ours, torch.tensor([[-2.0, -3.0, 0.0]]), mask)


def test_lora_leaves_a_whole_model_and_rl_goes_on_from_it(world, tmp_path):
    pytest.importorskip("peft")
    peft = {"r": 4, "target_modules": "all-linear"}
    sft = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    config = {"output": str(tmp_path / "warm"), "format": "words", "model": world["model"], "data": world["data"]}
    run_stage("warmup", STAGES["warmup"].model_validate({**config, "trainer": sft, "peft": peft}))
    assert json.loads((tmp_path / "warm" / "config.json").read_text())["model_type"] == "llama"
    metrics, _ = train({**world, "model": str(tmp_path / "warm")}, tmp_path / "run", peft=peft)
    assert metrics["rlt/r_kl"] != 0


def test_saving_between_the_steps_of_one_generation_is_refused(world, tmp_path):
    from rlt.errors import ConfigError

    options = {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 4}
    with pytest.raises(ConfigError, match=r"`trainer\.save_steps` 3 must be a multiple of 2"):
        train(world, tmp_path / "run", {**options, "save_strategy": "steps", "save_steps": 3})


def test_an_option_that_trl_does_not_have_is_named(world, tmp_path):
    from rlt.errors import ConfigError

    with pytest.raises(ConfigError, match=r"`trainer.max_step` is no option of TRL's GRPOConfig"):
        train(world, tmp_path / "run", {"max_step": 3})
