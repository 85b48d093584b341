"""The machine: the numbers of a GPU, and how a launch configuration spreads training over several."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple, cast

import yaml

from rlt.config.launch import launch_file, launch_options
from rlt.errors import ConfigError
from rlt.types import JsonRow

GIB = 2**30
GB = 10**9
GPUS = resources.files("rlt") / "shipped" / "gpus.yaml"


class Gpu(NamedTuple):
    name: str
    memory: float
    """bytes"""
    flops: float
    """dense bfloat16 FLOP/s"""
    bandwidth: float
    """bytes/s"""


def load_gpu(name: str) -> Gpu:
    """The GPU with this name, or with the only name that begins with it (`h100`). Raises ConfigError."""
    known = {gpu.name: gpu for gpu in known_gpus()}
    begins = [full for full in known if _plain(full).startswith(_plain(name))]
    if name not in known and len(begins) == 1:
        name = begins[0]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"--gpu: unknown GPU {name!r}{hint}; expected one of {', '.join(known)}.")
    return known[name]


def known_gpus() -> list[Gpu]:
    """Every GPU of rlt/shipped/gpus.yaml."""
    known = yaml.safe_load(GPUS.read_text(encoding="utf-8"))
    return [
        Gpu(name, numbers["memory_gib"] * GIB, numbers["tflops"] * 1e12, numbers["bandwidth_tb_s"] * 1e12)
        for name, numbers in known.items()
    ]


def _plain(name: str) -> str:
    return name.lower().replace("-", "")


@dataclass(frozen=True, slots=True)
class Launch:
    """How training is spread over GPUs: read from an accelerate configuration."""

    kind: str  # single, ddp, fsdp2, zero2, zero3
    offload_optimiser: bool = False
    offload_weights: bool = False
    processes: int | None = None

    @property
    def shards_weights(self) -> bool:
        return self.kind in ("fsdp2", "zero3")

    @property
    def shards_optimiser(self) -> bool:
        return self.kind in ("fsdp2", "zero2", "zero3")


def load_launch(name: str | None) -> Launch:
    """How `launch` spreads training, by its accelerate configuration; None is one process. Raises ConfigError."""
    if name is None:
        return Launch("single", processes=1)
    values = launch_options(launch_file(name))
    processes = cast("int | None", values.get("num_processes"))
    kind = values.get("distributed_type", "NO")
    if kind == "DEEPSPEED":
        deepspeed = cast(dict[str, str], values.get("deepspeed_config", {}))
        return Launch(
            f"zero{deepspeed.get('zero_stage', 2)}",
            deepspeed.get("offload_optimizer_device", "none") != "none",
            deepspeed.get("offload_param_device", "none") != "none",
            processes,
        )
    if kind == "FSDP":
        offload = bool(cast(JsonRow, values.get("fsdp_config", {})).get("fsdp_offload_params"))
        return Launch("fsdp2", offload, offload, processes)
    return Launch("single", processes=1) if kind == "NO" else Launch("ddp", processes=processes)
