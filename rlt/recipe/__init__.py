"""Recipes: one YAML file that configures any number of stages, expanded into steps with checked configurations.

    name: my-teacher                 # the run's folder is runs/my-teacher
    seeds: [0, 1]                    # every step runs once per seed (default: [0])
    jobs: 2                          # steps that run in parallel (default: 1)
    defaults: {distill: {...}}       # keys for every step of a stage
    warmup: {model: ..., data: ...}  # a step; its stage is its name, or the key `stage`
    train: {model: "@warmup", ...}   # "@step" is the output of that earlier step, of the same seed
    distill:
      each: {a: {data: x}, b: {data: y}}   # variants: distill/a and distill/b; `each: "@collect"` takes that step's
      model: "@warmup"                     # "{each}" and "{seed}" in a text are replaced

Imports no torch.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, cast

import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from rlt.config import (
    MOVED,
    STAGES,
    Config,
    EvolveOptions,
    ReportConfig,
    Seed,
    StageConfig,
    parse_yaml,
    validate,
    yaml_problem,
)
from rlt.errors import ConfigError, ProblemsFound
from rlt.recipe.evolution import check_evolve
from rlt.recipe.reports import check_report
from rlt.recipe.values import deep_merge, filled, with_paths_of, with_references
from rlt.rounds import BEST, GATES, KEY, ROUND, decision_of, unrolled
from rlt.types import JsonMap, JsonRow

FILE_STAGES = tuple(name for name, config in STAGES.items() if config.writes == "file")
ONCE = ("report",)  # run once, over all seeds
# Names become files of the run's folder: no separators, no `..`, nothing hidden.
NAME = r"^\w[\w.-]*$"
TAKEN = ("logs", "recipe.yaml")  # what a run's folder has besides its steps
SECONDS = ".seconds.json"


def _as_numbers(value: object) -> object:
    return [value] if isinstance(value, int) else value.split(",") if isinstance(value, str) else value


def _different(seeds: list[int]) -> list[int]:
    twice = [seed for seed, count in Counter(seeds).items() if count > 1]
    if twice:
        raise ValueError(f"seed {twice[0]} is listed twice; list each seed once")
    return seeds


class RecipeHead(Config):
    """The keys of a recipe that are not steps."""

    name: str = Field(pattern=NAME)
    """Name of the run's folder."""
    description: str = ""
    """Purpose of the recipe in one line; shown at the start and in the report."""
    time: str = ""
    """How long the recipe takes, and whether that was measured or planned; for `rlt recipes`."""
    hardware: str = ""
    """Hardware of that measurement or plan; for `rlt recipes`."""
    folder: Path = Path("runs")
    """Folder that holds all runs."""
    seeds: Annotated[list[Seed], BeforeValidator(_as_numbers), Field(min_length=1), AfterValidator(_different)] = [0]
    """Seeds; every step runs once per seed."""
    jobs: int = Field(1, ge=1)
    """Number of steps to run in parallel, each in a process with one thread."""
    needs_gpu: bool = False
    """Refuse to start without a GPU, because the run would take weeks."""
    defaults: dict[str, JsonRow] = {}
    """Keys for every step of a stage, by stage."""
    evolve: EvolveOptions | None = None
    """What `rlt evolve` varies; `rlt run` ignores it."""


@dataclass(frozen=True)
class Step:
    """One step for one seed (None: for all seeds), with its checked configuration and the steps it waits for.

    `name` is `step` or `step/variant`; `key` is unique in the run.
    """

    name: str
    stage: str
    seed: int | None
    config: StageConfig
    after: tuple[str, ...]
    gates: tuple[Path, ...] = ()
    """For a step of a later round: outputs of earlier decisions, any of which may have ended the loop."""
    round: int | None = None
    """Number of the round, for a step of `rounds`."""

    @property
    def key(self) -> str:
        return self.name if self.seed is None else f"seed {self.seed} {self.name}"


class Timing(Config):
    """What a step took in an earlier run."""

    seconds: float = Field(ge=0)
    """Mean over seeds."""
    rows: int = Field(0, ge=0)
    """Rows of metrics written; 0 for steps that write none."""


