"""Teacher RL for a few steps on a small world: what is logged, every kind of reward, LoRA, no needless forward passes."""

import json
import math
import shutil

import pytest
import torch
from pydantic import ValidationError

from rlt.config import STAGES, RewardOptions
from rlt.data.rows import read_rows, write_rows
from rlt.engines.hf import HfEngine
from rlt.errors import ConfigError, DataError, ModelError, RunError
from rlt.models.loading import load_model, load_tokenizer
from rlt.models.logprobs import Row, token_logprobs
from rlt.pipeline import run_stage
from rlt.reward.scoring import RewardEngine
from rlt.reward.students import LocalModel
from rlt.text.formats import load_format
from rlt.training import sampling, teacher
from rlt.training.sampling import EngineSampling
from rlt.training.teacher import TeacherTrainer
from rlt.types import Explanation, Problem

TRAINER = {
    "max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8, "temperature": 1.0,
    "learning_rate": 1e-2, "save_strategy": "no",
}  # fmt: skip


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


@pytest.mark.parametrize(
    "keys",
    [
        {}, {"score_temperature": 1.0}, {"estimator": "exact"}, {"preset": "paper"}, {"sampler": "generate"},
        {"sampler": "generate", "score_temperature": 1.0}, {"sampler": "generate", "estimator": "exact"},
    ],
)  # fmt: skip
def test_training_computes_the_reward_that_scoring_computes(world, tmp_path, keys):
    metrics, samples = train(world, tmp_path / "run", keep_samples=8, **keys)
    options = {key: value for key, value in keys.items() if key != "sampler"}
    assert_scored_alike(world, metrics, samples, RewardOptions(**options), teacher=world["model"])


@pytest.mark.parametrize("more", [{}, {"num_iterations": 2}])
def test_a_completion_that_is_masked_because_it_was_cut_off_is_scored_like_any_other(world, tmp_path, more):
    keys = {"score_temperature": 1.0}
    trainer = {"mask_truncated_completions": True, "max_completion_length": 3, **more}
    metrics, samples = train(world, tmp_path / "run", trainer, keep_samples=8, **keys)
    assert not all(sample["closed"] for sample in samples)
    assert_scored_alike(world, metrics, samples, RewardOptions(**keys), teacher=world["model"])


@pytest.mark.parametrize("keys", [{}, {"estimator": "exact"}])
def test_the_policys_own_pass_is_in_the_trainers_precision_and_batches(world, tmp_path, monkeypatch, keys):
    # Under autocast the policy is another function than in float32: r_kl is of the one that is trained.
    name = "hidden_states" if keys else "token_logprobs"
    original, seen = getattr(teacher, name), []

    def watched(*arguments, **options):
        seen.append((torch.is_autocast_enabled("cpu"), options["batch_tokens"]))
        return original(*arguments, **options)

    monkeypatch.setattr(teacher, name, watched)
    train(world, tmp_path / "run", {"bf16": True}, batch_tokens=64, **keys)
    assert seen == [(True, 64)]


@pytest.mark.parametrize("sampler", ["generate", "engine"])
@pytest.mark.parametrize("correction", [{}, {"steps_per_generation": 2, "gradient_accumulation_steps": 1}])
def test_with_lora_r_kl_is_of_the_policy_not_of_the_reference(world, tmp_path, correction, sampler):
    pytest.importorskip("peft")
    # An adapter that changes the model from the start, and that a learning rate of 0 keeps: its merged model is the teacher.
    peft = {"r": 4, "lora_alpha": 64, "target_modules": "all-linear", "init_lora_weights": False, "lora_dropout": 0.5}
    # Scored at the temperature of sampling, so that TRL's own log-probs of the policy are used where it has them.
    keys = {"score_temperature": 1.0}
    trainer = {"beta": 0.04, "learning_rate": 0.0, "per_device_train_batch_size": 4, **correction}
    metrics, samples = train(world, tmp_path / "run", trainer, peft=peft, keep_samples=8, sampler=sampler, **keys)
    assert_scored_alike(world, metrics, samples, RewardOptions(**keys), teacher=str(tmp_path / "run"))


