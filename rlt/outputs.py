"""The life of a stage's output on disk: begin, refuse, resume, finish.

An output is a folder, or one file of rows. Next to the results is `stage.json` (for a file: `FILE.stage.json`) with the
resolved configuration, versions, the date that chat templates print, whether the stage is complete, and its inputs
(outputs of other stages, fingerprints of other files). A process that writes an output holds the lock `.stage.lock`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, TypedDict, cast

from rlt.config import StageConfig
from rlt.data.fingerprints import Fingerprint, fingerprint, unchanged
from rlt.data.rows import ROW_FILES, write_text
from rlt.errors import RltError, RunError
from rlt.locks import hold, release
from rlt.text.clock import pinned_date
from rlt.types import JsonMap, JsonRow

# Keys that do not affect results: they may differ when a stage resumes.
INCIDENTAL = frozenset({
    "output", "launch", "batch_tokens", "batch_size", "max_in_flight", "timeout", "retry_for", "url",
    "api_key_env", "student_api_key_env", "workers", "ray", "ray_workers", "student_placement", "grade_timeout",
    "grade_workers", "allow_overlap",
    *(f"engine_options.{key}" for key in (
        "gpu_memory_utilization", "tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs",
        "max_num_batched_tokens", "enforce_eager", "cpu_offload_gb")),
    *(f"trainer.{key}" for key in (
        "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port",
        "vllm_gpu_memory_utilization", "vllm_tensor_parallel_size", "vllm_enable_sleep_mode", "save_strategy",
        "save_steps", "save_total_limit", "gradient_checkpointing", "dataloader_num_workers", "dataloader_pin_memory",
        "disable_tqdm", "report_to", "run_name", "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo")),
})  # fmt: skip
_SERVED = re.compile(r"^https?://[^#]*")  # what follows # names the model behind an address
# In the RuntimeErrors of torch.save on a full disk.
_TORCH_SAVE = ("PytorchStreamWriter", "inline_container", "iostream")
VERSIONED = ("torch", "transformers", "trl", "datasets", "accelerate", "peft", "vllm")


class State(TypedDict, total=False):
    """Content of a `stage.json`; `unreadable` says why it cannot be read."""

    stage: str
    config: JsonRow
    versions: dict[str, str]
    date: str
    inputs: dict[str, str]
    files: dict[str, Fingerprint]
    complete: bool
    started: float
    finished: str
    seconds: float
    metrics: JsonRow
    served: list[str]
    unreadable: str


@dataclass(frozen=True)
class Result:
    """A stage's output and its numbers, which are also in `stage.json`."""

    output: Path
    metrics: JsonRow = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Duration of the stage, over all its starts."""
        return seconds_of(self.metrics)

    @property
    def exit_status(self) -> int:
        """Exit status of the command, 0 for success."""
        status = self.metrics.get("exit_status", 0)
        return status if isinstance(status, int) else 1


def seconds_of(metrics: JsonMap) -> float:
    """Duration of the stage with these metrics."""
    seconds = metrics.get("seconds", 0.0)
    return float(seconds) if isinstance(seconds, int | float) else 0.0


@dataclass
class StageFolder:
    """A stage's output while the stage runs. `result`: set if it was already complete; `resumed`: whether it had begun."""

    stage: str
    config: StageConfig
    state_file: Path
    resumed: bool
    result: Result | None
    inputs: dict[str, str]
    files: dict[str, Fingerprint]
    seconds_before: float
    started: float
    lock: IO[str] | None

    @property
    def path(self) -> Path:
        return Path(self.config.output)

    def finish(self, metrics: JsonMap) -> Result:
        """Marks the stage complete and returns its Result.

        `seconds` is the sum over all starts; a killed start counts until the last file it wrote.
        """
        if not is_main_process():
            return Result(self.path, dict(metrics))
        elapsed = round(self.seconds_before + time.time() - self.started, 3)
        numbers = {"seconds": elapsed, **metrics}
        finished = datetime.now(UTC).isoformat()
        self._write_state({"complete": True, "finished": finished, "seconds": elapsed, "metrics": numbers})
        release(self.lock)
        return Result(self.path, numbers)

    def _write_state(self, more: JsonMap) -> None:
        state = {
            "stage": self.stage, "config": _dumped(self.config), "versions": versions(), "date": pinned_date(),
            "inputs": self.inputs, "files": self.files,
        }  # fmt: skip
        with writing(self.state_file):
            write_text(self.state_file, json.dumps({**state, **more}, indent=1, ensure_ascii=False) + "\n")


def is_main_process() -> bool:
    """Whether this is the only process, or the first of those launched together."""
    return os.environ.get("RANK", "0") == "0"


