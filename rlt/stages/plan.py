"""Estimate what a recipe needs on given GPUs (`rlt.planning`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlt.config import validate
from rlt.planning import Plan, PlanConfig, plan
from rlt.recipe import RecipeHead, load_recipe


def run(recipe: Path | str, flags: Mapping[str, object]) -> Plan:
    """The plan of a recipe file. `flags`: keys of PlanConfig, and overrides of the recipe's keys.

    Raises ConfigError for an unknown flag, GPU, launch configuration or dataset, and ModelError for a model that cannot be
    planned.
    """
    of_recipe = RecipeHead.model_fields
    recipes = {key: value for key, value in flags.items() if isinstance(value, dict) or key in of_recipe}
    ours = {key: value for key, value in flags.items() if key not in recipes}
    return plan(load_recipe(recipe, recipes), validate(PlanConfig, ours, "rlt plan"), str(recipe))
