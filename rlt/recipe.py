"""Recipes: one YAML file that configures any number of stages, expanded into steps with checked configurations.

    name: my-teacher                 # the run's folder is runs/my-teacher
    seeds: [0, 1]                    # every step runs once a seed (default: [0])
    jobs: 2                          # steps that run side by side (default: 1)
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
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field

from rlt.config import STAGES, Config, ReportConfig, StageConfig, parse_yaml, validate
from rlt.errors import ConfigError
from rlt.tasks import load_task

FILE_STAGES = ("problems", "score", "grade")  # their output is one file of rows, not a folder
ONCE = ("report",)  # run once, over all seeds
_REFERENCE = re.compile(r"^@([\w.-]+(?:/[\w.-]+)?)(?::(.+))?$")


def _as_numbers(value: Any) -> Any:
    return [value] if isinstance(value, int) else value.split(",") if isinstance(value, str) else value


class RecipeHead(Config):
    """The keys of a recipe that are no steps."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Name of the run's folder."""
    description: str = ""
    """What the recipe is for, in one line; shown when it starts and in the report."""
    folder: Path = Path("runs")
    """Where runs are kept."""
    seeds: Annotated[list[int], BeforeValidator(_as_numbers), Field(min_length=1)] = [0]
    """Every step runs once for each of these."""
    jobs: int = Field(1, ge=1)
    """Steps that run side by side, each in a process with one thread."""
    needs_gpu: bool = False
    """The recipe is no use without a GPU; it says so at the start instead of running for weeks."""
    defaults: dict[str, dict[str, Any]] = {}
    """Stage -> keys that every step of that stage starts from."""


@dataclass(frozen=True)
class Step:
    """One step for one seed (None: over all seeds): its checked configuration and the steps it waits for.

    `name` is `step` or `step/variant`; `key` is unique in the run.
    """

    name: str
    stage: str
    seed: int | None
    config: StageConfig
    after: tuple[str, ...]

    @property
    def key(self) -> str:
        return self.name if self.seed is None else f"seed {self.seed} {self.name}"


@dataclass(frozen=True)
class Recipe:
    """A recipe with every step expanded, in an order in which each stands after those it waits for.

    `values` is the YAML's content with overrides applied.
    """

    head: RecipeHead
    steps: tuple[Step, ...]
    values: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The run's directory."""
        return self.head.folder / self.head.name

    def dump(self) -> str:
        """YAML that repeats this run, in other versions of rlt too: its steps, overrides included, and in `defaults` every
        default of their stages.
        """
        steps = {key: value for key, value in self.values.items() if key not in RecipeHead.model_fields}
        defaults = {
            stage: deep_merge(_defaults_of(stage), self.head.defaults.get(stage, {}))
            for stage in dict.fromkeys(step.stage for step in self.steps)
        }
        head = self.head.model_dump(mode="json")
        return yaml.safe_dump({**head, "defaults": defaults, **steps}, sort_keys=False, allow_unicode=True, width=120)

    def of_seed(self, seed: int) -> Iterator[Step]:
        return (step for step in self.steps if step.seed == seed)


def _defaults_of(stage: str) -> dict[str, Any]:
    # A recipe gives each step its output, and its seed where it has none of its own.
    return STAGES[stage].model_construct(output=Path()).model_dump(mode="json", exclude={"output", "seed"})


def recipe_of_run(folder: Path) -> Recipe:
    """The recipe that a run was made with, for the folder where the run stands now. Raises ConfigError as load_recipe."""
    folder = folder if folder.name else folder.resolve()
    return load_recipe(folder / "recipe.yaml", {"folder": str(folder.parent), "name": folder.name})


