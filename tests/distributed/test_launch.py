"""`rlt warmup --launch own.yaml`: two CPU processes over gloo, reached from this machine alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.words import make_model, make_problems

ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU # accelerate's name for one process a device, also where the devices are CPUs
use_cpu: true
mixed_precision: "no"
num_machines: 1
num_processes: 2
"""


@pytest.mark.slow
def test_a_launched_stage_trains_on_two_processes_that_only_this_machine_can_reach(tmp_path: Path) -> None:
    model, data = make_model(tmp_path / "model"), make_problems(tmp_path / "problems.jsonl", 8)
    (tmp_path / "own.yaml").write_text(ACCELERATE)
    trainer = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1}
    flags = {
        "launch": str(tmp_path / "own.yaml"), "output": str(tmp_path / "run"), "model": model, "data": data,
        "format": "words", "trainer": json.dumps(trainer),
    }  # fmt: skip
    command = [sys.executable, "-m", "rlt.cli", "warmup", *(word for k, v in flags.items() for word in (f"--{k}", v))]
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    listening: set[str] = set()
    workers = 0
    while running.poll() is None:
        children = psutil.Process(running.pid).children(recursive=True)
        listening |= {address for child in children for address in addresses(child)}
        workers = max(workers, sum(is_worker(child) for child in children))
        time.sleep(0.05)
    log_text = (tmp_path / "log").read_text()
    assert running.returncode == 0, log_text[-3000:]
    assert workers == 2
    assert listening == {"127.0.0.1"}
    state = json.loads((tmp_path / "run" / "stage.json").read_text())
    assert (state["complete"], state["metrics"]["steps"]) == (True, 2)
    # Eight examples: an epoch is two steps of two processes with two each.
    assert json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())["epoch"] == 1.0
    assert "Traceback" not in log_text
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "problems" not in again.stdout  # complete: no process is launched, and nothing is read again


def addresses(process: psutil.Process) -> list[str]:
    try:
        found = [c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
    return [ip.removeprefix("::ffff:") for ip in found]


def is_worker(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    return "rlt.launching" in words and "launch" not in words
