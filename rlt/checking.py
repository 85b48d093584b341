"""Checks a recipe before its first step begins: options, data, models, contexts, extras.

Imports nothing heavy: options of TRL, peft and vLLM are read from their source; of a model only config.json is read, of a
data file only the first rows. Outputs of earlier steps cannot be checked, and nothing is downloaded: models and datasets
that only the hub has are listed as not verified.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlt.config import (
    SELF,
    ColdstartConfig,
    DataConfig,
    DistillConfig,
    EngineOptions,
    EvaluateConfig,
    FormatOptions,
    GainConfig,
    MixtureConfig,
    PretrainConfig,
    ProblemsConfig,
    RayOptions,
    ScoreConfig,
    SelectConfig,
    StageConfig,
    TrainConfig,
    TrainerOptions,
    TrainerPassthrough,
    is_url,
)
from rlt.config.launch import launch_file, launch_options
from rlt.data.first_rows import LOOKED_AT, first_rows, has_column, needs_of_grade, needs_of_score, one_passes
from rlt.data.overlap import leaks
from rlt.data.problems import names_a_file, problem_in
from rlt.errors import DataError, ModelError, RltError
from rlt.models.hub import check_can_be_had, config_here, folder_problem, is_cached, is_folder_name, unreachable
from rlt.recipe import ONCE, Recipe, Step, build_recipe
from rlt.recipe.evolution import variations
from rlt.tasks import load_generated_task, load_generating_task, load_grader
from rlt.tasks.benchmarks import load_benchmark, load_questions
from rlt.text.formats import check_problem, load_format
from rlt.training.batches import batch_problems, sampler_problem
from rlt.training.options import (
    TRAINERS,
    engine_problems,
    fields_problems,
    literal_of,
    peft_problems,
    trainer_problems,
)
from rlt.types import JsonMap, JsonRow

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NEEDED = {"warmup": ("explanation",), "distill": ("explanation",), "coldstart": ("answer",)}
"""Stage -> optional columns of its data that every row must have."""


@dataclass(frozen=True)
class Checked:
    """`problems`: what would stop a step, one line each. `unverified`: what only the hub can answer."""

    problems: list[str]
    unverified: list[str]


def check_steps(recipe: Recipe, steps: Sequence[Step], *, connect: bool = False) -> Checked:
    """What is wrong with these steps of the recipe, found without running anything.

    `connect`: also check that the hub can be reached, if something must come from it (at most 1.5 seconds).
    """
    check = _Check(recipe, connect)
    for step in steps:
        check.step(step)
    if any(step.stage == "evaluate" for step in steps):
        check.name = "evaluate"
        check._say(leaks([step.config for step in recipe.steps]))
    return Checked(*(list(dict.fromkeys(lines)) for lines in (check.problems, check.unverified)))


def check_search(recipe: Recipe) -> list[str]:
    """What is wrong with the recipe's steps for a value of its `evolve.search`, and is not wrong without it."""
    if recipe.head.evolve is None:
        return []
    found, known = [], {*check_steps(recipe, recipe.steps).problems}
    for where, values in variations(recipe):
        varied = build_recipe(values, where)
        problems = check_steps(varied, varied.steps).problems
        found += [f"{where}: {problem}" for problem in problems if problem not in known]
    return found