def load_recipe(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file, with `overrides` (nested as in the file) laid over it.

    Relative paths of a recipe (formats, data files) are tried from the working directory, then beside the recipe. Raises
    ConfigError that names the recipe, the step and the key.
    """
    path = Path(path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such recipe.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of steps; see `rlt run --help`.")
    values = _beside(values, path.parent)
    for key in overrides or {}:
        if key not in RecipeHead.model_fields and key not in values:
            near = difflib.get_close_matches(key, [*values, *RecipeHead.model_fields], n=2)
            raise ConfigError(
                f"--{key}: {path} has no such step{' (did you mean ' + ' or '.join(near) + '?)' if near else ''}."
            )
    return build_recipe(deep_merge(values, overrides or {}), str(path))


def build_recipe(values: dict[str, Any], where: str) -> Recipe:
    """The recipe with this content; `where` names it in errors. Raises ConfigError as load_recipe."""
    head_values = {key: value for key, value in values.items() if key in RecipeHead.model_fields}
    head_values.setdefault("name", Path(where).parent.name or "run")
    head: RecipeHead = validate(RecipeHead, head_values, where)
    for stage in head.defaults:
        if stage not in STAGES:
            raise ConfigError(f"{where}: `defaults.{stage}`: there is no such stage; stages are {', '.join(STAGES)}.")
    expanded = _expand(values, head, where)
    steps = []
    for seed in head.seeds:
        steps += [
            _step(name, raw, head, seed, expanded, where) for name, raw in expanded.items() if raw["stage"] not in ONCE
        ]
    steps += [_step(name, raw, head, None, expanded, where) for name, raw in expanded.items() if raw["stage"] in ONCE]
    for step in steps:
        if isinstance(step.config, ReportConfig):
            _check_report(step.config, expanded, f"{where}: step `{step.name}`")
    return Recipe(head, tuple(steps), values)


def _expand(values: Mapping[str, Any], head: RecipeHead, where: str) -> dict[str, dict[str, Any]]:
    """Step name -> its keys with `stage`, variants laid out, in the order of the recipe."""
    expanded: dict[str, dict[str, Any]] = {}
    for name, raw in values.items():
        if name in RecipeHead.model_fields:
            continue
        if not isinstance(raw, dict):
            raise ConfigError(f"{where}: step `{name}`: must be a mapping of keys, not {type(raw).__name__}.")
        stage = raw.get("stage", name)
        if stage not in STAGES:
            near = difflib.get_close_matches(str(stage), STAGES, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"{where}: step `{name}`: no stage {stage!r}{hint}; stages are {', '.join(STAGES)}.")
        keys = {key: value for key, value in raw.items() if key not in ("stage", "each")}
        common = deep_merge(head.defaults.get(stage, {}), keys)
        variants = _variants(raw.get("each"), expanded, f"{where}: step `{name}`")
        if variants is None:
            expanded[name] = {**common, "stage": stage}
            continue
        for variant, special in variants.items():
            filled = _fill(deep_merge(common, special or {}), {"each": variant})
            expanded[f"{name}/{variant}"] = {**filled, "stage": stage}
    return expanded


def _variants(each: Any, expanded: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    if each is None:
        return None
    if isinstance(each, str):
        prefix = each.removeprefix("@") + "/"
        names = [name.removeprefix(prefix) for name in expanded if name.startswith(prefix)]
        if not names:
            raise ConfigError(f"{where}: `each: {each}`: no earlier step of that name has variants.")
        return dict.fromkeys(names)
    if isinstance(each, list):
        return dict.fromkeys(map(str, each))
    if isinstance(each, dict):
        return each
    raise ConfigError(f"{where}: `each` is a mapping, a list, or the name of a step with variants.")


def _step(
    name: str, raw: dict[str, Any], head: RecipeHead, seed: int | None, expanded: Mapping[str, Any], where: str
) -> Step:
    stage = raw["stage"]
    after: list[str] = []

    names = list(expanded)
    earlier, stages = names[: names.index(name)], {one: its["stage"] for one, its in expanded.items()}

    def path_of(other: str, part: str | None) -> str:
        known = [one for one in names if (one == other or one.startswith(f"{other}/")) and stages[one] not in ONCE]
        if not known or other == name:
            near = difflib.get_close_matches(other, expanded, n=2)
            hint = f" (did you mean {' or '.join('@' + n for n in near)}?)" if near else ""
            raise ConfigError(f"{where}: step `{name}`: @{other} is no other step of this recipe{hint}.")
        if not set(known) <= set(earlier):
            raise ConfigError(
                f"{where}: step `{name}`: @{other} is a later step. Steps run in order: write `{other}` before `{name}`."
            )
        after.extend(known)
        path = output_of(head, other, expanded.get(other, {}).get("stage"), seed)
        return str(path / part) if part else str(path)

    values = _resolve(_fill({k: v for k, v in raw.items() if k != "stage"}, {"seed": seed}), path_of)
    values.setdefault("output", str(output_of(head, name, stage, seed)))
    values.setdefault("seed", 0 if seed is None else seed)
    config = validate(STAGES[stage], values, f"{where}: step `{name}`")
    if stage in ONCE:
        after = [other for other, its in expanded.items() if its["stage"] not in ONCE]
    return Step(name, stage, seed, config, tuple(one for one in names if one in after))


def _check_report(config: ReportConfig, expanded: Mapping[str, dict[str, Any]], where: str) -> None:
    """Raises ConfigError for a name in a report that is no step, variant or arm: it would be missing without a word."""

    def check(key: str, name: str, known: Collection[str]) -> None:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]}?" if near else f" There are: {', '.join(known) or 'none'}."
            raise ConfigError(f"{where}: `{key}`: {name!r} is no step or variant of that kind.{hint}")

    def of_stage(stage: str) -> dict[str, None]:
        return dict.fromkeys(name for name, raw in expanded.items() if raw["stage"] == stage)

    def heads(stage: str) -> dict[str, None]:
        return dict.fromkeys(name.split("/")[0] for name in of_stage(stage))

    def variants(step: str) -> dict[str, None]:
        return dict.fromkeys(name.removeprefix(f"{step}/") for name in expanded if name.startswith(f"{step}/"))

    evaluated = of_stage("evaluate")
    arms = {**variants(config.sampled), **evaluated}
    if config.bands or not set(config.arms) <= set(evaluated):
        check("sampled", config.sampled, heads("evaluate"))
    for key, stage in (("greedy", "evaluate"), ("explained", "collect"), ("scored", "score")):
        step = getattr(config, key)
        if step is not None:
            check(key, step, heads(stage))
            for teacher in config.teachers if key != "greedy" else ():
                check("teachers", teacher, variants(step))
    if config.trained is not None:
        check("trained", config.trained, expanded)
    for arm in config.arms:
        check("arms", arm, arms)
    for band in config.bands:
        check("bands", band, variants(config.sampled))
    for arm in config.headline:
        check("headline", arm, config.arms or evaluated)
    for key in ("teachers", "headline"):
        if len(getattr(config, key)) not in (0, 2):
            raise ConfigError(f"{where}: `{key}`: must be two names, or none.")
    if config.task is not None and not hasattr(load_task(config.task), "inspect"):
        raise ConfigError(f"{where}: `task`: {config.task} cannot inspect explanations; leave the key out.")


def output_of(head: RecipeHead, name: str, stage: str | None, seed: int | None) -> Path:
    """Where the step of that name leaves its results."""
    run = head.folder / head.name
    if stage in ONCE:
        return run
    if len(head.seeds) > 1:
        run = run / f"seed-{seed}"
    path = run / name
    return path.with_name(path.name + ".jsonl") if stage in FILE_STAGES else path


def _resolve(value: Any, path_of: Any) -> Any:
    if isinstance(value, str):
        match = _REFERENCE.match(value)
        return path_of(match[1], match[2]) if match else value
    if isinstance(value, dict):
        return {key: _resolve(item, path_of) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, path_of) for item in value]
    return value


def _fill(value: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        for key, text in names.items():
            value = value.replace("{" + key + "}", str(text))
        return value
    if isinstance(value, dict):
        return {key: _fill(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, names) for item in value]
    return value


def _beside(value: Any, folder: Path) -> Any:
    """Texts that name a file beside the recipe, but none from here, become paths to it (`./format.yaml`; of `./models/{seed}`
    the folder `./models` has to be there)."""
    if (
        isinstance(value, str)
        and value.startswith(("./", "../"))
        and not Path(value).exists()
        and (folder / value.split("{")[0]).exists()
    ):
        return str(folder / value)
    if isinstance(value, dict):
        return {key: _beside(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_beside(item, folder) for item in value]
    return value


def deep_merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with `over` laid on top; mappings are merged, everything else is replaced."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, Mapping)
        merged[key] = deep_merge(merged[key], value) if both else value
    return merged
