"""What can be known to be wrong with a recipe before its first step begins: options, data, models, contexts, extras.

Nothing heavy is imported: TRL's, peft's and vLLM's options are read from their source, a model is its config.json, a data
file its first rows. What earlier steps make cannot be looked at, and what only the hub has is not downloaded: such models
and data sets are listed as not verified.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rlt.config import SELF, DataConfig, EngineOptions, MixtureConfig, StageConfig, TrainConfig
from rlt.data.overlap import leaks
from rlt.data.problems import names_a_file, problem_in, problem_of, rows_of
from rlt.data.rows import read_rows
from rlt.errors import DataError, ModelError, RltError
from rlt.launching import launch_file, launch_options
from rlt.models.hub import check_can_be_had, config_here, folder_problem, is_cached, is_folder_name, unreachable
from rlt.recipe import ONCE, Recipe, Step
from rlt.tasks import load_generated_task, load_generating_task, load_grader
from rlt.tasks.benchmarks import load_benchmark, load_questions
from rlt.text.formats import check_problem, load_format
from rlt.training.batches import batch_problems
from rlt.training.options import (
    TRAINERS,
    engine_problems,
    fields_problems,
    literal_of,
    peft_problems,
    trainer_problems,
)
from rlt.types import JsonMap, JsonRow

LOOKED_AT = 20  # first rows of a file, of which one must be valid where invalid ones are skipped
NEEDED = {"warmup": ("explanation",), "distill": ("explanation",), "coldstart": ("answer",)}
"""Stage -> optional columns of its data that every row must have."""


@dataclass(frozen=True)
class Checked:
    """`problems`: what would stop a step, one line each. `unverified`: what only the hub can tell."""

    problems: list[str]
    unverified: list[str]


def check_steps(recipe: Recipe, steps: Sequence[Step], *, connect: bool = False) -> Checked:
    """What is wrong with these steps of the recipe, found without running anything.

    `connect`: also look whether the hub can be reached, where something has to come from it (1.5 seconds at most).
    """
    check = _Check(recipe, connect)
    for step in steps:
        check.step(step)
    if any(step.stage == "evaluate" for step in steps):
        check.leaks()
    return Checked(*(list(dict.fromkeys(lines)) for lines in (check.problems, check.unverified)))


def table(recipe: Recipe, checked: Checked) -> str:
    """What `rlt check` prints of a recipe without problems: a line per step, and what could not be verified."""
    variants: dict[str, list[Step]] = {}
    for step in recipe.steps:
        if step.seed in (recipe.head.seeds[0], None):
            variants.setdefault(step.name.split("/")[0], []).append(step)
    width = max(map(len, variants), default=0)
    seeds = len(recipe.head.seeds)
    lines = [f"{recipe.head.name}: {len(recipe.steps)} steps, {seeds} seed{'s' * (seeds > 1)}: no problem found"]
    for name, steps in variants.items():
        count = f", {len(steps)} variants" if len(steps) > 1 else ""
        lines.append(f"  {name:<{width}}  ok ({steps[0].stage}{count})")
    if checked.unverified:
        lines += ["not verified offline:", *(f"  {line}" for line in checked.unverified)]
    return "\n".join(lines)


class _Check:
    def __init__(self, recipe: Recipe, connect: bool) -> None:
        self.recipe, self.connect = recipe, connect
        self.makers = {step.config.output.absolute(): step for step in recipe.steps if step.stage not in ONCE}
        self.found: dict[str, list[str]] = {}  # problem -> steps
        self.unverified: list[str] = []
        self.name = ""
        self._opened: dict[str, JsonRow | None] = {}
        self._looked: set[str] = set()
        self._tokenizers: dict[str, Any] = {}

    def leaks(self) -> None:
        """Held-out questions that a model is trained on."""
        self.name = "evaluate"
        self._say(leaks([step.config for step in self.recipe.steps]))

    def step(self, step: Step) -> None:
        config: Any = step.config
        self.name = step.name
        with_trainer = getattr(config, "trainer", None)
        if hasattr(config, "format"):
            self._try(load_format, config.format)
        self._tasks(step)
        if with_trainer:
            self._say(trainer_problems(with_trainer, *TRAINERS[step.stage]))
        if step.stage in ("train", "coldstart"):
            self._batches(step)
        if getattr(config, "peft", None) is not None:
            self._extra("peft", "peft", "LoRA")
            self._say(peft_problems(config.peft))
        if getattr(config, "launch", None):
            self._try(self._launch, config.launch)
        if with_trainer and with_trainer.get("use_vllm"):
            self._extra("vllm", "vllm", "`trainer.use_vllm`")
        if getattr(config, "ray", None) is not None:
            self._extra("ray", "ray", "`ray`")
        if isinstance(config, EngineOptions):
            self._engine(config)
        for key in ("api_key_env", "student_api_key_env"):
            name = getattr(config, key, None)
            if name is not None and name not in os.environ:
                self._say([f"`{key}`: the environment has no variable {name}. Set it to the server's key."])
        for key, model in _models(config):
            self._try(self._model, key, model, getattr(config, "engine", "") == "openai")
        self._data(step)
        self._context(step)

    # -- what is found -------------------------------------------------------------------------------------------------

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            steps = self.found.setdefault(line, [])
            if self.name not in steps:
                steps.append(self.name)

    @property
    def problems(self) -> list[str]:
        return [f"{_listed(steps)}: {line}" for line, steps in self.found.items()]

    def _try(self, check: Callable[..., object], *arguments: object) -> None:
        try:
            check(*arguments)
        except RltError as error:
            self._say([str(error)])

    def _made(self, path: str | Path) -> bool:
        """Whether a step of this recipe makes the file or folder."""
        absolute = Path(path).absolute()
        return any(place in self.makers for place in (absolute, *absolute.parents))

    def _extra(self, package: str, extra: str, user: str) -> None:
        if not _is_installed(package):
            self._say([f"{user} needs {package}: pip install 'rlt[{extra}]'"])

    # -- options -------------------------------------------------------------------------------------------------------

    def _tasks(self, step: Step) -> None:
        config: Any = step.config
        if (step.stage == "problems" and config.task is not None) or isinstance(getattr(config, "phases", None), list):
            self._try(self._generated, step)
            return
        accuracy, data = getattr(config, "accuracy", None), getattr(config, "data", None)
        sources = data.sources if isinstance(data, DataConfig | MixtureConfig) else []
        own = [getattr(config, "task", None), accuracy.task if accuracy else None]
        for name in (*own, *(source.task for source in sources)):
            if name is not None:
                self._try(load_grader, name)

    def _generated(self, step: Step) -> None:
        config: Any = step.config
        if step.stage == "problems" and config.experts is None:
            generating: Any = load_generating_task(config.task)
            getattr(generating, "check_options", lambda options: None)(config.options)
            return
        task = load_generated_task(config.task)
        experts = [getattr(config, "experts", None)]
        for number, phase in enumerate(getattr(config, "phases", [])):
            module = f"rlt.stages.{step.stage}"
            self._say(fields_problems(f"phases[{number}]", phase, module, "Phase"))
            experts.append(phase.get("experts"))
        for name in experts:
            if name is not None and name not in task.MIXTURES:
                self._say([f"`experts`: unknown mixture {name!r}; expected one of {', '.join(task.MIXTURES)}."])

    def _batches(self, step: Step) -> None:
        config: Any = step.config
        processes: Any = 1
        if config.launch:
            try:
                processes = launch_options(launch_file(config.launch)).get("num_processes")
            except RltError:  # told by `_launch`
                return
        if isinstance(processes, int):  # else as many as there are GPUs
            self._say(batch_problems({**_defaults(step), **config.trainer}, processes))

    def _launch(self, name: str) -> None:
        options = launch_options(launch_file(name))
        if options.get("distributed_type") == "DEEPSPEED":
            self._extra("deepspeed", "deepspeed", f"`launch: {name}`")

    def _engine(self, config: EngineOptions) -> None:
        conflict = config.conflict()
        if conflict is not None:
            self._say([conflict])
        if config.engine == "vllm":
            self._extra("vllm", "vllm", "engine `vllm`")
        if config.engine_options:
            model: str = config.model  # type: ignore[attr-defined]
            self._say(engine_problems(config.engine, config.engine_options, self._open(model)))

    # -- models --------------------------------------------------------------------------------------------------------

    def _open(self, model: str) -> JsonRow | None:
        """The model's config.json, where it is here."""
        if self._made(model):
            return None
        if model not in self._opened:
            try:
                self._opened[model] = config_here(model)
            except ModelError:
                self._opened[model] = None
        return self._opened[model]

    def _model(self, key: str, name: str, tokenizer_only: bool) -> None:
        served = name.startswith(("http://", "https://"))
        name, tokenizer_only = (name.partition("#")[2], True) if served else (name, tokenizer_only)
        if not name or self._made(name):
            return
        if is_folder_name(name):
            problem = folder_problem(Path(name), tokenizer_only)
            if problem is not None:
                raise ModelError(f"`{key}`: {name}: {problem}")
        if not tokenizer_only or not is_folder_name(name):
            if config_here(name) is None:
                self.unverified.append(f"model {name} (not in the hub's cache)")
            if self.connect:
                check_can_be_had(name)

    # -- data ----------------------------------------------------------------------------------------------------------

    def _data(self, step: Step) -> None:
        config: Any = step.config
        data = getattr(config, "data", None)
        if step.stage == "evaluate":
            self._try(self._benchmarks, config)
        elif isinstance(data, DataConfig | MixtureConfig):
            accuracy = getattr(config, "accuracy", None)
            need = NEEDED.get(step.stage, ()) + (("answer",) if accuracy else ())
            for source in data.sources:
                self._try(self._problems, config, source, data.on_invalid, need)
        elif isinstance(data, Path) and not self._made(data):
            if step.stage == "grade":
                self._try(self._rows, data, _needs_of_grade)
            else:  # `score`: rows that cannot be scored get an error each, and the others are scored
                self._try(self._rows, data, _needs_of_score, LOOKED_AT)
        for path in (*getattr(config, "exclude", []), getattr(config, "heldout", None)):
            if path is not None and not self._made(path):
                self._try(self._rows, path, _column("question"))
        scores = getattr(config, "scores", None)
        if scores is not None and not self._made(scores):
            self._try(self._rows, scores, _column(config.by))
        budget = getattr(config, "token_budget", None)
        if isinstance(budget, str) and not self._made(budget) and not Path(budget).exists():
            self._say([f"`token_budget`: {budget!r} is neither a number nor a file of explanations."])
        if step.stage in ("train", "score") and not config.student:
            self._say(["`student` is missing: the model whose understanding is the reward."])

    def _problems(self, config: Any, data: DataConfig, on_invalid: str, need: tuple[str, ...]) -> None:
        if self._made(data.path):
            return
        if not names_a_file(data.path):
            self.unverified.append(f"data set {data.path} (on the hub)")
            if self.connect and not is_cached(data.path) and unreachable():
                raise DataError(f"`data`: {data.path}: no such file, not in the hub's cache, and {unreachable()}.")
            return
        fmt = load_format(config.format) if hasattr(config, "format") else None
        errors = []
        for where, row in self._first(data, rows_of(data)):
            try:
                problem = problem_in(data, row, where, "0")
                missing = [column for column in need if getattr(problem, column) is None]
                if missing:
                    raise DataError(f"{where}: column `{missing[0]}` is missing, and this stage needs it.")
                if fmt is not None:
                    check_problem(fmt, problem, where)
                return
            except DataError as error:
                errors.append(error)
                if "skip" not in (on_invalid, data.on_invalid):
                    break
        raise errors[0] if errors else DataError(f"{data.path}: has no rows.")

    def _first(self, data: DataConfig, rows: Iterable[tuple[str, JsonRow]]) -> Iterator[tuple[str, JsonRow]]:
        return islice(iter(rows), data.skip, data.skip + LOOKED_AT)

    def _rows(self, path: Path, check: Callable[[str, JsonMap], None], looked_at: int = 1) -> None:
        """Raises DataError where none of the first rows passes the check."""
        errors = []
        for where, row in islice(read_rows(path), looked_at):
            try:
                return check(where, row)
            except DataError as error:
                errors.append(error)
        raise errors[0] if errors else DataError(f"{path}: has no rows.")

    def _benchmarks(self, config: Any) -> None:
        names = config.benchmark or ([config.data] if config.data else [])
        if not names:
            self._say(["nothing to evaluate on: give `benchmark`, names or files, or `data`, a file."])
        prompt = config.system_prompt
        if prompt not in ("format", "none") and not Path(prompt).is_file():
            self._say([f"`system_prompt`: {prompt!r} is neither `format`, `none` nor a text file."])
        for name in names:
            if self._made(name) or f"{name} {config.data} {config.task}" in self._looked:
                continue
            self._looked.add(f"{name} {config.data} {config.task}")
            benchmark, path = load_benchmark(name, config.task)
            self._try(load_grader, benchmark.task)
            source = path or config.data
            if source is not None and not self._made(source):
                load_questions(benchmark, source, limit=1)
            elif source is None and benchmark.hub is not None:
                self.unverified.append(f"benchmark {name} ({benchmark.hub.path} on the hub)")

    # -- contexts ------------------------------------------------------------------------------------------------------

    def _context(self, step: Step) -> None:
        config: Any = step.config
        model = getattr(config, "model", None)
        context = self._context_of(model) if isinstance(model, str) else None
        wanted, key = _tokens(step)
        trainer = getattr(config, "trainer", {})
        if trainer.get("use_vllm") and isinstance(trainer.get("vllm_max_model_length"), int):
            context = min(trainer["vllm_max_model_length"], context or trainer["vllm_max_model_length"])
        if context is None or wanted is None:
            return
        room = 0 if key == "max_length" else 1  # a prompt has a token at least
        if wanted + room > context:
            self._say([f"`{key}` {wanted} does not fit into the context of {context} tokens of {model}. Lower it."])
        elif step.stage in ("train", "coldstart") and config.data.on_invalid == "error":
            for source in config.data.sources:
                if not self._made(source.path):
                    self._try(self._prompts, step, source, model, context - wanted, key)

    def _prompts(self, step: Step, data: DataConfig, model: str, room: int, key: str) -> None:
        """Raises DataError where one of the first rows has more tokens than its prompt may have.

        A lower bound, for it needs no template: what the prompt repeats of the row.
        """
        file = Path(model) / "tokenizer.json"
        if self._made(model) or not file.is_file() or not names_a_file(data.path):
            return
        columns = ("question", "solution") if step.stage == "train" else ("question",)
        if str(file) not in self._tokenizers:
            from tokenizers import Tokenizer

            try:
                self._tokenizers[str(file)] = Tokenizer.from_file(str(file))
            except Exception as error:  # the library raises nothing narrower
                raise ModelError(f"{file}: not a tokenizer: {error}") from error
        for where, row in self._first(data, rows_of(data)):
            problem = problem_in(data, row, where, "0")
            text = [getattr(problem, column) for column in columns]
            tokens = sum(len(self._tokenizers[str(file)].encode(part, add_special_tokens=False)) for part in text)
            if tokens > room:
                raise DataError(
                    f"{where}: {' and '.join(columns)} alone have {tokens} tokens, and `{key}` leaves {room} of the context of "
                    f"{model} to the prompt. Lower it, or set `data.on_invalid: skip`."
                )

    def _context_of(self, model: str) -> int | None:
        """Tokens that the model's texts may have; for a model that a step makes, those of the model it starts from."""
        maker = self.makers.get(Path(model).absolute())
        if maker is not None:
            start: Any = getattr(maker.config, "model", None)
            if isinstance(start, dict):
                shape = {**(literal_of("rlt.models.tiny", "DEFAULT_SHAPE") or {}), **start}
                return shape.get("max_position_embeddings")
            return self._context_of(start) if isinstance(start, str) else None
        config = self._open(model) or {}
        text = config.get("text_config")
        length = (text if isinstance(text, dict) else config).get("max_position_embeddings")
        return length if isinstance(length, int) else None


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _listed(steps: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in steps[:3])
    return f"step{'s' * (len(steps) > 1)} {shown}" + (f" and {len(steps) - 3} more" if len(steps) > 3 else "")


