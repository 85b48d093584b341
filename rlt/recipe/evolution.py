"""Checks the key `evolve` of a recipe: steps that teachers share, steps of each teacher, searched keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlt.config import EvolveOptions, Range, Setting
from rlt.errors import ConfigError
from rlt.recipe.values import deep_merge
from rlt.types import JsonRow

if TYPE_CHECKING:
    from rlt.recipe import Recipe, Step

KEY = "evolve"
SCREEN, SCORE, FINAL = "screen", "score", "final"


@dataclass(frozen=True)
class EvolutionPlan:
    """Names of steps, without variants, in the recipe's order.

    `shared` run once per repeat, `own` once per teacher; `phases`: the own steps that run by the end of each phase.
    `settings`: the recipe's own value of each key of the search.
    """

    options: EvolveOptions
    shared: tuple[str, ...]
    own: tuple[str, ...]
    phases: dict[str, tuple[str, ...]]
    settings: dict[str, Setting]


def plan_of(recipe: Recipe) -> EvolutionPlan:
    """What `rlt evolve` runs of the recipe. Raises ConfigError for a key of `evolve` that does not fit the recipe."""
    options = recipe.head.evolve
    if options is None:
        raise ConfigError(f"{recipe.head.name}: has no key `{KEY}`; `rlt evolve` needs one (docs/archive.md).")
    if "rounds" in recipe.values:
        raise ConfigError(f"`{KEY}`: a recipe cannot have `rounds` as well. Write two recipes.")
    steps: dict[str, list[Step]] = {}
    for step in recipe.of_seed(recipe.head.seeds[0]):
        steps.setdefault(step.name.split("/")[0], []).append(step)
    _check_steps(options, steps)
    after = {name: {one.split("/")[0] for step in group for one in step.after} for name, group in steps.items()}
    own: list[str] = []
    for name in steps:
        searched = any(step_of(key, steps) == name for key in options.search)
        if name == options.train or searched or after[name] & {*own}:
            own.append(name)
    for key in (SCREEN, SCORE, FINAL):
        name = getattr(options, key)
        if name is not None and options.train not in _before(name, after):
            raise ConfigError(
                f"`{KEY}.{key}`: `{name}` does not depend on `{options.train}`, so it cannot score a teacher."
            )

    def needed(name: str | None) -> set[str]:
        return set() if name is None else _before(name, after) & {*own}

    last = needed(options.final) - needed(options.score) - needed(options.screen)
    phases = {SCORE: tuple(name for name in own if name not in last), FINAL: tuple(own)}
    if options.screen is not None:
        phases[SCREEN] = tuple(name for name in own if name in needed(options.screen))
    settings = {key: _own_value(recipe, key, steps) for key in options.search}
    return EvolutionPlan(options, tuple(name for name in steps if name not in own), tuple(own), phases, settings)


def check_evolve(recipe: Recipe, build: Callable[[JsonRow, str], object]) -> None:
    """Raises ConfigError for a mistake in the recipe's `evolve`; `build(values, where)` builds a variation."""
    if recipe.head.evolve is not None:
        plan_of(recipe)
        for where, values in variations(recipe):
            build(values, where)


def variations(recipe: Recipe) -> Iterator[tuple[str, JsonRow]]:
    """`(where, values)` of the recipe without `evolve`, for each value, or end of a range, of each searched key."""
    plan = plan_of(recipe)
    plain = {key: value for key, value in recipe.values.items() if key != KEY}
    for key, space in plan.options.search.items():
        for value in (space.low, space.high) if isinstance(space, Range) else space:
            yield f"`{KEY}.search.{key}` {value!r}", deep_merge(plain, nested(key, value, plan.own))


def step_of(key: str, steps: Iterable[str]) -> str:
    """The step in `step.key`: the longest matching name. Raises ConfigError if there is none."""
    names = [name for name in steps if key.startswith(f"{name}.")]
    if not names:
        raise ConfigError(f"`{KEY}.search.{key}`: does not begin with a step of this recipe. Write `step.key`.")
    return max(names, key=len)


def nested(key: str, value: Setting, steps: Iterable[str]) -> dict[str, JsonRow]:
    """`{step: {key: value}}`, nested as in a recipe."""
    name = step_of(key, steps)
    *outer, last = key.removeprefix(f"{name}.").split(".")
    values: JsonRow = {last: value}
    for part in outer[::-1]:
        values = {part: values}
    return {name: values}


def _check_steps(options: EvolveOptions, steps: dict[str, list[Step]]) -> None:
    for key, stage in (("train", "train"), (SCREEN, "evaluate"), (SCORE, "evaluate"), (FINAL, "evaluate")):
        name = getattr(options, key)
        if name is not None and (name not in steps or steps[name][0].stage != stage):
            raise ConfigError(f"`{KEY}.{key}`: this recipe has no {stage} step `{name}`.")
    if len(steps[options.train]) > 1:
        raise ConfigError(
            f"`{KEY}.train`: `{options.train}` has variants; a teacher is trained by a single step without `each`."
        )
    measured = [name for name in (options.screen, options.score, options.final) if name is not None]
    if len(measured) > len({*measured}):
        raise ConfigError(f"`{KEY}`: `screen`, `score` and `final` must be different steps.")
    for key in options.search:
        if key == f"{step_of(key, steps)}.model" == f"{options.train}.model":
            raise ConfigError(f"`{KEY}.search.{key}`: the model to start from is the parent; it cannot be searched.")


def _before(name: str, after: dict[str, set[str]]) -> set[str]:
    """The step and everything that it depends on."""
    return {name}.union(*(_before(one, after) for one in after[name]))


def _own_value(recipe: Recipe, key: str, steps: dict[str, list[Step]]) -> Setting:
    """The value of a searched key in the recipe: as written there, else the stage's default."""
    name = step_of(key, steps)
    step = steps[name][0]
    value: object = recipe.keys_of(name, step.stage)
    default: object = step.config
    for part in key.removeprefix(f"{name}.").split("."):
        value = value.get(part) if isinstance(value, dict) else None
        default = default.get(part) if isinstance(default, dict) else getattr(default, part, None)
    if value is None and isinstance(default, str | int | float | bool):
        value = default
    assert recipe.head.evolve is not None
    space = recipe.head.evolve.search[key]
    if value not in space:
        shown = f"{space.low} to {space.high}" if isinstance(space, Range) else ", ".join(map(repr, space))
        raise ConfigError(
            f"`{KEY}.search.{key}`: the recipe's own value, {value!r}, is not among {shown}. The first teacher has it: add "
            f"it, or set `{key}` in the step."
        )
    return value  # type: ignore[return-value]  # one of the values in the space
