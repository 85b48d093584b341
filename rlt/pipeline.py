"""Running steps: one after another in this process, or side by side in processes of one thread each.

Steps meet only through files. What is complete is skipped, what was cut off goes on, and each step prints one line when
it begins and one when it ends.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from rlt.allocator import keep_freed_memory
from rlt.config import ReportConfig, StageConfig
from rlt.errors import RunError
from rlt.recipe import ONCE, Recipe, Step
from rlt.runs import Result, comparable, read_state, state_file_of, write_text

DONE_BEFORE = "complete before"


def run_stage(stage: str, config: StageConfig) -> Result:
    """The Result of one stage, run in this process, or under `accelerate launch` where its `launch` says so."""
    if getattr(config, "launch", None) and "LOCAL_RANK" not in os.environ:
        from rlt.launching import launch_stage

        return launch_stage(stage, config)
    return importlib.import_module(f"rlt.stages.{stage}").run(config)


def run_recipe(recipe: Recipe, *, restart: bool = False, only: str | None = None) -> int:
    """Exit status after running the recipe's steps (`only`: that step, its variants, or that stage).

    Raises RunError when the run's folder belongs to something else, or to another recipe of this name.
    """
    steps = [step for step in recipe.steps if only is None or _is(step, only)]
    if not steps:
        names = dict.fromkeys(step.name.split("/")[0] for step in recipe.steps)
        raise RunError(f"{recipe.head.name}: no step `{only}`; steps are {', '.join(names)}.")
    if recipe.head.needs_gpu:
        _check_gpu(recipe)
    _claim(recipe, steps, restart)
    print(f"{recipe.head.name}: {recipe.head.description or len(steps)}", flush=True)
    print(
        f"  {len(steps)} steps, {len(recipe.head.seeds)} seed(s), {recipe.head.jobs} at a time -> {recipe.folder}",
        flush=True,
    )
    once = [step for step in steps if step.stage in ONCE]
    rest = [step for step in steps if step.stage not in ONCE]
    started = time.monotonic()
    seed_done = _seed_reporter(recipe, once, started)
    if recipe.head.jobs > 1 and len(rest) > 1:
        statuses = _side_by_side(rest, recipe.head.jobs, started, seed_done)
    else:
        statuses = _one_by_one(rest, started, seed_done)
    for step in once:
        run_stage(step.stage, step.config)
    return max(statuses, default=0)


def _is(step: Step, only: str) -> bool:
    return only in (step.name, step.name.split("/")[0], step.stage)


# -- the run's folder --------------------------------------------------------------------------------------------------


def _claim(recipe: Recipe, steps: list[Step], restart: bool) -> None:
    folder, written = recipe.folder, recipe.folder / "recipe.yaml"
    if folder.exists() and not written.exists() and any(folder.iterdir()):
        raise RunError(f"{folder}: holds files that are no run of rlt. Choose another `--name`, or move them away.")
    if restart:
        for step in steps:
            _remove(step)
    for step in steps:
        state = None if step.stage in ONCE else read_state(step.config.output)
        if state is None:
            continue
        ours, theirs = comparable(step.config.model_dump(mode="json")), comparable(state["config"])
        changed = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
        if changed:
            listed = "; ".join(
                f"`{step.name}.{key}`: {theirs.get(key)!r} there, {ours.get(key)!r} now" for key in changed
            )
            raise RunError(
                f"{folder}: made with another recipe: {listed}. Keep it and write elsewhere: "
                f"rlt run RECIPE --name {recipe.head.name}-2. Or start over: rlt run RECIPE --restart."
            )
    write_text(written, recipe.dump())


def _remove(step: Step) -> None:
    output = Path(step.config.output)
    if step.stage in ONCE or read_state(output) is None:
        return  # nothing there, or nothing that rlt made
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)
        state_file_of(output).unlink()


def _check_gpu(recipe: Recipe) -> None:
    import torch

    if not torch.cuda.is_available():
        raise RunError(
            f"{recipe.head.name}: this recipe needs a GPU and there is none here. `rlt run recipes/quickstart/recipe.yaml` "
            "shows the method on a CPU; `--needs-gpu false` runs this one all the same."
        )


# -- running -----------------------------------------------------------------------------------------------------------


def _one_by_one(steps: list[Step], started: float, seed_done: Callable[[int], None]) -> list[int]:
    statuses, left = [], {seed: sum(step.seed == seed for step in steps) for seed in {step.seed for step in steps}}
    for number, step in enumerate(steps, 1):
        before = _complete(step)
        if not before:
            _say(started, f"{step.key} ...", number, len(steps))
        result = run_stage(step.stage, step.config)
        _say(started, f"{step.key}: {DONE_BEFORE if before else summary(result)}", number, len(steps))
        statuses.append(int(result.metrics.get("exit_status", 0)))
        left[step.seed] -= 1
        if not left[step.seed] and step.seed is not None:
            seed_done(step.seed)
    return statuses


def _side_by_side(steps: list[Step], jobs: int, started: float, seed_done: Callable[[int], None]) -> list[int]:
    """Exit statuses; a step begins when those it waits for are done.

    The first seed goes first, so that its table is there early; of the others the step with most steps behind it.
    """
    behind = _longest_chains(steps)
    waiting = sorted(steps, key=lambda step: (step.seed != steps[0].seed, -behind[step.seed, step.name]))
    running: dict[Future[Result], tuple[Step, bool]] = {}
    finished: set[tuple[int | None, str]] = set()
    wanted = {(step.seed, step.name) for step in steps}
    statuses: list[int] = []
    # One thread each: two processes of two threads starve each other (see docs/experiments.md).
    environment = {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "RLT_QUIET": "1",
    }
    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_prepare_worker) as pool:
            while waiting or running:
                ready = [
                    s for s in waiting if all((s.seed, a) in finished or (s.seed, a) not in wanted for a in s.after)
                ]
                for step in ready[: jobs - len(running)]:
                    waiting.remove(step)
                    done_before = _complete(step)
                    if not done_before:
                        _say(started, f"{step.key} ...", len(finished), len(steps))
                    future = pool.submit(run_stage, step.stage, step.config)
                    running[future] = (step, done_before)
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    step, done_before = running.pop(future)
                    try:
                        result = future.result()
                    except BaseException:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise
                    finished.add((step.seed, step.name))
                    statuses.append(int(result.metrics.get("exit_status", 0)))
                    _say(
                        started,
                        f"{step.key}: {DONE_BEFORE if done_before else summary(result)}",
                        len(finished),
                        len(steps),
                    )
                    if (
                        step.seed is not None
                        and not any(s.seed == step.seed for s in waiting)
                        and not any(s.seed == step.seed for s, _ in running.values())
                    ):
                        seed_done(step.seed)
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)
    return statuses


def _longest_chains(steps: list[Step]) -> dict[tuple[int | None, str], int]:
    """How many steps of the same seed have to follow one another after each step."""
    chains = {(step.seed, step.name): 0 for step in steps}
    for step in reversed(steps):  # a recipe names what a step waits for before the step
        for name in step.after:
            if (step.seed, name) in chains:
                chains[step.seed, name] = max(chains[step.seed, name], chains[step.seed, step.name] + 1)
    return chains


def _prepare_worker() -> None:
    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)
    keep_freed_memory()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    # What libraries print belongs to a log, not between the lines of steps that run side by side.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _complete(step: Step) -> bool:
    return bool((read_state(step.config.output) or {}).get("complete"))


def summary(result: Result) -> str:
    """One line: how long a stage took, and its first numbers or its solve rates."""
    solved = result.metrics.get("benchmarks")
    if solved:
        rates = ", ".join(f"{Path(name).stem} {row['pass@1']:.3f}" for name, row in solved.items())
        return f"done in {result.metrics['seconds']:.1f} s (solved: {rates})"
    shown = {
        k: v for k, v in result.metrics.items() if isinstance(v, int | float) and k not in ("seconds", "exit_status")
    }
    numbers = ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in list(shown.items())[:4])
    return f"done in {result.metrics.get('seconds', 0):.1f} s" + (f" ({numbers})" if numbers else "")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _say(started: float, text: str, done: int, total: int) -> None:
    elapsed = time.monotonic() - started
    left = f", about {_clock(elapsed / done * (total - done))} left" if 2 < done < total and elapsed > 5 else ""
    print(f"[{_clock(elapsed)} {done}/{total}{left}] {text}", flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _seed_reporter(recipe: Recipe, once: list[Step], started: float) -> Callable[[int], None]:
    reports = [step.config for step in once if isinstance(step.config, ReportConfig)]

    def seed_done(seed: int) -> None:
        if reports and len(recipe.head.seeds) > 1:
            from rlt.stages.report import seed_table

            print(f"\nseed {seed} is complete after {_clock(time.monotonic() - started)}:", flush=True)
            print(seed_table(reports[0], seed), flush=True)

    return seed_done
