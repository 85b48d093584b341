"""The key `evolve` of a recipe: an archive of teachers, made by `rlt evolve`. See docs/archive.md."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rlt.config.base import Config, as_list

Setting = str | int | float | bool | None
"""One value of a searched key."""


class Range(Config):
    """A range of numbers to draw from."""

    low: int | float
    """Smallest value. Two integers draw integers; write 1.0 to draw floats."""
    high: int | float
    """Largest value (inclusive)."""
    log: bool = False
    """Draw uniformly on a logarithmic scale."""
    step: int | float | None = Field(None, gt=0)
    """Draw only `low`, `low + step`, ...; null: any value."""

    @model_validator(mode="after")
    def _an_interval(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"`low` {self.low} must be below `high` {self.high}")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError(f"`step` {self.step} leaves one value, `low`; a search needs two")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("`log` needs `low` above 0 and no `step`")
        return self

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        steps = (value - self.low) / self.step if self.step is not None else 0
        return abs(steps - round(steps)) < 1e-9 and not (whole and value != round(value))


def _at_least_two(values: list[Setting]) -> list[Setting]:
    if len(set(map(repr, values))) < max(2, len(values)):
        raise ValueError("must list at least two different values")
    return values


Choices = Annotated[list[Setting], AfterValidator(_at_least_two)]
Arm = Literal["archive", "best", "first", "random", "continue"]


class EvolveOptions(Config):
    """An archive of teachers, for `rlt evolve`."""

    train: str = "train"
    """Training step: a child starts from its parent's weights and runs this step with mutated settings."""
    score: str = "evaluate"
    """Evaluate step whose solve rate, averaged over its variants, is a teacher's score."""
    screen: str | None = None
    """Cheaper evaluate step that comes first; only children that pass it get the full evaluation. null: all get it."""
    screen_quantile: float = Field(0.25, ge=0, le=1)
    """A child passes if it reaches this quantile of the screening scores of earlier teachers; the others keep their
    screening score."""
    final: str | None = None
    """Evaluate step on questions not used for selection; run only for the first teacher and the best one of each arm."""
    children: int = Field(8, ge=1)
    """Children per arm and repeat. Can be raised later; the same command then makes the rest."""
    at_once: int = Field(1, ge=1)
    """Children of an arm whose parents are drawn from the same state of the archive, so that this many workers can make them
    in parallel. Results depend on this number, not on the number of workers."""
    mutations: int = Field(1, ge=1)
    """Number of settings that differ between parent and child."""
    arms: Annotated[list[Arm], BeforeValidator(as_list)] = Field(["archive", "best", "first", "random"], min_length=1)
    """How the parent is chosen. `archive`: at random, weighted by sigmoid(10 (score - 0.5)) / (1 + children) (Darwin Goedel
    Machine, arXiv 2505.22954); `best`: the best so far; `first`: the first teacher; `random`: the first, with all settings
    redrawn; `continue`: the last one, without mutations. All arms make the same number of children."""
    search: dict[str, Range | Choices] = Field(min_length=1)
    """Search space: `step.key` -> a list of values, or `{low, high, log, step}`. The recipe's own value must be in it."""

    @model_validator(mode="after")
    def _enough_to_mutate(self) -> EvolveOptions:
        if self.mutations > len(self.search):
            raise ValueError(f"`mutations` {self.mutations} is more than the {len(self.search)} keys of `search`")
        return self