def begin(stage: str, config: StageConfig) -> StageFolder:
    """The output of `stage`: new, resumed, or already complete.

    Raises RunError if it was made with a different configuration or from different inputs (with the keys that differ and
    two commands that help), if it contains files that rlt did not create, or if another process is writing it. Of
    processes launched together, the first one begins.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        with PartialState().main_process_first():
            return _begin(stage, config)
    return _begin(stage, config)


def _begin(stage: str, config: StageConfig) -> StageFolder:
    output = Path(config.output)
    try:
        _folder_of(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{output}: cannot be created ({error.strerror}). Choose another --output.") from error
    state, lock = read_state(output), None
    if is_main_process() and not (state and state["complete"]):
        lock = _hold(output)
        state = read_state(output)  # as the previous holder left it
    try:
        if state is None:
            _refuse_foreign(output)
        else:
            _refuse_changes(stage, config, state, output)
    except RunError:
        release(lock)
        raise
    complete = state is not None and state["complete"]
    files = files_read_by(config) if is_main_process() and not complete else {}
    folder = StageFolder(
        stage, config, state_file_of(output), state is not None, None, inputs_of(config), files, _seconds(state, output),
        time.time(), lock,
    )  # fmt: skip
    if state is not None and state["complete"]:
        folder.result = Result(output, state["metrics"])
        release(lock)
    elif is_main_process():
        folder._write_state({"complete": False, "started": folder.started, "seconds": folder.seconds_before})
    return folder


def _refuse_foreign(output: Path) -> None:
    # A partial state is rlt's own: the process died while writing the first one.
    ours = (".stage.json.", ".stage.lock")
    if output.is_dir() and any(not file.name.startswith(ours) for file in output.iterdir()):
        raise RunError(
            f"{output}: contains files that rlt did not create. Choose another --output, or empty the folder first."
        )
    if output.is_file():
        raise RunError(
            f"{output}: already exists, and rlt did not create it. Choose another --output, or remove it first."
        )


def _refuse_changes(stage: str, config: StageConfig, state: State, output: Path) -> None:
    if "unreadable" in state:
        raise RunError(
            f"{state_file_of(output)}: cannot be read ({state['unreadable']}). Start over (`rlt run RECIPE --restart`, or "
            f"remove {' and '.join(map(str, files_of(output)))})."
        )
    if state.get("stage") != stage:
        raise RunError(f"{output}: made by the stage `{state.get('stage')}`, not `{stage}`. Choose another --output.")
    changes = differences(state, config)
    if changes:
        raise RunError(
            f"{output}: made with a different configuration: {'; '.join(changes)}. Results must not be mixed. Either keep it "
            f"and write elsewhere (`rlt run RECIPE --name NEW_NAME`, or `rlt {stage} ... --output OTHER`), or start over "
            f"(`rlt run RECIPE --restart`, or remove {' and '.join(map(str, files_of(output)))})."
        )


def _seconds(state: State | None, output: Path) -> float:
    """Seconds of earlier starts, up to the newest file: after a `kill -9` there is nothing else to measure by."""
    if state is None or "started" not in state:
        return 0.0
    files = [*output.rglob("*")] if output.is_dir() else files_of(output)
    written = [file.stat().st_mtime for file in files if file.is_file() and file != _lock_file_of(output)]
    return state["seconds"] + max(0.0, max(written, default=0.0) - state["started"])


# -- what an output was made with and from -----------------------------------------------------------------------------


def differences(state: State, config: StageConfig) -> list[str]:
    """Why a stage with this configuration cannot resume the output with this state, one line each; empty if it can.

    Compares keys that affect results (not INCIDENTAL ones) and inputs. Paths inside a run are compared relative to it, so
    that a run's folder may be renamed.
    """
    if "unreadable" in state:
        return [f"its `stage.json` cannot be read ({state['unreadable']})"]
    now = _dumped(config)
    state = _moved(state, str(state["config"].get("output", now["output"])), str(now["output"]))
    if "format" in now and now["format"] is None:
        now["format"] = state["config"].get("format")  # resolved when the stage began
    return (
        changed_keys(state["config"], now)
        + [
            f"its input {path} has been regenerated or removed since"
            for path, finished in state.get("inputs", {}).items()
            if (read_state(Path(path)) or {}).get("finished") != finished
        ]
        + [
            f"its input {path} has been edited since"
            for path, known in state.get("files", {}).items()
            if os.path.exists(path) and not unchanged(Path(path), known)
        ]
    )


def _moved(state: State, there: str, now: str) -> State:
    """The state with paths in the run's old folder moved to its new one; `there`, `now`: the output then and now."""
    old, new = list(Path(there).parts), list(Path(now).parts)
    while old and new and old[-1] == new[-1]:
        old.pop()
        new.pop()
    if not old or old == new:
        return state
    root, here = str(Path(*old)), str(Path(*new))

    def moved(value: object) -> object:
        if isinstance(value, str):
            return here + value[len(root) :] if value == root or value.startswith(root + os.sep) else value
        if isinstance(value, dict):
            return {moved(key): moved(item) for key, item in value.items()}
        return [moved(item) for item in value] if isinstance(value, list) else value

    paths = {key: moved(value) for key, value in state.items() if key in ("config", "inputs", "files")}
    return cast(State, {**state, **paths})


