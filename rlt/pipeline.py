"""Running steps: one after another in this process, or in parallel in processes of one thread each.

Steps meet only through files. Complete steps are skipped, interrupted ones resume, and each step prints one line when it
starts and one when it ends.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from rlt import timing
from rlt.allocator import keep_freed_memory
from rlt.checking import check_steps
from rlt.config import ReportConfig, StageConfig
from rlt.data.rows import write_text
from rlt.errors import ProblemsFound, RunError
from rlt.outputs import Result, check_free, differences, read_state, remove_output
from rlt.provenance import date_of, prepared
from rlt.recipe import ONCE, Recipe, RecipeHead, Step, recipe_of_run
from rlt.terminal import fitted
from rlt.text.clock import pin_date
from rlt.timing import TimeLeft
from rlt.types import JsonMap

HEARTBEAT = 20.0  # seconds without a line after which it is said what runs
SHOWN = 6  # differences that an error lists
MOST_TOLD = 20  # complete steps whose numbers are repeated where others are still to be run
SILENT = ("problems", "select")  # stages that show no progress of their own


def run_stage(stage: str, config: StageConfig) -> Result:
    """The Result of one stage, run in this process, or under `accelerate launch` where its `launch` says so."""
    config = prepared(stage, config)
    if getattr(config, "launch", None) and "LOCAL_RANK" not in os.environ:
        from rlt.launching import launch_stage

        check_free(config.output)  # of a launcher that was killed the processes may still be at work
        return launch_stage(stage, config)
    return importlib.import_module(f"rlt.stages.{stage}").run(config)


def run_recipe(recipe: Recipe, *, restart: bool = False, only: str | None = None) -> int:
    """Exit status after running the recipe's steps (`only`: that step, its variants, or that stage).

    Complete steps are not run, and need nothing that they were made from. All others are checked before the first of them
    begins: ProblemsFound lists what is wrong. `restart` first removes the results of the steps, and of later steps made
    from them. Raises RunError if the run's folder belongs to something else or to another recipe of this name, if an
    input is missing, or if another process is writing one of the steps.
    """
    steps = [step for step in recipe.steps if only is None or _is(step, only)]
    if not steps:
        names = dict.fromkeys(step.name.split("/")[0] for step in recipe.steps)
        raise RunError(f"{recipe.head.name}: unknown step `{only}`; steps are {', '.join(names)}.")
    once = [step for step in steps if step.stage in ONCE]
    rest = [step for step in steps if step.stage not in ONCE]
    todo = [step for step in rest if restart or not _complete(step)]
    if recipe.head.needs_gpu and todo:
        _check_gpu(recipe)
    _check(recipe, [*todo, *once])
    _claim(recipe, rest, todo, restart, whole=only is None)
    pin_date(date_of(step.config.output for step in recipe.steps))
    seeds = len(recipe.head.seeds)
    print(fitted(f"{recipe.head.name}: {recipe.head.description}".rstrip(": ")), flush=True)
    print(
        f"  {len(steps)} steps, {seeds} seed{'s' * (seeds > 1)}, {recipe.head.jobs} at a time -> {recipe.folder}"
        + (f"; {len(rest) - len(todo)} complete before" if len(rest) > len(todo) else ""),
        flush=True,
    )
    statuses = []
    for step in rest:
        if step not in todo:
            metrics = (read_state(step.config.output) or {}).get("metrics", {})
            statuses.append(_status(metrics))
            if len(rest) - len(todo) <= MOST_TOLD or not todo:
                line = f"  complete before: {step.key}: {summary(Result(step.config.output, metrics))}"
                print(fitted(line, indent=6), flush=True)
    progress = Progress([*todo, *once], recipe)
    seed_done = _seed_reporter(recipe, once, progress)
    if recipe.head.jobs > 1 and len(todo) > 1:
        statuses += _side_by_side(todo, recipe, progress, seed_done)
    else:
        statuses += _one_by_one(todo, progress, seed_done)
    statuses += _one_by_one(once, progress, lambda seed: None)
    return max(statuses, default=0)


def _check(recipe: Recipe, steps: Sequence[Step]) -> None:
    """Raises ProblemsFound with everything that would stop one of these steps, as far as it can be known now."""
    problems = check_steps(recipe, steps, connect=True).problems
    if problems:
        raise ProblemsFound(recipe.head.name, problems)


def check_stage(stage: str, config: StageConfig) -> None:
    """Raises ProblemsFound with everything that would stop this stage, unless it is complete."""
    step = Step(stage, stage, None, config, ())
    if not _complete(step):
        found = check_steps(Recipe(RecipeHead(name=stage), (step,), {}), [step], connect=True).problems
        if found:
            raise ProblemsFound(f"rlt {stage}", [problem.removeprefix(f"step `{stage}`: ") for problem in found])


def _is(step: Step, only: str) -> bool:
    return only in (step.name, step.name.split("/")[0], step.stage)


def _status(metrics: JsonMap) -> int:
    return int(metrics.get("exit_status", 0))


def _complete(step: Step) -> bool:
    return bool((read_state(step.config.output) or {}).get("complete"))


# -- the run's folder --------------------------------------------------------------------------------------------------


def _claim(recipe: Recipe, steps: list[Step], todo: list[Step], restart: bool, *, whole: bool) -> None:
    """Refuse what cannot resume, remove what starts over, and only then write `recipe.yaml`."""
    folder, written = recipe.folder, recipe.folder / "recipe.yaml"
    if folder.exists() and not written.exists() and any(folder.iterdir()):
        raise RunError(
            f"{folder}: contains files that are not a run of rlt. Choose another `--name`, or move them away."
        )
    made = [step for step in (recipe_of_run(folder).steps if written.exists() else ()) if step.stage not in ONCE]
    outputs = {step.config.output for step in recipe.steps}
    orphans = [step for step in made if step.config.output not in outputs and read_state(step.config.output)]
    removed = []
    if restart:
        removed = [step for step in _with_dependants(recipe, steps) if read_state(step.config.output)]
        removed += orphans if whole else []
    _refuse_changes(recipe, made, [] if restart and whole else orphans, removed)
    _refuse_missing_inputs(recipe, todo)
    for step in [*todo, *removed]:
        check_free(step.config.output)
    for step in removed:
        remove_output(step.config.output)
    if removed:
        print(f"removed: {', '.join(dict.fromkeys(step.name for step in removed))}", flush=True)
        later = dict.fromkeys(step.name for step in removed if step not in steps and not whole)
        if later:
            print(f"  made from it, so run again by the next `rlt run`: {', '.join(later)}", flush=True)
    write_text(written, recipe.dump())


def _with_dependants(recipe: Recipe, steps: Iterable[Step]) -> list[Step]:
    """These steps and all later ones that use their results."""
    names = {(step.seed, step.name) for step in steps}
    for step in recipe.steps:  # each after those it waits for
        if step.stage not in ONCE and any((step.seed, name) in names for name in step.after):
            names.add((step.seed, step.name))
    return [step for step in recipe.steps if (step.seed, step.name) in names]


def _refuse_changes(recipe: Recipe, made: list[Step], orphans: list[Step], removed: list[Step]) -> None:
    """Raises RunError if any step, to be run or not, differs from what this recipe would make: they share `recipe.yaml`."""
    changes = []
    seeds = [*dict.fromkeys(step.seed for step in made)]
    if orphans and seeds != recipe.head.seeds:
        changes.append(f"`seeds`: {seeds} there, {recipe.head.seeds} now")
    elif orphans:
        names = [*dict.fromkeys(step.name for step in orphans)]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        changes.append(f"steps that are not in this recipe: {', '.join(names[:SHOWN])}{more}")
    for step in recipe.steps:
        state = None if step.stage in ONCE or step in removed else read_state(step.config.output)
        if state is not None:
            changes += [f"{step.name} {change}" for change in differences(state, step.config)]
    if changes:
        changes = list(dict.fromkeys(changes))
        more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
        raise RunError(
            f"{recipe.folder}: made with another recipe: {'; '.join(changes[:SHOWN])}{more}. Keep it and write elsewhere: "
            f"rlt run RECIPE --name {recipe.head.name}-2. Or start over: rlt run RECIPE --restart (with `--only STEP`: that "
            "step and everything made from it)."
        )


def _refuse_missing_inputs(recipe: Recipe, todo: list[Step]) -> None:
    known = {(step.seed, step.name): step for step in recipe.steps}
    wanted = {(step.seed, step.name) for step in todo}
    for step in todo:
        for name in step.after:
            if (step.seed, name) not in wanted and not _complete(known[step.seed, name]):
                raise RunError(
                    f"{step.key}: its input `{name}` is not complete. Run the whole recipe, or `--only {name}` first."
                )


def _check_gpu(recipe: Recipe) -> None:
    if not _has_gpu():
        raise RunError(
            f"{recipe.head.name}: this recipe needs a GPU, and none was found. `rlt run quickstart` "
            "shows the method on a CPU; `--needs-gpu false` runs this one anyway."
        )


def _has_gpu() -> bool:
    devices = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # CUDA, ROCm, WSL: without one of them torch need not be asked
    if sys.platform == "linux" and not any(map(os.path.exists, devices)):
        return False
    import torch

    return torch.cuda.is_available()


# -- running -----------------------------------------------------------------------------------------------------------


class Progress:
    """Prints lines with the time since the start, the steps done of all, and, once it is known, the time left."""

    def __init__(self, steps: Sequence[Step], recipe: Recipe) -> None:
        self.started, self.done, self.total = time.monotonic(), 0, len(steps)
        self.time_left = TimeLeft(steps, recipe.head.jobs, recipe.timings)

    def say(self, text: str) -> None:
        now, about = time.monotonic(), ""
        left = self.time_left.left(now) if now - self.started > 5 and self.done < self.total else None
        if left is not None:
            about = f", about {clock(left)} left"
        print(fitted(f"[{clock(now - self.started)} {self.done}/{self.total}{about}] {text}"), flush=True)

    def begin(self, step: Step) -> None:
        self.time_left.begin(step, time.monotonic())
        self.say(f"{step.key} ...")

    def end(self, step: Step, result: Result) -> None:
        self.done += 1
        self.time_left.end(step, float(result.metrics.get("seconds", 0.0)))
        self.say(f"{step.key}: {summary(result)}")


@contextmanager
def told_while_silent(stage: str, name: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Says every HEARTBEAT seconds that a stage which shows no progress of its own still runs."""
    done, begun = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(HEARTBEAT):
            (say or print)(f"running: {name} ({time.monotonic() - begun:.0f} s)")

    if stage in SILENT:
        threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def timings(folder: Path) -> dict[str, dict[str, float]]:
    """What each step of a run took, as a recipe's `seconds.json` has it (see `rlt.timing`). Raises RunError without a run."""
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder}: not the folder of a run (no recipe.yaml in it).")

    def seconds(step: Step) -> float | None:
        state = read_state(step.config.output) if step.stage not in ONCE else None
        return float(state["metrics"]["seconds"]) if state and state.get("complete") else None

    return timing.timings(recipe_of_run(folder).steps, seconds)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _one_by_one(steps: Sequence[Step], progress: Progress, seed_done: Callable[[int], None]) -> list[int]:
    statuses, left = [], Counter(step.seed for step in steps)
    for step in steps:
        progress.begin(step)
        with told_while_silent(step.stage, step.key, progress.say):
            result = run_stage(step.stage, step.config)
        progress.end(step, result)
        statuses.append(_status(result.metrics))
        left[step.seed] -= 1
        if step.seed is not None and not left[step.seed]:
            seed_done(step.seed)
    return statuses