@dataclass(frozen=True)
class Recipe:
    """A recipe with every step expanded; each step comes after those it waits for.

    `values`: content of the YAML with overrides applied. `timings`: step name -> what it took when last measured.
    """

    head: RecipeHead
    steps: tuple[Step, ...]
    values: JsonRow
    timings: Mapping[str, Timing] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run's directory."""
        return self.head.folder / self.head.name

    def dump(self) -> str:
        """YAML that repeats this run, also in other versions of rlt: steps with overrides, and all defaults of their stages
        under `defaults`.
        """
        steps = {key: value for key, value in self.values.items() if key not in RecipeHead.model_fields}
        defaults = {
            stage: deep_merge(_defaults_of(stage), self.head.defaults.get(stage, {}))
            for stage in dict.fromkeys(step.stage for step in self.steps)
        }
        head = self.head.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump({**head, "defaults": defaults, **steps}, sort_keys=False, allow_unicode=True, width=120)

    def not_run(self) -> dict[str, int]:
        """Key of each step that will not run because its loop of rounds has ended -> the round at which it ended.

        Includes steps that depend on such a step, except `best` and reports, which use what exists.
        """
        found: dict[str, int] = {}
        waiting: dict[tuple[int | None, str], int] = {}
        for step in self.steps:
            decisions = [decision for gate in step.gates if (decision := decision_of(gate)) is not None]
            ended = next((decision["round"] for decision in decisions if decision["ended"]), None)
            if ended is None and step.stage not in (BEST, *ONCE):
                ended = next((waiting[step.seed, name] for name in step.after if (step.seed, name) in waiting), None)
            if ended is not None:
                found[step.key] = waiting[step.seed, step.name] = ended
        return found

    def keys_of(self, name: str, stage: str) -> JsonRow:
        """A step's keys as they are written, over the recipe's defaults for its stage."""
        keys = self.values[name]
        return deep_merge(self.head.defaults.get(stage, {}), keys if isinstance(keys, dict) else {})

    def of_seed(self, seed: int) -> Iterator[Step]:
        return (step for step in self.steps if step.seed == seed)


def _defaults_of(stage: str) -> JsonRow:
    # A recipe gives each step its output, and its seed where it has none of its own.
    return STAGES[stage].model_construct(output=Path()).model_dump(mode="json", exclude={"output", "seed"})


def recipe_of_run(folder: Path) -> Recipe:
    """The recipe of an existing run, with its folder's current path. Raises ConfigError as load_recipe does."""
    folder = folder if folder.name else folder.resolve()
    return load_recipe(folder / "recipe.yaml", {"folder": str(folder.parent), "name": folder.name})


def load_recipe(path: Path | str, overrides: JsonMap | None = None) -> Recipe:
    """The recipe in a YAML file, with `overrides` (nested as in the file) applied.

    Relative paths in a recipe (formats, data files) are looked up in the working directory, then in the recipe's folder.
    Raises ProblemsFound with every mistake, each with its step and key.
    """
    recipe, problems = read_recipe(path, overrides)
    if problems:
        raise ProblemsFound(str(path), problems)
    return recipe


def read_recipe(path: Path | str, overrides: JsonMap | None = None) -> tuple[Recipe, list[str]]:
    """`(recipe, problems)`: the valid steps, and one line per mistake in the others.

    Raises ConfigError if the file or its head cannot be read at all.
    """
    path = Path(path).expanduser()
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such recipe.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {yaml_problem(error)}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of steps; see `rlt run --help`.")
    values = with_paths_of({str(key): value for key, value in values.items()}, path.parent)
    for key in overrides or {}:
        if key not in RecipeHead.model_fields and key not in values:
            hint = _near(key, [*values, *RecipeHead.model_fields])
            raise ConfigError(f"--{key}: {path} has no such step{hint}.")
    return _built(deep_merge(values, overrides or {}), str(path), _timings_beside(path))


def build_recipe(values: JsonRow, where: str) -> Recipe:
    """The recipe with this content; `where` names it in errors. Raises ProblemsFound as load_recipe does."""
    recipe, problems = _built(values, where, {})
    if problems:
        raise ProblemsFound(where, problems)
    return recipe


