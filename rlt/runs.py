"""What a stage leaves on disk and how it is found again: begin, refuse, resume, finish.

A stage's output is a folder (or one file of rows). Beside its results stands `stage.json` (for a file:
`FILE.stage.json`): the resolved configuration, versions, and whether the stage is complete.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rlt.config import StageConfig
from rlt.errors import RunError
from rlt.rows import ROW_FILES

# Keys that say how fast or where, not what: they may differ when a stage goes on.
INCIDENTAL = frozenset({
    "output", "launch", "batch_tokens", "packing", "batch_size", "max_in_flight", "timeout", "retries", "url",
    "api_key_env", "workers", "ray", "ray_workers", "student_placement",
    "grade_timeout", "grade_workers",
})  # fmt: skip
_SERVED = re.compile(r"^https?://[^#]*")  # what follows # names the model behind an address
VERSIONED = ("torch", "transformers", "trl", "datasets", "accelerate", "peft", "vllm")


@dataclass(frozen=True)
class Result:
    """What a stage made: where, and its numbers (also in `stage.json`)."""

    output: Path
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass
class StageFolder:
    """The output of one stage while it runs. `result` is set when it was complete before; `resumed` when it was begun."""

    stage: str
    config: StageConfig
    state_file: Path
    resumed: bool
    result: Result | None
    seconds_before: float
    started: float

    @property
    def path(self) -> Path:
        return Path(self.config.output)

    def finish(self, metrics: Mapping[str, Any]) -> Result:
        """Mark the stage complete with its numbers and return its Result. `seconds` is all the time it took."""
        if not is_main_process():
            return Result(self.path, dict(metrics))
        elapsed = round(self.seconds_before + time.monotonic() - self.started, 3)
        numbers = {"seconds": elapsed, **metrics}
        _write_state(
            self.state_file, self.stage, self.config, {"complete": True, "seconds": elapsed, "metrics": numbers}
        )
        return Result(self.path, numbers)


def is_main_process() -> bool:
    """Whether this process is the only one, or the first of those that were launched together."""
    return os.environ.get("RANK", "0") == "0"


def begin(stage: str, config: StageConfig) -> StageFolder:
    """The output of `stage`, ready to be written, resumed, or already complete.

    Raises RunError if it was made with another configuration (naming the keys that differ and two commands that help), or
    if it is a folder with content that no stage of rlt made. Of processes launched together the first one begins.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        with PartialState().main_process_first():
            return _begin(stage, config)
    return _begin(stage, config)


def _begin(stage: str, config: StageConfig) -> StageFolder:
    output = Path(config.output)
    state_file = state_file_of(output)
    try:
        _folder_of(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{output}: cannot be made ({error.strerror}). Choose another --output.") from error
    state = read_state(output)
    if state is None:
        # A partial state is our own: the process died while it wrote the first one.
        if output.is_dir() and any(not file.name.startswith(".stage.json.") for file in output.iterdir()):
            raise RunError(
                f"{output}: holds files that rlt did not make. Choose another --output, or empty the folder first."
            )
        if output.is_file():
            raise RunError(f"{output}: exists, and rlt did not make it. Choose another --output, or remove it first.")
    else:
        _refuse_changes(stage, config, state, output)
    folder = StageFolder(
        stage, config, state_file, state is not None, None, (state or {}).get("seconds", 0.0), time.monotonic()
    )
    if state is not None and state.get("complete"):
        folder.result = Result(output, state["metrics"])
    elif state is None:
        _write_state(state_file, stage, config, {"complete": False})
    return folder


def _refuse_changes(stage: str, config: StageConfig, state: dict[str, Any], output: Path) -> None:
    if state.get("stage") != stage:
        raise RunError(f"{output}: made by the stage `{state.get('stage')}`, not `{stage}`. Choose another --output.")
    ours, theirs = comparable(config.model_dump(mode="json")), comparable(state["config"])
    changed = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    if changed:
        listed = "; ".join(f"`{key}`: {theirs.get(key)!r} there, {ours.get(key)!r} now" for key in changed)
        raise RunError(
            f"{output}: made with another configuration: {listed}. Mixing the two would mislead. Either keep it and write "
            f"elsewhere (`rlt run RECIPE --name NEW_NAME`, or `rlt {stage} ... --output OTHER`), or start over "
            f"(`rlt run RECIPE --restart`, or remove {output})."
        )


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a dumped configuration that decides what a stage makes: not where its servers happen to run."""
    kept = {key: value for key, value in config.items() if key not in INCIDENTAL}
    if isinstance(kept.get("trainer"), dict):
        servers = ("vllm_server_", "vllm_group_port")
        kept["trainer"] = {key: value for key, value in kept["trainer"].items() if not key.startswith(servers)}
    if isinstance(kept.get("student"), list):
        kept["student"] = [_SERVED.sub("served", name) for name in kept["student"]]
    return kept


def state_file_of(output: Path) -> Path:
    """Where the state of the stage with this output stands."""
    output = Path(output)
    return output.with_name(f"{output.name}.stage.json") if output.suffix in ROW_FILES else output / "stage.json"


def _folder_of(output: Path) -> Path:
    return output.parent if output.suffix in ROW_FILES else output


def read_state(output: Path) -> dict[str, Any] | None:
    """`stage.json` of a stage's output, or None where there is none."""
    path = state_file_of(output)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write_state(path: Path, stage: str, config: StageConfig, more: dict[str, Any]) -> None:
    state = {"stage": stage, "config": config.model_dump(mode="json"), "versions": versions(), **more}
    write_text(path, json.dumps(state, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file's text so that at every moment the old or the new one is there, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def versions() -> dict[str, str]:
    """Versions of rlt, Python and the libraries that decide results, of those that are installed."""
    from rlt import __version__

    found = {"rlt": __version__, "python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
