"""Runs steps: one after another in this process, or in parallel in processes of one thread each.

Steps meet only through files. Complete steps are skipped and interrupted ones resume; each step prints a line when it
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
from rlt.outputs import Result, State, check_free, complete_state, differences, read_state, remove_output, seconds_of
from rlt.progress import HEARTBEAT, Progress, clock, summary, told_while_silent
from rlt.provenance import date_of, prepared
from rlt.recipe import ONCE, Recipe, RecipeHead, Step, recipe_of_run
from rlt.terminal import fitted
from rlt.text.clock import pin_date

SHOWN = 6  # differences listed in an error
MOST_TOLD = 20  # complete steps whose numbers are repeated while other steps remain


def run_stage(stage: str, config: StageConfig) -> Result:
    """The Result of one stage, run in this process, or under `accelerate launch` if `launch` is set."""
    config = prepared(stage, config)
    if getattr(config, "launch", None) and "LOCAL_RANK" not in os.environ:
        from rlt.launching import launch_stage

        check_free(config.output)  # processes of a killed launcher may still be running
        return launch_stage(stage, config)
    return importlib.import_module(f"rlt.stages.{stage}").run(config)


def run_recipe(recipe: Recipe, *, restart: bool = False, only: str | None = None) -> int:
    """Exit status after running the recipe's steps (`only`: these steps, variants or stages, separated by commas).

    Complete steps are skipped and no longer need their inputs. All others are checked before the first one begins:
    ProblemsFound lists what is wrong. `restart` first removes the results of these steps and of the steps that depend on
    them. Raises RunError if the run's folder belongs to something else or to a different recipe of the same name, if an
    input is missing, or if another process is writing one of the steps.
    """
    steps = list(recipe.steps) if only is None else _chosen(recipe, [name.strip() for name in only.split(",")])
    once = [step for step in steps if step.stage in ONCE]
    rest = [step for step in steps if step.stage not in ONCE]
    ended = {} if restart else recipe.not_run()
    todo = [step for step in rest if restart or not (_complete(step) or step.key in ended)]
    if recipe.head.needs_gpu and todo:
        _check_gpu(recipe)
    _check(recipe, [*todo, *once])
    _claim(recipe, rest, todo, restart, whole=only is None)
    pin_date(date_of(step.config.output for step in recipe.steps))
    seeds = len(recipe.head.seeds)
    print(fitted(f"{recipe.head.name}: {recipe.head.description}".rstrip(": ")), flush=True)
    print(
        f"  {len(steps)} steps, {seeds} seed{'s' * (seeds > 1)}, {recipe.head.jobs} at a time -> {recipe.folder}"
        + (f"; {len(rest) - len(todo)} already complete" if len(rest) > len(todo) else ""),
        flush=True,
    )
    statuses = []
    for step in rest:
        if step.key in ended and not _complete(step):
            print(f"  skipped: {step.key}: its loop ended at round {ended[step.key]}", flush=True)
        elif step not in todo:
            before = Result(step.config.output, (read_state(step.config.output) or State()).get("metrics", {}))
            statuses.append(before.exit_status)
            if len(rest) - len(todo) <= MOST_TOLD or not todo:
                print(fitted(f"  already complete: {step.key}: {summary(before)}", indent=6), flush=True)
    progress = Progress([*todo, *once], recipe)
    seed_done, left = _seed_reporter(recipe, once, progress), Counter(step.seed for step in todo)

    def done(step: Step, result: Result | None) -> None:  # None: skipped, because its loop has ended
        if result is not None:
            progress.end(step, result)
            statuses.append(result.exit_status)
        left[step.seed] -= 1
        if step.seed is not None and not left[step.seed]:
            seed_done(step.seed)

    if recipe.head.jobs > 1 and len(todo) > 1:
        _SideBySide(todo, recipe, progress).run(done)
    else:
        _one_by_one(todo, progress, done, recipe)
    _one_by_one(once, progress, done, recipe)
    return max(statuses, default=0)


def _check(recipe: Recipe, steps: Sequence[Step]) -> None:
    """Raises ProblemsFound with everything that would stop one of these steps, as far as can be known."""
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


def _chosen(recipe: Recipe, wanted: Sequence[str]) -> list[Step]:
    """Steps with one of these names (`distill`, `distill/rlt`) or stages. Raises RunError for a name that has none."""
    names = {step.key: {step.name, step.name.split("/")[0], step.stage} for step in recipe.steps}
    if unknown := [name for name in wanted if not any(name in own for own in names.values())]:
        known = dict.fromkeys(step.name.split("/")[0] for step in recipe.steps)
        raise RunError(f"{recipe.head.name}: unknown step `{unknown[0]}`; steps are {', '.join(known)}.")
    return [step for step in recipe.steps if names[step.key].intersection(wanted)]


def _complete(step: Step) -> bool:
    return complete_state(step.config.output) is not None


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
            print(f"  depends on it, so the next `rlt run` runs it again: {', '.join(later)}", flush=True)
    write_text(written, recipe.dump())


def _with_dependants(recipe: Recipe, steps: Iterable[Step]) -> list[Step]:
    """These steps and all that depend on them."""
    names = {(step.seed, step.name) for step in steps}
    for step in recipe.steps:  # each after those it waits for
        if step.stage not in ONCE and any((step.seed, name) in names for name in step.after):
            names.add((step.seed, step.name))
    return [step for step in recipe.steps if (step.seed, step.name) in names]


def _refuse_changes(recipe: Recipe, made: list[Step], orphans: list[Step], removed: list[Step]) -> None:
    """Raises RunError if any existing step differs from what this recipe would make: they share one `recipe.yaml`."""
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
            f"{recipe.folder}: made with a different recipe: {'; '.join(changes[:SHOWN])}{more}. Keep it and write "
            f"elsewhere: rlt run RECIPE --name {recipe.head.name}-2. Or start over: rlt run RECIPE --restart (with `--only "
            "STEP`: that step and everything that depends on it)."
        )


def _refuse_missing_inputs(recipe: Recipe, todo: list[Step]) -> None:
    known = {(step.seed, step.name): step for step in recipe.steps}
    wanted, ended = {(step.seed, step.name) for step in todo}, recipe.not_run()
    for step in todo:
        for name in step.after:
            other = known[step.seed, name]
            if (step.seed, name) not in wanted and not _complete(other) and other.key not in ended:
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


def timings(folder: Path) -> dict[str, dict[str, float]]:
    """Durations of a run's steps, as in a recipe's `.seconds.json` (see `rlt.timing`). Raises RunError without a run."""
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder}: not the folder of a run (no recipe.yaml in it).")

    def seconds(step: Step) -> float | None:
        state = complete_state(step.config.output) if step.stage not in ONCE else None
        return seconds_of(state["metrics"]) if state else None

    return timing.timings(recipe_of_run(folder).steps, seconds)


def _one_by_one(
    steps: Sequence[Step], progress: Progress, done: Callable[[Step, Result | None], None], recipe: Recipe
) -> None:
    for step in steps:
        ended = recipe.not_run().get(step.key)
        if ended is not None:
            progress.skip(step, ended)
            done(step, None)
            continue
        progress.begin(step)
        with told_while_silent(step.stage, step.key, progress.say):
            result = run_stage(step.stage, step.config)
        done(step, result)


class _SideBySide:
    """Steps in parallel processes: started in the order of `queue` once their inputs are done, each printing to its log.

    After a failure no further step starts; running ones finish, then `run` raises the error.
    """

    def __init__(self, steps: Sequence[Step], recipe: Recipe, progress: Progress) -> None:
        self.recipe, self.progress = recipe, progress
        self.waiting = timing.queue(steps)
        self.unfinished = {(step.seed, step.name) for step in steps}
        self.running: dict[Future[Result], tuple[Step, float]] = {}
        self.failed: BaseException | None = None

    def run(self, done: Callable[[Step, Result | None], None]) -> None:
        jobs = self.recipe.head.jobs
        context = multiprocessing.get_context("spawn")
        with worker_environment(), ProcessPoolExecutor(jobs, context, initializer=prepare_worker) as pool:
            while self.running or (self.waiting and self.failed is None):
                self._start(pool, jobs - len(self.running), done)
                if not self.running:
                    continue  # every ready step was skipped; steps that waited for them may be ready now
                ended, _ = wait(self.running, timeout=HEARTBEAT, return_when=FIRST_COMPLETED)
                if not ended:
                    now = time.monotonic()
                    running = ", ".join(f"{step.key} ({now - at:.0f} s)" for step, at in self.running.values())
                    self.progress.say(f"running: {running}")
                for future in ended:
                    step, _ = self.running.pop(future)
                    error = future.exception()
                    if error is not None:
                        self._fail(step, error)
                        continue
                    self.unfinished.discard((step.seed, step.name))
                    done(step, future.result())
        if isinstance(self.failed, BrokenProcessPool):
            raise RunError(
                f"{self.recipe.head.name}: a step's process was killed, often because memory ran out. The same command "
                "resumes; `--jobs 1` needs less memory."
            ) from self.failed
        if self.failed is not None:
            raise self.failed

    def _start(self, pool: ProcessPoolExecutor, places: int, done: Callable[[Step, Result | None], None]) -> None:
        if self.failed is not None:
            return
        ready = [s for s in self.waiting if not any((s.seed, name) in self.unfinished for name in s.after)]
        ended = self.recipe.not_run()
        for step in [step for step in ready if step.key in ended]:
            self.waiting.remove(step)
            self.unfinished.discard((step.seed, step.name))
            self.progress.skip(step, ended[step.key])
            done(step, None)
        for step in [step for step in ready if step.key not in ended][:places]:
            self.waiting.remove(step)
            self.progress.begin(step)
            future = pool.submit(_run_logged, step.stage, step.config, log_of(self.recipe, step))
            self.running[future] = (step, time.monotonic())

    def _fail(self, step: Step, error: BaseException) -> None:
        self.failed = self.failed or error
        self.progress.time_left.drop(step)
        others = ", ".join(other.key for other, _ in self.running.values())
        self.progress.say(
            f"{step.key}: failed: {_first_line(error)} (its log: {log_of(self.recipe, step)})"
            + (f"; waiting for {others}" if others else "")
        )


@contextmanager
def worker_environment() -> Iterator[None]:
    """Give new processes one thread each: two processes of two threads starve each other (docs/experiments.md)."""
    environment = {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "RLT_QUIET": "1",
    }
    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def log_of(recipe: Recipe, step: Step) -> Path:
    """The step's log when steps run in parallel."""
    return recipe.folder / "logs" / (step.key.replace(" ", "-").replace("/", "-") + ".log")


def prepare_worker() -> None:
    """Make this process a worker: one thread, no bars of its own, and it ends when the process that started it is gone."""
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
    """Ends this worker when `rlt run` is gone, for example killed: otherwise it would keep writing outputs."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_logged(stage: str, config: StageConfig, log: Path) -> Result:
    """run_stage in a worker process; its standard output and that of its children are appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
    print(f"-- {time.strftime('%Y-%m-%d %H:%M:%S')} {stage} -> {config.output}", flush=True)
    try:
        return run_stage(stage, config)
    finally:
        sys.stdout.flush()


def _seed_reporter(recipe: Recipe, once: list[Step], progress: Progress) -> Callable[[int], None]:
    reports = [step.config for step in once if isinstance(step.config, ReportConfig)]

    def seed_done(seed: int) -> None:
        if reports and len(recipe.head.seeds) > 1:
            from rlt.stages.report import seed_table

            print(f"\nseed {seed} is complete after {clock(time.monotonic() - progress.started)}:", flush=True)
            print(seed_table(reports[0], seed), flush=True)

    return seed_done