def changed_keys(there: JsonMap, now: JsonMap, prefix: str = "") -> list[str]:
    """The keys in which two dumped configurations differ, except INCIDENTAL ones, as lines: `train.x`: 1 there, 2 now."""
    lines = []
    for key in sorted({*there, *now}):
        name, old, new = prefix + key, there.get(key), now.get(key)
        if name in INCIDENTAL:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            lines += changed_keys(old, new, f"{name}.")
        elif (_served(old) != _served(new)) if name == "student" else (old != new):
            lines.append(f"`{name}`: {old!r} there, {new!r} now")
    return lines


def _served(students: object) -> object:
    """Students without their servers' addresses."""
    return [_SERVED.sub("served", name) for name in students] if isinstance(students, list) else students


def inputs_of(config: StageConfig) -> dict[str, str]:
    """Path -> finishing time, for each complete output of a stage that the configuration names.

    A file inside an output (`quarters/band-1.jsonl`) stands for that output.
    """
    found = {}
    for text in _texts({key: value for key, value in _dumped(config).items() if key != "output"}):
        if text and os.path.exists(text):
            for path in (Path(text), Path(text).parent):
                finished = (read_state(path) or {}).get("finished")
                if finished is not None:
                    found[str(path)] = finished
                    break
    return found


def files_read_by(config: StageConfig) -> dict[str, Fingerprint]:
    """Path -> fingerprint, for each file or folder named in the configuration that no stage made."""
    found = {}
    for text in _texts({key: value for key, value in _dumped(config).items() if key not in INCIDENTAL}):
        path = Path(text)
        if text and os.path.exists(text) and (path.is_file() or not (read_state(path) or {}).get("finished")):
            prints = fingerprint(path)
            if prints:
                found[text] = prints
    return found


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _dumped(config: StageConfig) -> JsonRow:
    # By way of JSON, so that it equals what is read from a state file.
    dumped: JsonRow = json.loads(config.model_dump_json())
    return dumped


# -- files -------------------------------------------------------------------------------------------------------------


def state_file_of(output: Path) -> Path:
    """Path of the `stage.json` of this output."""
    output = Path(output)
    return output.with_name(f"{output.name}.stage.json") if output.suffix in ROW_FILES else output / "stage.json"


def _lock_file_of(output: Path) -> Path:
    state = state_file_of(output)
    return state.with_name(f".{state.stem}.lock")


def _folder_of(output: Path) -> Path:
    return output.parent if output.suffix in ROW_FILES else output


def files_of(output: Path) -> list[Path]:
    """Paths to remove to start over: the folder, or the file with its state, lock and partial rows."""
    output = Path(output)
    if output.suffix not in ROW_FILES:
        return [output] if output.exists() else []
    rows = output.with_name(f"{output.name}.rows.jsonl")  # of a Parquet file that is not complete
    return [file for file in (output, rows, state_file_of(output), _lock_file_of(output)) if file.exists()]


def remove_output(output: Path) -> None:
    """Remove a stage's output and its state. Raises RunError while another process is writing it."""
    check_free(output)
    for path in files_of(output):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def read_state(output: Path) -> State | None:
    """`stage.json` of a stage's output; None if it is missing, or if a complete output is gone and only its state is left.

    A corrupt one counts as incomplete, with the reason under `unreadable`: `begin` refuses it, `--restart` removes it.
    """
    path = state_file_of(output)
    if not path.is_file():
        return None
    try:
        state: State = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return {"complete": False, "config": {}, "unreadable": str(error) or type(error).__name__}
    if not isinstance(state, dict) or not {"complete", "config", "stage"} <= state.keys():
        return {"complete": False, "config": {}, "unreadable": "not a stage's state"}
    return state if Path(output).exists() or not state["complete"] else None


def complete_state(output: Path) -> State | None:
    """`stage.json` of a complete output; None for any other."""
    state = read_state(output)
    return state if state is not None and state["complete"] else None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns errors of writing to `path` (full disk, read-only), also those of safetensors and torch.save, into RunErrors."""
    from safetensors import SafetensorError

    try:
        yield
    except RltError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _TORCH_SAVE):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise RunError(
            f"{path}: cannot be written ({reason}). Free disk space or fix the permissions; the same command resumes."
        ) from error


# -- one writer --------------------------------------------------------------------------------------------------------


def check_free(output: Path) -> None:
    """Raise RunError, naming the process, if another process is writing this output."""
    if _lock_file_of(output).exists():
        release(_hold(Path(output)))


def _hold(output: Path) -> IO[str] | None:
    return hold(_lock_file_of(output), output)


# -- versions ----------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Versions of rlt, Python and the installed libraries that affect results."""
    from rlt import __version__

    found = {"rlt": __version__, "python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def complete_before(stage: str, config: StageConfig) -> Result | None:
    """The stage's Result if it is already complete, before any input is read; else None."""
    return begin(stage, config).result if complete_state(config.output) else None