def table(recipe: Recipe, checked: Checked) -> str:
    """Output of `rlt check` for a recipe without problems: a line per step, and what could not be verified."""
    variants: dict[str, list[Step]] = {}
    for step in recipe.steps:
        if step.seed in (recipe.head.seeds[0], None):
            variants.setdefault(step.name.split("/")[0], []).append(step)
    width = max(map(len, variants), default=0)
    seeds = len(recipe.head.seeds)
    lines = [f"{recipe.head.name}: {len(recipe.steps)} steps, {seeds} seed{'s' * (seeds > 1)}: no problems found"]
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
        self._tokenizers: dict[str, Tokenizer] = {}

    def step(self, step: Step) -> None:
        config = step.config
        self.name = step.name
        if isinstance(config, FormatOptions):
            self._try(load_format, config.format)
        self._tasks(config)
        if isinstance(config, TrainerOptions):
            self._say(trainer_problems(config.trainer, *TRAINERS[step.stage]))
        if isinstance(config, TrainConfig | ColdstartConfig):
            self._batches(step, config)
        if isinstance(config, TrainerPassthrough):
            if config.peft is not None:
                self._extra("peft", "LoRA")
                self._say(peft_problems(config.peft))
            if config.launch:
                self._try(self._launch, config.launch)
            if config.trainer.get("use_vllm"):
                self._extra("vllm", "`trainer.use_vllm`")
        if isinstance(config, RayOptions) and config.ray is not None:
            self._extra("ray", "`ray`")
        if isinstance(config, EngineOptions):
            self._engine(config)
        for key in ("api_key_env", "student_api_key_env"):
            name = getattr(config, key, None)
            if name is not None and name not in os.environ:
                self._say([f"`{key}`: the environment variable {name} is not set. Set it to the server's key."])
        for key, model in _models(config):
            self._try(self._model, key, model, getattr(config, "engine", "") == "openai")
        self._data(config, NEEDED.get(step.stage, ()))
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
        """Whether a step of this recipe creates the file or folder."""
        absolute = Path(path).absolute()
        return any(place in self.makers for place in (absolute, *absolute.parents))

    def _extra(self, package: str, user: str) -> None:
        if not _is_installed(package):
            self._say([f"{user} needs {package}: pip install 'rlt[{package}]'"])

    # -- options -------------------------------------------------------------------------------------------------------

    def _tasks(self, config: StageConfig) -> None:
        if isinstance(config, PretrainConfig) or (isinstance(config, ProblemsConfig) and config.task is not None):
            self._try(self._generated, config)
            return
        accuracy, data = getattr(config, "accuracy", None), getattr(config, "data", None)
        sources = data.sources if isinstance(data, DataConfig | MixtureConfig) else []
        own = [getattr(config, "task", None), accuracy.task if accuracy else None]
        for name in (*own, *(source.task for source in sources)):
            if name is not None:
                self._try(load_grader, name)

    def _generated(self, config: ProblemsConfig | PretrainConfig) -> None:
        if isinstance(config, ProblemsConfig) and config.experts is None:
            getattr(load_generating_task(config.task or ""), "check_options", lambda options: None)(config.options)
            return
        task = load_generated_task(config.task or "")
        experts: list[object] = [config.experts] if isinstance(config, ProblemsConfig) else []
        for number, phase in enumerate(config.phases if isinstance(config, PretrainConfig) else ()):
            self._say(fields_problems(f"phases[{number}]", phase, "rlt.stages.pretrain", "Phase"))
            experts.append(phase.get("experts"))
        for name in experts:
            if name is not None and name not in task.MIXTURES:
                self._say([f"`experts`: unknown mixture {name!r}; expected one of {', '.join(task.MIXTURES)}."])

    def _batches(self, step: Step, config: TrainConfig | ColdstartConfig) -> None:
        processes: object = 1
        if config.launch:
            try:
                processes = launch_options(launch_file(config.launch)).get("num_processes")
            except RltError:  # reported by `_launch`
                return
        if isinstance(processes, int):  # else as many as there are GPUs
            self._say(batch_problems(_trainer(step.stage, config), processes))
        if config.sampler == "engine":
            problem = sampler_problem(_trainer(step.stage, config))
            self._say([problem] if problem else [])

    def _launch(self, name: str) -> None:
        options = launch_options(launch_file(name))
        if options.get("distributed_type") == "DEEPSPEED":
            self._extra("deepspeed", f"`launch: {name}`")

    def _engine(self, config: EngineOptions) -> None:
        conflict = config.conflict()
        if conflict is not None:
            self._say([conflict])
        if config.engine == "vllm":
            self._extra("vllm", "engine `vllm`")
        if config.engine_options:
            model: str = config.model  # type: ignore[attr-defined]
            self._say(engine_problems(config.engine, config.engine_options, self._open(model)))

    # -- models --------------------------------------------------------------------------------------------------------

    def _open(self, model: str) -> JsonRow | None:
        """The model's config.json, if it is on this machine."""
        if self._made(model):
            return None
        if model not in self._opened:
            self._opened[model] = None
            with contextlib.suppress(ModelError):
                self._opened[model] = config_here(model)
        return self._opened[model]

    def _model(self, key: str, name: str, tokenizer_only: bool) -> None:
        served = is_url(name)
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

    def _data(self, config: StageConfig, need: tuple[str, ...]) -> None:
        data = getattr(config, "data", None)
        if isinstance(config, EvaluateConfig):
            self._try(self._benchmarks, config)
        elif isinstance(data, DataConfig | MixtureConfig):
            need += ("answer",) if getattr(config, "accuracy", None) else ()
            for source in data.sources:
                self._try(self._problems, config, source, data.on_invalid, need)
        elif isinstance(data, Path) and not self._made(data):
            # Rows that cannot be scored get an error each, and the others are scored.
            needs = (needs_of_score, LOOKED_AT) if isinstance(config, ScoreConfig | GainConfig) else (needs_of_grade,)
            self._try(one_passes, data, *needs)
        gain = config.gain if isinstance(config, TrainConfig) else None
        for path in (*getattr(config, "exclude", []), getattr(gain or config, "heldout", None)):
            if path is not None and not self._made(path):
                self._try(one_passes, path, has_column("question"))
        if (
            isinstance(config, SelectConfig | GainConfig)
            and config.scores is not None
            and not self._made(config.scores)
        ):
            self._try(one_passes, config.scores, has_column(config.by))
        budget = config.token_budget if isinstance(config, DistillConfig) else None
        if isinstance(budget, str) and not self._made(budget) and not Path(budget).exists():
            self._say([f"`token_budget`: {budget!r} is neither a number nor a file of explanations."])
        if isinstance(config, TrainConfig | ScoreConfig) and not config.student:
            self._say(["`student` is missing: the model whose understanding is the reward."])

    def _problems(self, config: StageConfig, data: DataConfig, on_invalid: str, need: tuple[str, ...]) -> None:
        if self._made(data.path):
            return
        if not names_a_file(data.path):
            self.unverified.append(f"dataset {data.path} (on the hub)")
            if self.connect and not is_cached(data.path) and unreachable():
                raise DataError(f"`data`: {data.path}: no such file, not in the hub's cache, and {unreachable()}.")
            return
        fmt = load_format(config.format) if isinstance(config, FormatOptions) else None
        errors = []
        for where, row in first_rows(data):
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

    def _benchmarks(self, config: EvaluateConfig) -> None:
        names = config.benchmark or ([config.data] if config.data else [])
        if not names:
            self._say(["nothing to evaluate on: set `benchmark` (names or files) or `data` (a file)."])
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
        config = step.config
        model = getattr(config, "model", None)
        context = self._context_of(model) if isinstance(model, str) else None
        wanted, key = _tokens(step)
        trainer: JsonMap = config.trainer if isinstance(config, TrainerOptions) else {}
        longest = trainer.get("vllm_max_model_length")
        if trainer.get("use_vllm") and isinstance(longest, int):
            context = min(longest, context or longest)
        if context is None or wanted is None:
            return
        room = 0 if key == "max_length" else 1  # a prompt has a token at least
        if wanted + room > context:
            self._say([f"`{key}` {wanted} does not fit into the context of {context} tokens of {model}. Lower it."])
        elif isinstance(config, TrainConfig | ColdstartConfig) and config.data.on_invalid == "error":
            for source in config.data.sources:
                if not self._made(source.path):
                    self._try(self._prompts, step, source, model, context - wanted, key)

    def _prompts(self, step: Step, data: DataConfig, model: str, room: int, key: str) -> None:
        """Raises DataError if one of the first rows has more tokens than its prompt may have.

        Counts only the columns that the prompt repeats, a lower bound that needs no template.
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
        for where, row in first_rows(data):
            problem = problem_in(data, row, where, "0")
            text = [getattr(problem, column) for column in columns]
            tokens = sum(len(self._tokenizers[str(file)].encode(part, add_special_tokens=False)) for part in text)
            if tokens > room:
                raise DataError(
                    f"{where}: {' and '.join(columns)} alone have {tokens} tokens, but `{key}` leaves only {room} of the "
                    f"context of {model} for the prompt. Lower it, or set `data.on_invalid: skip`."
                )

    def _context_of(self, model: str) -> int | None:
        """Context of the model in tokens; for a model that a step makes, that of the model it starts from."""
        maker = self.makers.get(Path(model).absolute())
        if maker is not None:
            start = getattr(maker.config, "model", None)
            if isinstance(start, dict):
                return _positions({**literal_of("rlt.models.tiny", "DEFAULT_SHAPE"), **start})
            return self._context_of(start) if isinstance(start, str) else None
        config = self._open(model) or {}
        text = config.get("text_config")
        return _positions(text if isinstance(text, dict) else config)


def _positions(config: JsonMap) -> int | None:
    length = config.get("max_position_embeddings")
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


def _trainer(stage: str, config: TrainerOptions) -> JsonRow:
    """The options of `trainer` over the stage's own defaults."""
    return {**literal_of(f"rlt.stages.{stage}", "DEFAULTS"), **config.trainer}


def _tokens(step: Step) -> tuple[int | None, str]:
    """Tokens that must fit the context, and the key that sets them; None if the step uses whatever is left."""
    config = step.config
    if isinstance(config, TrainConfig | ColdstartConfig):
        wanted = _trainer(step.stage, config).get("max_completion_length")
        return wanted if isinstance(wanted, int) else None, "trainer.max_completion_length"
    if isinstance(config, EvaluateConfig) and config.engine != "openai":
        return config.max_tokens, "max_tokens"
    return getattr(config, "max_length", None), "max_length"
