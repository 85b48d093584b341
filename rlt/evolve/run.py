"""`rlt evolve`: starts the workers, says what they make, and reports when all is made."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

from rlt.checking import check_search, check_steps
from rlt.config import parse_yaml
from rlt.data.rows import write_text
from rlt.errors import DependencyError, ProblemsFound, RunError, guarded
from rlt.outputs import changed_keys
from rlt.pipeline import prepare_worker, worker_environment
from rlt.recipe import Recipe
from rlt.recipe.evolution import KEY, plan_of
from rlt.types import JsonRow

EXTRAS = ("optuna", "matplotlib")
MAY_CHANGE = {"jobs", "seeds", "description", "time", "hardware", "name", "folder"}
MAY_CHANGE_IN_EVOLVE = {"children", "arms"}
WATCH = 2.0  # seconds between looks at what the workers have made


def evolve(recipe: Recipe) -> int:
    """0, once every arm of every repeat has its children, and the report is printed and stands in the run's folder.

    Several commands, also on several machines with one file system, share the work. Raises ProblemsFound for what is wrong
    with the recipe, RunError if the folder was made with another one or a worker failed, DependencyError without the extra
    `evolve`.
    """
    for package in EXTRAS:
        if importlib.util.find_spec(package) is None:
            raise DependencyError(f"`rlt evolve` needs {package}: pip install 'rlt[evolve]'")
    options = plan_of(recipe).options
    problems = check_steps(recipe, recipe.steps, connect=True).problems + check_search(recipe)
    if problems:
        raise ProblemsFound(recipe.head.name, problems)
    _claim(recipe)
    from rlt.evolve.report import Watch, write_report

    teachers = len(recipe.head.seeds) * len(options.arms) * (options.children + 1)
    print(f"{recipe.head.name}: {teachers} teachers, {recipe.head.jobs} at a time -> {recipe.folder}", flush=True)
    watch = Watch(recipe)
    workers = _started(recipe) if watch.missing() else []
    while alive := [worker.sentinel for worker in workers if worker.is_alive()]:
        watch.tell()
        wait(alive, timeout=WATCH)
    watch.tell()
    if watch.missing():
        failed = ", ".join(worker.name for worker in workers if worker.exitcode)
        raise RunError(
            f"{recipe.folder}: {watch.missing()} teachers are missing: {failed} failed (see {recipe.folder / 'logs'}). The "
            "same command resumes."
        )
    print(write_report(recipe), flush=True)
    return 0


def _claim(recipe: Recipe) -> None:
    """Raises RunError where the run's folder was made with another recipe; else the recipe stands there."""
    written, now = recipe.folder / "recipe.yaml", recipe.dump()
    if written.exists():
        changes = changed_keys(_decisive(written.read_text(encoding="utf-8")), _decisive(now))
        if changes:
            raise RunError(
                f"{recipe.folder}: made with another recipe: {'; '.join(changes[:6])}. Keep it and write elsewhere: rlt evolve "
                f"RECIPE --name {recipe.head.name}-2. Or remove the folder to start over."
            )
    elif recipe.folder.exists() and any(recipe.folder.iterdir()):
        raise RunError(f"{recipe.folder}: contains files that are not a run of rlt. Choose another `--name`.")
    write_text(written, now)


def _decisive(text: str) -> JsonRow:
    values = cast(dict[str, JsonRow], parse_yaml(text))
    options = {key: value for key, value in values.get(KEY, {}).items() if key not in MAY_CHANGE_IN_EVOLVE}
    return {**{key: value for key, value in values.items() if key not in MAY_CHANGE}, KEY: options}


# -- workers -----------------------------------------------------------------------------------------------------------


def _started(recipe: Recipe) -> list[BaseProcess]:
    context = multiprocessing.get_context("spawn")
    with worker_environment():
        workers = [
            context.Process(target=_worker, args=(recipe, recipe.folder / "logs"), name=f"worker {number}")
            for number in range(1, recipe.head.jobs + 1)
        ]
        for worker in workers:
            worker.start()
    return [*workers]


def _worker(recipe: Recipe, logs: Path) -> None:
    """Works until all is made; its standard output, and that of the steps, goes to `logs/PID.log`."""
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{os.getpid()}.log").open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
    prepare_worker()
    from rlt.evolve.worker import chains_of, work

    def run() -> int:
        work(chains_of(recipe))
        return 0

    sys.exit(guarded(run))