def _side_by_side(
    steps: Sequence[Step], recipe: Recipe, progress: Progress, seed_done: Callable[[int], None]
) -> list[int]:
    """Exit statuses. Steps start in the order of `queue`, each once its inputs are done, and print to their logs.

    After a failure no step starts; running ones finish, then the error is raised.
    """
    waiting = timing.queue(steps)
    unfinished = {(step.seed, step.name) for step in steps}
    left = Counter(step.seed for step in steps)
    running: dict[Future[Result], tuple[Step, float]] = {}
    failed: BaseException | None = None
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
        jobs = recipe.head.jobs
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_prepare_worker) as pool:
            while running or (waiting and failed is None):
                ready = [s for s in waiting if failed is None and not any((s.seed, a) in unfinished for a in s.after)]
                for step in ready[: jobs - len(running)]:
                    waiting.remove(step)
                    progress.begin(step)
                    future = pool.submit(_run_logged, step.stage, step.config, log_of(recipe, step))
                    running[future] = (step, time.monotonic())
                done, _ = wait(running, timeout=HEARTBEAT, return_when=FIRST_COMPLETED)
                if not done:
                    now = time.monotonic()
                    progress.say("running: " + ", ".join(f"{s.key} ({now - at:.0f} s)" for s, at in running.values()))
                for future in done:
                    step, _ = running.pop(future)
                    error = future.exception()
                    if error is not None:
                        failed = failed or error
                        progress.time_left.drop(step)
                        others = ", ".join(s.key for s, _ in running.values())
                        progress.say(
                            f"{step.key}: failed: {_first_line(error)} (its log: {log_of(recipe, step)})"
                            + (f"; waiting for {others}" if others else "")
                        )
                        continue
                    unfinished.discard((step.seed, step.name))
                    result = future.result()
                    progress.end(step, result)
                    statuses.append(_status(result.metrics))
                    left[step.seed] -= 1
                    if step.seed is not None and not left[step.seed]:
                        seed_done(step.seed)
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)
    if isinstance(failed, BrokenProcessPool):
        raise RunError(
            f"{recipe.head.name}: a step's process was killed, often because memory ran out. The same command resumes; "
            f"`--jobs 1` needs less memory."
        ) from failed
    if failed is not None:
        raise failed
    return statuses


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def log_of(recipe: Recipe, step: Step) -> Path:
    """The file with everything that the step prints when steps run in parallel."""
    return recipe.folder / "logs" / (step.key.replace(" ", "-").replace("/", "-") + ".log")


def _prepare_worker() -> None:
    import datasets
    import torch
    import transformers

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # as in rlt.cli: a locale of ASCII cannot print every question
            stream.reconfigure(errors="backslashreplace")
    torch.set_num_threads(1)
    keep_freed_memory()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when `rlt run` is gone (killed, say): otherwise it would keep writing outputs nobody waits for."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_logged(stage: str, config: StageConfig, log: Path) -> Result:
    """run_stage, in a worker process whose standard output, its own children's included, goes to the end of `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
    print(f"-- {time.strftime('%Y-%m-%d %H:%M:%S')} {stage} -> {config.output}", flush=True)
    try:
        return run_stage(stage, config)
    finally:
        sys.stdout.flush()


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


def _seed_reporter(recipe: Recipe, once: list[Step], progress: Progress) -> Callable[[int], None]:
    reports = [step.config for step in once if isinstance(step.config, ReportConfig)]

    def seed_done(seed: int) -> None:
        if reports and len(recipe.head.seeds) > 1:
            from rlt.stages.report import seed_table

            print(f"\nseed {seed} is complete after {clock(time.monotonic() - progress.started)}:", flush=True)
            print(seed_table(reports[0], seed), flush=True)

    return seed_done
