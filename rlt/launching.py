"""Starting a training stage under `accelerate launch`, on as many processes as its configuration says."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import yaml

from rlt.config import StageConfig
from rlt.errors import ConfigError, RunError
from rlt.runs import Result, read_state, write_text

SHIPPED = resources.files("rlt") / "shipped" / "accelerate"


def launch_stage(stage: str, config: StageConfig) -> Result:
    """The stage's Result, after `accelerate launch` ran it in processes of its own. No shell is involved.

    Raises ConfigError for an unknown `launch`, RunError when the processes fail.
    """
    accelerate = launch_file(getattr(config, "launch", None) or "single")
    output = Path(config.output)
    request = output.parent / f".{output.name}.launch.json"
    write_text(request, config.model_copy(update={"launch": None}).model_dump_json())
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(accelerate)]
    command += [*processes(accelerate), "-m", "rlt.launching"]
    try:
        status = subprocess.run([*command, stage, str(request)], check=False).returncode
    finally:
        request.unlink(missing_ok=True)
    state = read_state(output)
    if status != 0 or state is None or not state.get("complete"):
        raise RunError(
            f"{stage}: its processes ended with status {status}. The same command goes on from the last checkpoint."
        )
    return Result(output, state["metrics"])


def launch_file(name: str) -> Path:
    """The accelerate configuration of that shipped name, or the YAML file of that path."""
    shipped = sorted(entry.name.removesuffix(".yaml") for entry in SHIPPED.iterdir() if entry.name.endswith(".yaml"))
    if name in shipped:
        return Path(str(SHIPPED / f"{name}.yaml"))
    if Path(name).is_file():
        return Path(name)
    raise ConfigError(f"launch: {name!r} is neither shipped ({', '.join(shipped)}) nor a file.")


def processes(accelerate: Path) -> list[str]:
    """accelerate's flag for one process on each visible GPU, where its configuration does not say how many; else none."""
    import torch

    if yaml.safe_load(accelerate.read_text(encoding="utf-8")).get("num_processes") is not None:
        return []
    return ["--num_processes", str(max(1, torch.cuda.device_count()))]


def main() -> None:
    """What each launched process does: run the stage that the request file names."""
    from rlt.cli import guarded

    stage, request = sys.argv[1:]
    sys.exit(guarded(lambda: _run(stage, Path(request))))


def _run(stage: str, request: Path) -> int:
    from rlt.config import STAGES
    from rlt.pipeline import run_stage

    result = run_stage(stage, STAGES[stage].model_validate_json(request.read_text(encoding="utf-8")))
    return int(result.metrics.get("exit_status", 0))


if __name__ == "__main__":
    main()