def _models(config: StageConfig) -> Iterator[tuple[str, str]]:
    """`(key, name)` of each model that a configuration names."""
    for key in ("model", "teacher"):
        name = getattr(config, key, None)
        if isinstance(name, str):
            yield key, name
    for name in getattr(config, "student", []):
        if not (name == SELF and isinstance(config, TrainConfig)):
            yield "student", name


def _defaults(step: Step) -> JsonRow:
    """The stage's own defaults of `trainer`."""
    return literal_of(f"rlt.stages.{step.stage}", "DEFAULTS") or {}


def _tokens(step: Step) -> tuple[int | None, str]:
    """Tokens that a step needs to fit a context, and the key that says so; None where it takes what there is."""
    config: Any = step.config
    if step.stage in ("train", "coldstart"):
        wanted = {**_defaults(step), **config.trainer}.get("max_completion_length")
        return wanted if isinstance(wanted, int) else None, "trainer.max_completion_length"
    if step.stage == "evaluate" and config.engine != "openai":
        return config.max_tokens, "max_tokens"
    return getattr(config, "max_length", None), "max_length"


# -- what the first row must have -----------------------------------------------------------------------------------------


def _column(name: str) -> Callable[[str, JsonMap], None]:
    def check(where: str, row: JsonMap) -> None:
        if name not in row:
            raise DataError(f"{where}: column `{name}` is missing; the row has {', '.join(sorted(row))}.")

    return check


def _needs_of_grade(where: str, row: JsonMap) -> None:
    for name in ("response", "answer"):
        _column(name)(where, row)


def _needs_of_score(where: str, row: JsonMap) -> None:
    problem_of(dict(row), where, "0")
    if row.get("explanation") is None and row.get("completion") is None and "conversations" not in row:
        raise DataError(f"{where}: has neither `explanation` nor `completion`; scoring needs one of them.")