def _built(values: JsonRow, where: str, timings: Mapping[str, Timing]) -> tuple[Recipe, list[str]]:
    head_values = {key: value for key, value in values.items() if key in RecipeHead.model_fields}
    head_values.setdefault("name", Path(where).parent.name or "run")
    head: RecipeHead = validate(RecipeHead, head_values, where)
    problems = [
        f"`defaults.{stage}`: "
        + (
            f"{MOVED[stage]}."
            if stage in MOVED
            else f"unknown stage{_near(stage, STAGES)}; stages are {', '.join(STAGES)}."
        )
        for stage in head.defaults
        if stage not in STAGES
    ]
    expanded = _expand(values, head, problems)
    if not expanded and not problems:
        problems.append("has no steps. A step is a key with the name of a stage; see `rlt run --help`.")
    steps = []
    # Mistakes are the same for every seed.
    for seed in head.seeds:
        for name, raw in expanded.items():
            if raw["stage"] not in ONCE:
                steps += _step(name, raw, head, seed, expanded, problems if seed == head.seeds[0] else [])
    for name, raw in expanded.items():
        if raw["stage"] in ONCE:
            steps += _step(name, raw, head, None, expanded, problems)
    for step in steps:
        if isinstance(step.config, ReportConfig):
            problems += _told(check_report, step.config, expanded, f"step `{step.name}`")
    problems += _shared_outputs(steps)
    recipe = Recipe(head, tuple(steps), values, timings)
    return recipe, problems or _told(check_evolve, recipe, build_recipe)


