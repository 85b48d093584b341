"""`rlt init`: guesses columns from a file, detects the hardware, and writes a recipe. Asks nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rlt.config import DataConfig
from rlt.data.problems import problem_of, rows_of
from rlt.draft import LOOKED_AT, Data, Draft, InitConfig
from rlt.errors import ConfigError, DataError
from rlt.planning.machine import GIB, load_gpu
from rlt.planning.shapes import load_shape
from rlt.recipe import NAME
from rlt.text.formats import check_problem, load_format
from rlt.types import JsonRow

GUESSES = {  # spellings without case and punctuation, most likely first
    "question": ("question", "problem", "prompt", "instruction", "query", "input", "task"),
    "solution": ("solution", "workedsolution", "groundtruthsolution", "output", "completion", "response", "target"),
    "answer": ("answer", "finalanswer", "expectedanswer", "groundtruth", "label", "result"),
    "explanation": ("explanation", "reasoning", "thought", "chainofthought", "cot", "thinking", "rationale", "trace"),
}
SMALL = 300e6  # parameters that a CPU can train


def init(config: InitConfig) -> list[str]:
    """Writes the recipe; returns what was chosen and why, one line each.

    Raises DataError for a file without readable problems, ConfigError if the recipe exists.
    """
    data = _looked_at(config)
    name = re.sub(r"[^\w.-]", "-", Path(config.data).stem).lstrip("-.") or "mine"
    output = config.output or Path(f"{name}.yaml")
    if output.exists():
        raise ConfigError(f"{output}: already exists. Choose another --output, or remove it.")
    if not re.fullmatch(NAME, name):
        name = "mine"
    gpu, count, hardware = _hardware(config)
    draft = Draft(config, data, name, output, gpu, count)
    choice = draft.choose()
    draft.recipe(choice)  # raises what `rlt check` would
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(draft.text(choice), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror}).") from error
    return [*draft.said(choice, hardware), f"next: rlt check {output}, then rlt run {output}"]


# -- the data --------------------------------------------------------------------------------------------------------------


def _looked_at(config: InitConfig) -> Data:
    rows = iter(rows_of(DataConfig(path=config.data)))
    first = list(islice(rows, LOOKED_AT))
    if not first:
        raise DataError(f"{config.data}: has no rows.")
    columns = _guessed(first[0][1], first[0][0], config.columns)
    problems, errors = [], []
    for number, (where, row) in enumerate(first):
        try:
            problem = problem_of(row, where, str(number), columns)
            check_problem(load_format(None), problem, where)
            problems.append(problem)
        except DataError as error:
            errors.append(error)
    if len(problems) < 4:
        raise errors[0] if errors else DataError(f"{config.data}: has {len(problems)} rows; a run needs at least 4.")
    return Data(len(first) + sum(1 for _ in rows), len(errors), columns, problems)


def _guessed(row: JsonRow, where: str, given: dict[str, str]) -> dict[str, str]:
    """The mapping for `data.columns`; empty if rlt reads the row as it is."""
    if not given:
        try:
            problem_of(row, where, "0")
        except DataError:
            pass
        else:
            return {}
    names = {re.sub(r"\W|_", "", str(column)).lower(): str(column) for column in row}
    taken = set(given.values())
    columns = dict(given)
    for ours, spellings in GUESSES.items():
        found = next((names[one] for one in spellings if one in names and names[one] not in taken), None)
        if ours not in columns and found is not None:
            columns[ours] = found
            taken.add(found)
    if "solution" not in columns and "answer" in columns:
        columns["solution"] = columns["answer"]  # the teacher needs something that the student has to understand
    for ours in ("question", "solution"):
        if ours not in columns:
            raise DataError(
                f"{where}: no column looks like the {ours}; the row has {', '.join(map(str, row))}. "
                f"Name it: `--columns.{ours} THEIRS`."
            )
    return {ours: theirs for ours, theirs in columns.items() if ours != theirs or ours in given or ours == "solution"}


# -- the hardware ----------------------------------------------------------------------------------------------------------


def _hardware(config: InitConfig) -> tuple[str | None, int, str]:
    """`(gpu, count, origin)`; no GPU if this machine has none and the given model is small enough for a CPU."""
    if config.gpu is not None:
        return load_gpu(config.gpu).name, config.count or 1, "as given"
    found = list(_gpus())
    if found:
        name, count = found[0], config.count or len(found)
        return _known(*name), count, f"found here ({name[0]})"
    if config.model is not None and load_shape(config.model).parameters <= SMALL:
        return None, 1, f"no GPU found; {os.cpu_count()} CPU cores, enough for a model this small"
    return "rtx4090-24gb", config.count or 1, "no GPU found, so this one is assumed; choose with --gpu and --count"


def _gpus() -> Iterator[tuple[str, float]]:
    """Name and GiB of each NVIDIA GPU of this machine."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return
    query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in said.stdout.splitlines() if said.returncode == 0 else ():
        name, _, memory = line.rpartition(",")
        if memory.strip().isdigit():
            yield name.strip(), float(memory) / 1024


def _known(name: str, gib: float) -> str:
    """The GPU of `rlt plan` with this name, else the largest with no more memory."""
    from rlt.planning.machine import known_gpus

    plain = re.sub(r"\W", "", name).lower()
    fits = [gpu for gpu in known_gpus() if gpu.memory <= gib * GIB * 1.03] or [
        min(known_gpus(), key=lambda g: g.memory)
    ]
    same = [gpu for gpu in fits if gpu.name.split("-")[0] in plain]
    return max(same or fits, key=lambda gpu: (gpu.memory, -gpu.flops)).name
