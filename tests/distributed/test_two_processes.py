"""Two CPU processes over gloo: the same rewards and weights as one, no hang on uneven ranks, sharded = unsharded."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlt.data.rows import read_rows
from tests.words import make_model, make_problems

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


def launch(processes: int, script: str, *words: str) -> None:
    """Run a worker script; with several processes by torchrun on a free port of the loopback address."""
    command = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1", "RLT_QUIET": "1"}
    done = subprocess.run(
        [*command, str(HERE / script), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("sampler", ["canned", "engine"])
def test_two_processes_train_as_one_does(tmp_path, sampler):
    model, student = make_model(tmp_path / "model"), make_model(tmp_path / "student", 1)
    data = make_problems(tmp_path / "problems.jsonl", 12)

    def train(processes, **keys):
        trainer = {
            "max_steps": 3, "num_generations": 4, "per_device_train_batch_size": 8 // processes, "learning_rate": 1e-2,
            "beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "max_completion_length": 12, "temperature": 1.0,
            "save_strategy": "no", "optim": "sgd",
        }  # fmt: skip
        config = {"output": str(tmp_path / f"by{processes}"), "format": "words", "model": model, "student": [student],
                  "data": data, "trainer": trainer, "placebos": 2, **keys}  # fmt: skip
        launch(processes, "train_worker.py", json.dumps(config), str(tmp_path / f"record{processes}"), sampler)
        rewards = json.loads((tmp_path / f"record{processes}.0").read_text())
        metrics = [row for _, row in read_rows(tmp_path / f"by{processes}" / "metrics.jsonl") if "reward" in row]
        return rewards, metrics, load_file(tmp_path / f"by{processes}" / "model.safetensors")

    one_rewards, one_metrics, one_weights = train(1)
    two_rewards, two_metrics, two_weights = train(2, student_placement="sharded")  # and the student over both of them
    assert len(one_rewards) == 3
    assert all(len(set(rewards)) > 4 for rewards in one_rewards)  # not all explanations are the same
    for ours, theirs in zip(one_rewards, two_rewards, strict=True):
        # The same rewards, and so the same advantages: those are computed from all of a group's rewards.
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(one_metrics, two_metrics, strict=True):
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=1e-4)
        assert ours["rlt/r_kl"] == pytest.approx(theirs["rlt/r_kl"], abs=1e-4)
        assert ours["reward_std"] == pytest.approx(theirs["reward_std"], abs=1e-4)
    start = load_file(Path(model) / "model.safetensors")
    assert any(not torch.equal(start[name], one_weights[name]) for name in start)
    for name in one_weights:
        torch.testing.assert_close(one_weights[name], two_weights[name], atol=1e-5, rtol=1e-4)


def test_a_model_sharded_over_ranks_scores_the_same_and_uneven_ranks_do_not_hang(tmp_path):
    launch(2, "scoring_worker.py", make_model(tmp_path / "model"), str(tmp_path / "scored"))
    first, second = (json.loads((tmp_path / f"scored.{rank}").read_text()) for rank in (0, 1))
    assert (first["rows"], second["rows"]) == ([3, 3, 3], [0, 1, 0])
    assert first["worst"] < 1e-4
    assert second["worst"] < 1e-4


def test_a_policy_that_is_sharded_and_its_own_student_scores_as_a_whole_one_and_is_averaged_whole(tmp_path):
    folders = make_model(tmp_path / "model"), make_model(tmp_path / "other", 1)
    launch(2, "self_worker.py", *folders, str(tmp_path / "scored"))
    found = [json.loads((tmp_path / f"scored.{rank}").read_text()) for rank in (0, 1)]
    assert [one["rows"] for one in found] == [3, 1]
    for one in found:
        assert one["difference"] < 1e-4
        assert one["average"] < 1e-6
        assert one["refused"]  # `exact` needs a whole student