def assert_scored_alike(world, metrics, samples, options, teacher):
    engine = RewardEngine([local(world["student"])], load_format("words"), options, teacher=local(teacher))
    items = [
        Explanation(
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


def test_the_table_of_completions_that_goes_to_trackers_has_the_parts_of_each_reward(world, tmp_path):
    metrics, _ = train(world, tmp_path / "run", {"log_completions": True, "logging_steps": 1})
    (file,) = (tmp_path / "run" / "completions").glob("*.parquet")
    rows = [row for _, row in read_rows(file)]
    assert len(rows) == 8
    for name in ("r_ss", "r_kl", "solution_log_prob_min", "explanation_kl_max", "format_penalty"):
        mean = sum(row[name] for row in rows) / len(rows)
        assert mean == pytest.approx(metrics[f"rlt/{name}"], rel=1e-3, abs=1e-5)


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


def test_what_the_student_would_gain_is_mixed_into_the_reward(world, tmp_path):
    gain = {"heldout": world["data"], "heldout_limit": 4, "weight": 0.5}
    metrics, samples = train(world, tmp_path / "run", gain=gain, keep_samples=8)
    for sample in samples:
        without = sample["r_ss"] - 3 * sample["r_kl"] + sample["format_penalty"]
        assert sample["reward"] == pytest.approx(without + 0.5 * sample["gain"], abs=1e-4)
    assert len({sample["gain"] for sample in samples}) > 1
    assert "rlt/gain" in metrics


def test_the_gain_is_refused_where_the_student_cannot_learn(world, tmp_path):
    for student in (["self"], ["http://here/v1"], [world["student"], world["model"]]):
        with pytest.raises(ValidationError, match="`gain` needs exactly one student"):
            train(world, tmp_path / "run", student=student, gain={"heldout": world["data"]})


@pytest.mark.parametrize(
    ("keys", "passes"),
    [
        ({}, 0),
        ({"kl_coef": 0.0, "sampler": "generate"}, 0),
        ({"sampler": "generate"}, 2),
        ({"trainer": {"bf16": True}}, 2),  # under autocast, sampling with a cache and a whole pass differ
    ],
)
def test_the_policy_runs_for_the_reward_once_a_batch_or_not_at_all(world, tmp_path, monkeypatch, keys, passes):
    trainers = keep_trainers(monkeypatch)
    trainer = {**keys.pop("trainer", {}), "max_steps": 2}
    train(world, tmp_path / "run", trainer=trainer, **keys)
    assert trainers[0].policy_passes == passes


def test_the_engine_samples_what_the_policy_would_have_said_and_never_the_same_twice(world, tmp_path, monkeypatch):
    sampled = []
    original = EngineSampling._sample

    def watched(self, prompts):
        rows = original(self, prompts)
        sampled.append((prompts, rows))
        return rows

    monkeypatch.setattr(EngineSampling, "_sample", watched)
    trainer = {"learning_rate": 0.0, "max_steps": 2, "temperature": 0.8}
    train(world, tmp_path / "run", trainer, sampler="engine", score_temperature=0.5)
    model = load_model(world["model"], device="cpu")
    for prompts, written in sampled:
        rows = [Row([*p, *c], [range(len(p), len(p) + len(c))]) for p, (c, _) in zip(prompts, written, strict=True)]
        for (_, ours), theirs in zip(written, token_logprobs(model, rows, temperature=0.5), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
    (first, second) = ([tuple(ids) for ids, _ in rows] for _, rows in sampled)
    assert first != second
    assert len(set(first)) > 1


def test_under_mixed_precision_weights_are_cast_once_for_all_tokens(world, tmp_path, monkeypatch):
    # By one autocast context around the loop: that of each forward pass forgets its casts when it ends.
    original, seen = HfEngine.sample, []

    def watched(*arguments):
        seen.append(torch.is_autocast_enabled("cpu"))
        return original(*arguments)

    monkeypatch.setattr(HfEngine, "sample", watched)
    train(world, tmp_path / "run", {"bf16": True})
    assert seen == [True]


@pytest.mark.parametrize(
    ("trainer", "why"),
    [
        ({"repetition_penalty": 1.1}, "cannot do `trainer.repetition_penalty: 1.1`"),
        ({"min_p": 0.1}, "cannot do `trainer.min_p: 0.1`"),
        ({"generation_kwargs": {"num_beams": 2}}, "cannot do `trainer.generation_kwargs"),
        ({"use_transformers_continuous_batching": True}, "exclude each other"),
    ],
)
def test_the_engine_refuses_what_only_generate_can_do(world, tmp_path, trainer, why):
    with pytest.raises(ConfigError, match=why):
        train(world, tmp_path / "run", trainer, sampler="engine")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("sharded", "more", "calls"), [(False, {}, 1), (False, {"min_p": 0.01}, 0), (True, {}, 0)])
def test_by_default_the_engine_samples_wherever_it_can(world, tmp_path, monkeypatch, sharded, more, calls):
    original, sampled = EngineSampling._sample, []
    monkeypatch.setattr(sampling, "in_shards", lambda model: sharded)
    monkeypatch.setattr(EngineSampling, "_sample", lambda *args: sampled.append(1) or original(*args))
    train(world, tmp_path / "run", {"max_steps": 1, **more})
    assert len(sampled) == calls


def test_the_engine_is_not_replaced_by_generate_when_it_is_asked_for(world, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "in_shards", lambda model: True)
    with pytest.raises(ConfigError, match="needs the whole policy on each rank"):
        train(world, tmp_path / "run", {"max_steps": 1}, sampler="engine")


OTHER_WEIGHTS = r"step 0: the sampler's log-probs differ from the trainer's by {} nats per token"


@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize(
    ("reported", "error"),
    [
        (lambda logprobs: logprobs, None),
        (lambda logprobs: logprobs - 0.05, None),  # what bfloat16 makes
        (lambda logprobs: logprobs - 0.2, OTHER_WEIGHTS.format("0.2")),
        (lambda logprobs: logprobs.where(torch.arange(len(logprobs)) > 0, torch.nan), None),  # vLLM knows all but one
        (lambda logprobs: logprobs * torch.nan, OTHER_WEIGHTS.format("nan")),
        (lambda logprobs: logprobs - torch.inf, OTHER_WEIGHTS.format("inf")),
    ],
)
def test_a_sampler_whose_log_probs_are_not_the_trainers_stops_the_run(
    world, tmp_path, monkeypatch, reported, error, correction
):
    sample_as_vllm(monkeypatch, reported, correction)
    if error is None:
        metrics, _ = train(world, tmp_path / "run", kl_coef=0.0)
        assert metrics["sampler_difference"] < 0.06
    else:
        with pytest.raises(RunError, match=error):
            train(world, tmp_path / "run", kl_coef=0.0)


def test_unlikely_tokens_count_little_and_padding_nothing_when_sampler_and_trainer_are_compared(
    world, tmp_path, monkeypatch
):
    trainers = keep_trainers(monkeypatch)
    train(world, tmp_path / "run")
    trainer = trainers[0]
    half, rare = math.log(0.5), math.log(0.001)
    ours, mask = torch.tensor([[half, rare, 0.0]]), torch.tensor([[1, 1, 0]])
    trainer.check_sampler(ours, torch.tensor([[half, rare - 1, 9.0]]), mask)
    assert trainer._metrics["train"]["sampler_difference"][-1] == pytest.approx(0.001 / 0.501)
    with pytest.raises(RunError, match="differ"):  # likely for the sampler alone: it has other weights
        trainer.check_sampler(ours, torch.tensor([[half, half, 0.0]]), mask)
    trainer.check_sampler(ours, ours, torch.zeros(1, 3))  # nothing is learned from this batch


def sample_as_vllm(monkeypatch, reported, correction):
    """Let a step go the way that it goes with vLLM, whose log-probs are `reported` of the policy's own."""
    start, write = TeacherTrainer.__init__, TeacherTrainer._generate_single_turn

    def __init__(self, *args, **kwargs):
        start(self, *args, **kwargs)
        self.use_vllm, self.vllm_importance_sampling_correction = True, correction

    def generate(self, prompt_ids, *args, **kwargs):
        self.use_vllm = False
        completions, _ = write(self, prompt_ids, *args, **kwargs)
        self.use_vllm = True
        rows = [
            Row([*prompt, *ids], [range(len(prompt), len(prompt) + len(ids))])
            for prompt, ids in zip(prompt_ids, completions, strict=True)
        ]
        return completions, [reported(row).tolist() for row in token_logprobs(self.model, rows)]

    monkeypatch.setattr(TeacherTrainer, "__init__", __init__)
    monkeypatch.setattr(TeacherTrainer, "_generate_single_turn", generate)


def keep_trainers(monkeypatch):
    trainers, start = [], TeacherTrainer.__init__
    monkeypatch.setattr(
        TeacherTrainer, "__init__", lambda self, *a, **k: (start(self, *a, **k), trainers.append(self))[0]
    )
    return trainers


def test_lora_leaves_a_whole_model_and_rl_goes_on_from_it(world, tmp_path):
    pytest.importorskip("peft")
    peft = {"r": 4, "target_modules": "all-linear"}
    sft = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    config = {"output": str(tmp_path / "warm"), "format": "words", "model": world["model"], "data": world["data"]}
    run_stage("warmup", STAGES["warmup"].model_validate({**config, "trainer": sft, "peft": peft}))
    assert json.loads((tmp_path / "warm" / "config.json").read_text())["model_type"] == "llama"
    metrics, _ = train({**world, "model": str(tmp_path / "warm")}, tmp_path / "run", peft=peft)
    assert metrics["rlt/r_kl"] != 0


def test_a_prompt_without_room_for_the_completion_is_an_error_or_dropped(world, tmp_path):
    data = tmp_path / "long.jsonl"
    rows = [row for _, row in read_rows(world["data"])]
    rows[3] = {**rows[3], "id": "q3", "question": " ".join(["then"] * 500)}
    write_rows(data, rows)
    with pytest.raises(
        DataError, match=r"long\.jsonl: problem q3: its prompt of \d+ tokens and 8 of completion exceed"
    ):
        train({**world, "data": str(data)}, tmp_path / "run")
    # The same command with the advice taken: nothing was begun.
    train({**world, "data": {"path": str(data), "on_invalid": "skip"}}, tmp_path / "run")
    numbers = json.loads((tmp_path / "run" / "stage.json").read_text())["metrics"]
    assert (numbers["problems"], numbers["dropped"]) == (7, 1)


def test_a_mistake_in_the_options_leaves_nothing_behind(world, tmp_path):
    with pytest.raises(ConfigError, match=r"`trainer.max_step`: unknown option of GRPOConfig \(did you mean max_steps"):
        train(world, tmp_path / "run", {"max_step": 3})
    assert not (tmp_path / "run").exists()


def test_a_complete_stage_is_not_read_again(world, tmp_path, monkeypatch):
    train(world, tmp_path / "run")
    monkeypatch.setattr("rlt.stages.train.read_text", None)
    train(world, tmp_path / "run")


def test_a_teacher_that_would_not_stop_is_refused(world, tmp_path):
    folder = shutil.copytree(world["model"], tmp_path / "model")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.eos_token = "<pad>"
    tokenizer.save_pretrained(folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    end = generation.pop("eos_token_id")
    (folder / "generation_config.json").write_text(json.dumps(generation))
    with pytest.raises(
        ModelError, match=f"closes a turn with <end>, but sampling does not stop there.*or add {end} to"
    ):
        train({**world, "model": str(folder)}, tmp_path / "run")


def test_a_teacher_learns_from_arithmetic_and_rows_of_apps_humaneval_and_mbpp_at_once(world, tmp_path):
    rows = [
        {"question": "Read a number, print its double.", "solutions": '["print(2 * int(input()))"]',
         "input_output": '{"inputs": ["2"], "outputs": ["4"]}', "difficulty": "introductory"},
        {"task_id": "HumanEval/0", "prompt": "def twice(x):\n", "canonical_solution": "    return 2 * x\n",
         "test": "def check(candidate):\n    assert candidate(2) == 4\n", "entry_point": "twice"},
        {"task_id": 601, "text": "Write a function to double.", "code": "def twice(x):\n    return 2 * x",
         "test_list": ["assert twice(2) == 4"], "test_setup_code": ""},
        {"question": "Print 4.", "solutions": '["print(4)"]', "input_output": '{"inputs": [""], "outputs": ["4"]}'},
    ]  # fmt: skip
    write_rows(tmp_path / "code.jsonl", rows)
    data = [
        {"path": world["data"], "source": "sums", "limit": 4, "task": "arithmetic"},
        {"path": str(tmp_path / "code.jsonl"), "task": "code"},
    ]
    metrics, samples = train(
        world, tmp_path / "run", data=data, keep_samples=8, trainer={"max_steps": 2, "logging_steps": 2}
    )
    assert metrics["rlt/source/sums/share"] + metrics["rlt/source/code/share"] == 1
    for source in ("sums", "code"):
        assert math.isfinite(metrics[f"rlt/source/{source}/reward"])
    written = {row["solution"] for row in samples if row["source"] == "code"}
    assert written <= {f"```python\n{code}\n```" for code in
                       ("print(2 * int(input()))", "def twice(x):\n    return 2 * x", "print(4)")}  # fmt: skip
