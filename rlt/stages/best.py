"""The result of feedback rounds: the best round's model, copied to a fixed place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rlt.config import BestConfig
from rlt.errors import RunError
from rlt.outputs import Result, begin, complete_state
from rlt.rounds import decision_of

MODEL = "model"


def run(config: BestConfig) -> Result:
    """Copies the best round's model to the output's folder `model`; metrics: `best`, the round.

    Files are hard links if the file system has them. Raises RunError if that model is not complete.
    """
    folder = begin("best", config)
    if folder.result:
        return folder.result
    decided = [decision for output in config.decisions if (decision := decision_of(output)) is not None]
    best = decided[-1]["best"] if decided else 0
    source = Path(config.models[best])
    if not complete_state(source):
        raise RunError(f"{source}: the model of round {best} is not complete.")
    target = folder.path / MODEL
    shutil.rmtree(target, ignore_errors=True)  # a partial copy left by a killed start
    shutil.copytree(source, target, copy_function=_link, ignore=shutil.ignore_patterns(".stage.lock", "checkpoint-*"))
    return folder.finish({"best": best, "rounds": len(decided)})


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        return str(shutil.copy2(source, target))
    return target
