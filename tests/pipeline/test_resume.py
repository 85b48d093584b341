"""N steps equal N/2 steps, kill -9, resume: metrics and weights, bit for bit, across epochs and a moving reference."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from rlt.config import STAGES
from rlt.data.rows import read_rows
from rlt.pipeline import run_stage
from rlt.training.checkpoints import last_checkpoint
from rlt.training.loop import MetricsFile
from rlt.training.teacher import TeacherTrainer
from tests.processes import status_of_fork

STEPS, SAVE = 6, 3
# Checkpoints lie between two logs: the sums behind the logged means have to resume, too.
SFT = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVE, "per_device_train_batch_size": 4,
       "learning_rate": 1e-2, "logging_steps": 2}  # fmt: skip
# 4 questions, 2 of them a step: an epoch every 2 steps, so that the cut lies in the middle of one.
GRPO = {"max_steps": STEPS, "save_steps": SAVE, "per_device_train_batch_size": 8, "num_generations": 4,
        "max_completion_length": 8, "learning_rate": 1e-2, "temperature": 1.0, "beta": 0.1, "sync_ref_model": True,
        "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.6, "logging_steps": 2}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uncut(world, tmp_path_factory):
    """Runs a stage once without any cut, and gives its folder."""
    folders = {}

    def run(stage):
        if stage not in folders:
            folders[stage] = tmp_path_factory.mktemp("whole") / stage
            run_stage(name_of(stage), STAGES[name_of(stage)].model_validate(config_of(stage, world, folders[stage])))
        return folders[stage]

    return run


def name_of(case):
    return "train" if case in ("self", "generate") else case.split()[0]


def config_of(stage, world, output):
    """`stage` is one, or one and `mixed`: of two sources, of which the small one is drawn as often as the large one."""
    shared = {"output": str(output), "format": "words", "model": world["model"]}
    stage, _, mixed = stage.partition(" ")
    rows = 4 if name_of(stage) == "train" else 8
    data = {"path": world["data"], "limit": rows}
    if mixed:
        small = {"path": world["data"], "source": "small", "limit": 1, "weight": rows - 1}
        data = [small, {"path": world["data"], "source": "large", "skip": 1, "limit": rows - 1}]
    if name_of(stage) == "train":
        # Its own average: weights that a checkpoint has to bring back.
        student = {"student": ["self"], "self_weights": "ema", "ema_decay": 0.5} if stage == "self" else {}
        more = student | ({"sampler": "generate"} if stage == "generate" else {})
        return {**shared, "data": data, "student": [world["student"]], "placebos": 2, "trainer": GRPO, **more}
    return {**shared, "data": data, "trainer": SFT}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "killed"),
    [
        ("warmup", "MetricsFile.on_step_end@4"),
        ("distill", "MetricsFile.on_step_end@4"),
        ("train", "MetricsFile.on_step_end@4"),
        ("train", "TrainerState.save_to_json@6"),  # inside a save, before trainer_state.json is there
        ("train", "TeacherTrainer._save_more@6"),  # and before the reference model is
        ("warmup mixed", "MetricsFile.on_step_end@4"),
        ("train mixed", "MetricsFile.on_step_end@4"),
        ("self", "MetricsFile.on_step_end@4"),
        ("generate", "MetricsFile.on_step_end@4"),
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_never_been_cut(stage, killed, world, uncut, tmp_path):
    cut, whole = config_of(stage, world, tmp_path / "cut"), uncut(stage)
    stage, _, mixed = stage.partition(" ")
    assert status_of_fork(lambda: run_until_killed(name_of(stage), cut, killed)) == -signal.SIGKILL
    assert last_checkpoint(tmp_path / "cut").name == f"checkpoint-{SAVE}"
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    half_line(tmp_path / "cut" / "metrics.jsonl")
    run_stage(name_of(stage), STAGES[name_of(stage)].model_validate(cut))

    assert metrics(tmp_path / "cut") == metrics(whole)
    assert loss(tmp_path / "cut") == loss(whole)
    assert_same_weights(tmp_path / "cut", whole)
    last = f"checkpoint-{STEPS}"
    assert_same_optimizer(tmp_path / "cut" / last, whole / last)
    if mixed and stage == "train":
        rows = [row for row in metrics(whole) if "reward" in row]
        assert {row["rlt/source/small/share"] for row in rows} == {0.5}
        assert all("rlt/source/large/unclosed" in row for row in rows)
    if stage == "train":
        assert_same_weights(tmp_path / "cut" / last / "reference", whole / last / "reference")
        assert samples(tmp_path / "cut") == samples(whole)
        orders = [[row["question"] for row in samples(whole) if row["step"] // 2 == e] for e in range(3)]
        assert len({tuple(order) for order in orders}) > 1  # each epoch has an order of its own


def run_until_killed(stage, config, killed):
    """`killed` is `CLASS.METHOD@STEP`: the process ends where this method is called in that step."""
    name, step = killed.split("@")
    name, method = name.split(".")
    owner = {"MetricsFile": MetricsFile, "TrainerState": TrainerState, "TeacherTrainer": TeacherTrainer}[name]
    original = getattr(owner, method)

    def dies(self, *args, **kwargs):
        state = self if owner is TrainerState else args[1] if owner is MetricsFile else self.state
        if state.global_step == int(step):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    setattr(owner, method, dies)
    run_stage(stage, STAGES[stage].model_validate(config))


def half_line(path: Path):
    with path.open("a") as file:
        file.write('{"step": 99, "lo')


def loss(folder: Path):
    return json.loads((folder / "stage.json").read_text())["metrics"]["loss"]


TIMES = ("runtime", "per_second", "step_time")


def metrics(folder: Path):
    return [
        {key: value for key, value in row.items() if not any(word in key for word in TIMES)}
        for _, row in read_rows(folder / "metrics.jsonl")
    ]


def samples(folder: Path):
    return [row for _, row in read_rows(folder / "samples.jsonl")]


def assert_same_weights(one: Path, other: Path):
    ours, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def assert_same_optimizer(one: Path, other: Path):
    ours, theirs = (torch.load(folder / "optimizer.pt")["state"] for folder in (one, other))
    for number, state in ours.items():
        for key, value in state.items():
            assert torch.equal(value, theirs[number][key]), (number, key)
