"""How a stage is launched: which configuration, on how many processes, and who may connect to them."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlt.config import TrainConfig
from rlt.errors import ConfigError, DependencyError, RunError
from rlt.launching import environment, launch_stage, rendezvous


def config(folder: Path, **keys: object) -> TrainConfig:
    values = {"output": folder / "out", "model": "m", "data": "d.jsonl", "student": "s", **keys}
    return TrainConfig.model_validate(values)


def test_a_launch_that_needs_deepspeed_says_so_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"'deepspeed-zero3' needs DeepSpeed: pip install 'rlt\[deepspeed\]'"):
        launch_stage("train", config(tmp_path, launch="deepspeed-zero3"))


@pytest.mark.parametrize(("text", "error"), [("a: [", "not valid YAML"), ("- ddp", "not an accelerate configuration")])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=error):
        launch_stage("train", config(tmp_path, launch=str(tmp_path / "own.yaml")))


@pytest.mark.parametrize(
    ("checkpoint", "says"),
    [
        (None, "starts from scratch: no checkpoint was saved"),
        ("trainer_state.json", "starts from scratch"),
        ("complete.json", "resumes from checkpoint-25"),
    ],
)
def test_only_what_was_saved_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str | None, says: str
) -> None:
    if checkpoint:
        (tmp_path / "out" / "checkpoint-25").mkdir(parents=True)
        (tmp_path / "out" / "checkpoint-25" / checkpoint).touch()
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(returncode=1))
    with pytest.raises(RunError, match=f"exited with status 1. The same command {says}"):
        launch_stage("train", config(tmp_path, launch="ddp"))


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({}, True),
        ({"num_machines": 1, "rdzv_backend": "static"}, True),
        ({"num_machines": 2}, False),
        ({"main_process_ip": "10.0.0.1"}, False),
        ({"rdzv_backend": "c10d"}, False),
    ],
)
def test_processes_of_one_machine_meet_on_the_loopback_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], ours: bool
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert bool(rendezvous(options)) == ours
    assert environment(config(tmp_path), options).get("GLOO_SOCKET_IFNAME") == ("lo" if ours else None)


def test_the_users_interfaces_and_a_vllm_servers_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    served = config(tmp_path, trainer={"use_vllm": True, "vllm_mode": "server"})
    assert environment(served, {})["GLOO_SOCKET_IFNAME"] == "eth7"
    assert "NCCL_SOCKET_IFNAME" not in environment(served, {})
    assert environment(config(tmp_path), {})["NCCL_SOCKET_IFNAME"] == "lo"
