"""Problems of a task that needs no download, with explanations by its noisy experts if wanted."""

from __future__ import annotations

import dataclasses
import random

from rlt.config import ProblemsConfig
from rlt.data.rows import read_rows, write_rows
from rlt.outputs import Result, begin
from rlt.tasks import load_generated_task


def run(config: ProblemsConfig) -> Result:
    """The written file of problems: distinct questions, none of which is in `exclude`. Same seed, same file."""
    task = load_generated_task(config.task)
    folder = begin("problems", config)
    if folder.result:
        return folder.result
    excluded = [row["question"] for path in config.exclude for _, row in read_rows(path)]
    problems = task.generate(config.count, config.seed, config.options, excluded)
    if config.experts is not None:
        rng = random.Random(f"experts {config.seed}")
        problems = [dataclasses.replace(p, explanation=task.explain(p, config.experts, rng)) for p in problems]
    write_rows(folder.path, (problem.to_row() for problem in problems))
    return folder.finish({"problems": len(problems)})
