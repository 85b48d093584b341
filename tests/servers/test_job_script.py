"""The cluster's Slurm script with stand-ins for srun, vllm, curl and rlt: which servers each stage meets, and what is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "cluster" / "job.slurm"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

STAND_INS = {
    "scontrol": "printf 'trainer\\nsampler\\njudge\\n'",
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    # Holds its port, a file, from when it has loaded its model until it is told to end.
    "vllm": """
        model="$2"
        while [[ $# -gt 0 ]]; do case "$1" in --host) host="$2" ;; --port) port="$2" ;; esac; shift; done
        /bin/sleep 0.1
        mkdir "ports/$host:$port" 2>/dev/null || { echo "port $port is taken" >&2; exit 1; }
        trap 'rm -r "ports/$host:$port"; exit 0' TERM
        echo "$model" >"ports/$host:$port/model"
        while true; do /bin/sleep 0.05; done""",
    "curl": 'address="${!#}"; address="${address#http://}"; [[ -e "ports/${address%/health}/model" ]]',
    # Notes what answers where, then is complete, unless it is to take for ever.
    "rlt": """
        echo "$1:" $(cd ports && for port in *; do [[ ! -e "$port" ]] || echo "$port=$(cat "$port/model")"; done) >>log
        if [[ -e "forever-$1" ]]; then exec /bin/sleep 60; fi
        mkdir -p "runs/cluster/$1"; echo '"complete": true' >"runs/cluster/$1/stage.json" """,
    "sleep": "exec /bin/sleep 0.02",
}


SCRIPTS: list[subprocess.Popen[str]] = []


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    """A folder in which the script can run; what a failed test leaves running ends with it."""
    commands = tmp_path / "bin"
    for folder in (commands, tmp_path / "ports"):
        folder.mkdir()
    for name, text in STAND_INS.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (commands / name).chmod(0o755)
    yield tmp_path
    while SCRIPTS:
        script = SCRIPTS.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)  # the session that was started here
        script.wait()


def start(node: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PATH": f"{node / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n[0-2]"}
    script = subprocess.Popen(
        ["bash", str(SCRIPT)], cwd=node, env=environment, text=True, stderr=subprocess.PIPE, start_new_session=True
    )
    SCRIPTS.append(script)
    return script


def log(node: Path) -> list[str]:
    return (node / "log").read_text().splitlines() if (node / "log").exists() else []


def test_each_stage_meets_the_servers_that_it_needs_and_none_is_left(node: Path) -> None:
    script = start(node)
    _, errors = script.communicate(timeout=30)
    assert script.returncode == 0, errors
    assert log(node) == [
        "warmup:",
        "train: judge:8001=Qwen/Qwen2.5-32B-Instruct sampler:8000=runs/cluster/warmup",
        "collect: sampler:8000=runs/cluster/train",
        "select:",
        "distill:",
    ]
    assert list((node / "ports").iterdir()) == []


def test_what_is_complete_is_skipped(node: Path) -> None:
    start(node).communicate(timeout=30)
    (node / "log").unlink()
    start(node).communicate(timeout=30)
    assert log(node) == ["warmup:", "select:", "distill:"]  # these see by themselves that nothing is left to do


def test_slurms_signal_ends_the_stage_and_its_servers(node: Path) -> None:
    (node / "forever-train").write_text("")
    script = start(node)
    while len(log(node)) < 2:
        assert script.poll() is None
        time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=10)
    assert script.returncode == 143
    assert list((node / "ports").iterdir()) == []


def test_a_port_that_somebody_else_holds_is_refused(node: Path) -> None:
    (node / "ports" / "sampler:8000").mkdir()
    (node / "ports" / "sampler:8000" / "model").write_text("runs/other/warmup")
    script = start(node)
    _, errors = script.communicate(timeout=30)
    assert script.returncode == 1
    assert "something answers at http://sampler:8000 already" in errors
    assert [line.split(":")[0] for line in log(node)] == ["warmup"]


def test_a_server_that_ends_before_it_answers_ends_the_job(node: Path) -> None:
    (node / "ports" / "judge:8001").mkdir()  # taken, by something that is no server
    script = start(node)
    _, errors = script.communicate(timeout=30)
    assert script.returncode == 1
    assert "the server at http://judge:8001 ended before it answered" in errors
    assert [path.name for path in (node / "ports").iterdir()] == ["judge:8001"]
