"""One teacher as a small run of its own: the recipe's steps with its settings and its parent's weights, and its measures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from rlt.errors import DivergedError
from rlt.evolve.selection import FIRST, Draft
from rlt.locks import BusyError, hold, release
from rlt.outputs import complete_state, seconds_of
from rlt.pipeline import run_recipe
from rlt.provenance import date_of
from rlt.recipe import Recipe, RecipeHead, Step, build_recipe, output_of
from rlt.recipe.evolution import SCORE, EvolutionPlan, nested
from rlt.recipe.values import deep_merge, filled, with_references
from rlt.results.benchmarks import evaluation
from rlt.text.clock import pin_date
from rlt.types import AnyRow, JsonRow

SHARED, TEACHERS = "shared", "teachers"
CHILD_SEED = 10_000
EACH = "__each__"


class Measured(NamedTuple):
    """A solve rate, None where training diverged; the seconds that all steps so far took."""

    rate: float | None
    seconds: float


@dataclass(frozen=True)
class Repeat:
    """All teachers of one seed, with the steps that they share."""

    recipe: Recipe
    plan: EvolutionPlan
    seed: int

    @property
    def folder(self) -> Path:
        return self.recipe.folder / f"seed-{self.seed}"

    def prepare(self) -> bool:
        """Whether the shared steps are complete; runs them unless another process does."""
        shared = self._shared()
        if not _complete(shared):
            with claimed(self.folder / f".{SHARED}.lock") as mine:
                if not mine:
                    return False
                run_recipe(shared)
        pin_date(date_of(step.config.output for step in shared.steps))
        return True

    @contextmanager
    def claim(self, draft: Draft) -> Iterator[bool]:
        """Whether the teacher is this process's to make, as long as the context is open."""
        with claimed(self.folder / TEACHERS / f".{draft.id}.lock") as mine:
            yield mine

    def measure(self, draft: Draft, phase: str) -> Measured:
        """What the students of this teacher solve, after all its steps up to `phase`; complete steps are not run again."""
        recipe = self.recipe_of(draft, phase)
        if not _complete(recipe):
            try:
                run_recipe(recipe)
            except DivergedError as error:
                print(f"{draft.id}: diverged: {error}", flush=True)
                return Measured(None, _seconds(recipe))
        name = getattr(self.plan.options, phase)
        states = [complete_state(step.config.output) for step in recipe.steps if step.name.split("/")[0] == name]
        measured = [evaluation(state["metrics"])["benchmarks"] for state in states if state]
        return Measured(fmean(row["pass@1"] for one in measured for row in one.values()), _seconds(recipe))

    def recipe_of(self, draft: Draft, phase: str = SCORE) -> Recipe:
        """The recipe of one teacher: its own steps up to `phase`, in its folder. The first teacher is not trained."""
        train = self.plan.options.train
        values: dict[str, AnyRow] = {name: self._values(name) for name in self.plan.own}
        first = None
        if draft.id == FIRST:
            first = str(self._with_shared(values.pop(train), None)["model"])
        else:
            for key, value in draft.settings.items():
                changed = nested(key, value, self.plan.own)
                values |= {name: deep_merge(values[name], keys) for name, keys in changed.items()}
            values[train]["seed"] = self.seed + CHILD_SEED * draft.number
            if draft.parent_id != FIRST:
                values[train]["model"] = str(output_of(self._head(f"{draft.parent_id}"), train, "train", self.seed))
        steps = [name for name in self.plan.phases[phase] if name in values]
        return self._built(self._head(draft.id), {name: self._with_shared(values[name], first) for name in steps})

    def _with_shared(self, keys: AnyRow, first: str | None) -> JsonRow:
        """A step's keys with the places of shared steps, and of the first teacher's model, instead of their names."""

        def place(name: str, part: str | None) -> str:
            step = name.split("/")[0]
            if step == self.plan.options.train and first is not None:
                found = first
            elif step in self.plan.own:
                return f"@{name}" + (f":{part}" if part else "")
            else:
                found = str(output_of(self._head(SHARED), name, self._stage(step), self.seed))
            return f"{found}/{part}" if part else found

        each = keys.get("each")
        variants_of = each.removeprefix("@") if isinstance(each, str) else None
        if variants_of in self.plan.shared:
            each = [step.name.partition("/")[2] for step in self._of(f"{variants_of}")]
        if variants_of is not None:  # a step's name that is no reference
            keys = {key: value for key, value in keys.items() if key != "each"}
        # "@step/{each}" is a reference only once it has a word for `{each}`.
        placed = with_references(filled(keys, {"seed": self.seed, "each": EACH}), place)
        back: JsonRow = json.loads(json.dumps(placed).replace(EACH, "{each}"))
        return back if variants_of is None else {"each": each, **back}

    def _shared(self) -> Recipe:
        return self._built(self._head(SHARED), {name: self._values(name) for name in self.plan.shared})

    def _built(self, head: RecipeHead, steps: JsonRow) -> Recipe:
        values = {"name": head.name, "folder": str(head.folder), "seeds": head.seeds, **steps}
        return build_recipe(values, f"{head.folder / head.name}")

    def _head(self, name: str) -> RecipeHead:
        folder = self.folder if name == SHARED else self.folder / TEACHERS
        return RecipeHead(name=name, folder=folder, seeds=[self.seed])

    def _values(self, name: str) -> JsonRow:
        """A step's keys with the recipe's defaults for its stage."""
        return self.recipe.keys_of(name, self._stage(name))

    def _stage(self, name: str) -> str:
        return self._of(name)[0].stage

    def _of(self, name: str) -> list[Step]:
        return [step for step in self.recipe.of_seed(self.seed) if step.name.split("/")[0] == name]


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether the lock is ours, while the context is open; it is free again when this process ends in any way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = hold(path, path)
    except BusyError:
        yield False
        return
    try:
        yield True
    finally:
        release(lock)


def _complete(recipe: Recipe) -> bool:
    return all(complete_state(step.config.output) for step in recipe.steps)


def _seconds(recipe: Recipe) -> float:
    states = [complete_state(step.config.output) for step in recipe.steps]
    return sum(seconds_of(state["metrics"]) for state in states if state)