def _timings_beside(path: Path) -> dict[str, Timing]:
    """Step name -> what it took, from the table next to a recipe; empty without such a table."""
    table = path.with_suffix(SECONDS)
    try:
        read = json.loads(table.read_text(encoding="utf-8"))
        if not isinstance(read, dict):
            raise ValueError("not a mapping of steps")
        return {str(name): validate(Timing, timing, f"`{name}`") for name, timing in read.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{table}: cannot be read ({error}). `rlt timings RUN` prints such a table.") from error


def _told(check: Callable[..., object], *arguments: object) -> list[str]:
    """What `check` refuses, as lines."""
    try:
        check(*arguments)
    except ConfigError as error:
        return [str(error)]
    return []


def _shared_outputs(steps: list[Step]) -> list[str]:
    makers: dict[Path, Step] = {}
    problems = []
    for step in steps:
        other = None if step.stage in ONCE else makers.setdefault(step.config.output, step)
        if other is not None and other is not step:
            problems.append(f"step `{step.name}`: `output` {step.config.output} is already used by {other.key}.")
    return problems


def _near(word: str, known: Collection[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(str(word), [*dict.fromkeys(known)], n=2)
    return f" (did you mean {' or '.join(prefix + one for one in near)}?)" if near else ""


def _expand(values: JsonMap, head: RecipeHead, problems: list[str]) -> dict[str, JsonRow]:
    """Step name -> its keys with `stage`, variants expanded, in the order of the recipe; mistakes join `problems`."""
    expanded: dict[str, JsonRow] = {}
    for name, raw in values.items():
        if name in RecipeHead.model_fields:
            continue
        try:
            expanded |= _rounds(raw, head, values) if name == KEY else _expanded_step(name, raw, head, expanded)
        except ConfigError as error:
            problems.append(str(error))
    return expanded


def _rounds(raw: object, head: RecipeHead, values: JsonMap) -> dict[str, JsonRow]:
    steps = unrolled(raw)
    taken = [name for name in values if name in {step.split("/")[0] for step in steps}]
    if taken:
        raise ConfigError(f"step `{taken[0]}`: `{KEY}` already creates a step of this name. Choose another one.")
    return {name: deep_merge(head.defaults.get(str(keys["stage"]), {}), keys) for name, keys in steps.items()}


def _expanded_step(name: str, raw: object, head: RecipeHead, expanded: JsonMap) -> dict[str, JsonRow]:
    stage = raw.get("stage", name) if isinstance(raw, dict) else name
    if stage in MOVED and stage not in STAGES:
        raise ConfigError(f"step `{name}`: {MOVED[stage]}.")
    if stage not in STAGES and not (isinstance(raw, dict) and "stage" in raw):
        hint = _near(name, [*STAGES, *RecipeHead.model_fields])
        if hint or not isinstance(raw, dict):
            raise ConfigError(f"`{name}`: neither a key of a recipe nor a stage{hint}.")
    if not isinstance(raw, dict):
        raise ConfigError(f"step `{name}`: must be a mapping of keys, not {type(raw).__name__}.")
    _check_name(name, f"step `{name}`")
    if stage not in STAGES:
        raise ConfigError(
            f"step `{name}`: unknown stage {stage!r}{_near(stage, STAGES)}; stages are {', '.join(STAGES)}."
        )
    keys = {key: value for key, value in raw.items() if key not in ("stage", "each")}
    common = deep_merge(head.defaults.get(stage, {}), keys)
    variants = _variants(raw.get("each"), expanded, f"step `{name}`")
    if variants is None:
        return {name: {**common, "stage": stage}}
    steps = {}
    for variant, special in variants.items():
        _check_name(str(variant), f"step `{name}`: variant `{variant}`")
        if not isinstance(special, dict | None):
            raise ConfigError(f"step `{name}`: variant `{variant}` must be a mapping of keys.")
        own = filled(deep_merge(common, special or {}), {"each": variant})
        steps[f"{name}/{variant}"] = {**own, "stage": stage}
    return steps


def _check_name(name: str, where: str) -> None:
    if not re.fullmatch(NAME, name):
        raise ConfigError(
            f"{where}: a name consists of letters, digits, `_`, `-` and `.`, and does not begin with `-` or `.`."
        )
    if name in TAKEN:
        raise ConfigError(f"{where}: `{name}` is reserved in the run's folder. Choose another name.")


def _variants(each: object, expanded: JsonMap, where: str) -> JsonRow | None:
    if each is None:
        return None
    if isinstance(each, str):
        prefix = each.removeprefix("@") + "/"
        names = [name.removeprefix(prefix) for name in expanded if name.startswith(prefix)]
        if not names:
            raise ConfigError(f"{where}: `each: {each}`: no earlier step of that name has variants.")
        return dict.fromkeys(names)
    if isinstance(each, list) and each:
        return dict.fromkeys(map(str, each))
    if isinstance(each, dict) and each:
        return {str(variant): special for variant, special in each.items()}
    raise ConfigError(f"{where}: `each` must be a mapping, a list, or the name of a step with variants.")


def _step(
    name: str,
    raw: JsonRow,
    head: RecipeHead,
    seed: int | None,
    expanded: Mapping[str, JsonRow],
    problems: list[str],
) -> list[Step]:
    """The step, in a list; an empty one where it has mistakes, which join `problems`."""
    stage = str(raw["stage"])
    after: list[str] = []
    names = list(expanded)
    earlier, stages = names[: names.index(name)], {one: str(its["stage"]) for one, its in expanded.items()}

    def path_of(other: str, part: str | None) -> str:
        known = [one for one in names if (one == other or one.startswith(f"{other}/")) and stages[one] not in ONCE]
        if other == name:
            raise ConfigError(f"step `{name}`: @{other} is this step itself. Name an earlier one.")
        if stages.get(other) in ONCE:
            raise ConfigError(f"step `{name}`: @{other} is a report; no step can use one.")
        if not known:
            raise ConfigError(f"step `{name}`: @{other}: no such step{_near(other, expanded, prefix='@')}.")
        if not set(known) <= set(earlier):
            raise ConfigError(
                f"step `{name}`: @{other} is a later step. Steps run in order: write `{other}` before `{name}`."
            )
        after.extend(known)
        path = output_of(head, other, stages.get(other), seed)
        return str(path / part) if part else str(path)

    try:
        values = with_references(filled({k: v for k, v in raw.items() if k != "stage"}, {"seed": seed}), path_of)
        gates = tuple(map(Path, cast(list[str], values.pop(GATES, []))))
        number = cast("int | None", values.pop(ROUND, None))
        values.setdefault("output", str(output_of(head, name, stage, seed)))
        values.setdefault("seed", 0 if seed is None else seed)
        config = validate(STAGES[stage], values, f"step `{name}`")
    except ConfigError as error:
        problems.append(str(error))
        return []
    if stage in ONCE:
        after = [other for other in expanded if stages[other] not in ONCE]
    return [Step(name, stage, seed, config, tuple(one for one in names if one in after), gates, number)]


def output_of(head: RecipeHead, name: str, stage: str | None, seed: int | None) -> Path:
    """The output of the step with this name."""
    run = head.folder / head.name
    if stage in ONCE:
        return run
    if len(head.seeds) > 1:
        run = run / f"seed-{seed}"
    path = run / name
    return path.with_name(path.name + ".jsonl") if stage in FILE_STAGES else path
