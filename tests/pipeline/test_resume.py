"""N steps equal N/2 steps, kill -9, resume: metrics and weights, bit for bit, across epochs and a moving reference."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlt.config import STAGES
from rlt.pipeline import run_stage
from rlt.rows import read_rows
from tests.words import make_model, make_problems

STEPS, KILLED_AFTER, SAVE = 6, 4, 3
SFT = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVE, "per_device_train_batch_size": 4,
       "learning_rate": 1e-2, "logging_steps": 1}  # fmt: skip
# 4 questions, 2 of them a step: an epoch every 2 steps, so that the cut lies in the middle of one.
GRPO = {"max_steps": STEPS, "save_steps": SAVE, "per_device_train_batch_size": 8, "num_generations": 4,
        "max_completion_length": 8, "learning_rate": 1e-2, "temperature": 1.0, "beta": 0.1, "sync_ref_model": True,
        "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.6}  # fmt: skip
DRIVER = """
import os, signal, sys
from rlt.config import STAGES
from rlt.pipeline import run_stage
from rlt.training import MetricsFile
def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
MetricsFile.on_step_end = on_step_end
run_stage(sys.argv[1], STAGES[sys.argv[1]].model_validate_json(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return {
        "model": make_model(folder / "model"),
        "student": make_model(folder / "student", 1),
        "data": make_problems(folder / "problems.jsonl", 8),
    }


def config_of(stage, world, output):
    shared = {"output": str(output), "format": "words", "model": world["model"]}
    if stage == "train":
        data = {"path": world["data"], "limit": 4}
        return {**shared, "data": data, "student": [world["student"]], "placebos": 2, "trainer": GRPO}
    return {**shared, "data": world["data"], "trainer": SFT}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["warmup", "train", "distill"])
def test_a_killed_run_goes_on_as_if_it_had_never_been_cut(stage, world, tmp_path):
    whole, cut = config_of(stage, world, tmp_path / "whole"), config_of(stage, world, tmp_path / "cut")
    run_stage(stage, STAGES[stage].model_validate(whole))

    command = [sys.executable, "-c", DRIVER, stage, json.dumps(cut), str(KILLED_AFTER)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert (tmp_path / "cut" / f"checkpoint-{SAVE}").is_dir()
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    run_stage(stage, STAGES[stage].model_validate(cut))

    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")
    last = f"checkpoint-{STEPS}"
    assert_same_optimizer(tmp_path / "cut" / last, tmp_path / "whole" / last)
    if stage == "train":
        assert_same_weights(tmp_path / "cut" / last / "reference", tmp_path / "whole" / last / "reference")
        assert samples(tmp_path / "cut") == samples(tmp_path / "whole")
        orders = [[row["question"] for row in samples(tmp_path / "whole") if row["step"] // 2 == e] for e in range(3)]
        assert len({tuple(order) for order in orders}) > 1  # each epoch has an order of its own


TIMES = ("runtime", "per_second", "step_time")


def metrics(folder: Path):
    return [
        {key: value for key, value in row.items() if not any(word in key for word in TIMES)}
        for _, row in read_rows(folder / "metrics.jsonl")
        if "train_runtime" not in row  # the mean loss of the last start's steps
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
