"""What a recipe needs on given GPUs, before a cent is spent (`rlt.planning`)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlt.config import validate
from rlt.planning import Plan, PlanConfig, plan
from rlt.recipe import RecipeHead, load_recipe


def run(recipe: Path | str, flags: Mapping[str, Any]) -> Plan:
    """The plan of the recipe in that YAML file. `flags`: keys of PlanConfig; keys of steps override the recipe's.

    Raises ConfigError for a flag, GPU, launch configuration or data set that is not known, ModelError for a model
    that cannot be planned.
    """
    of_recipe = RecipeHead.model_fields
    recipes = {key: value for key, value in flags.items() if isinstance(value, dict) or key in of_recipe}
    ours = {key: value for key, value in flags.items() if key not in recipes}
    return plan(load_recipe(recipe, recipes), validate(PlanConfig, ours, "rlt plan"), str(recipe))


def _help() -> str:
    lines = [
        "usage: rlt plan RECIPE --gpu NAME --count N [--price-per-hour X] [--KEY VALUE ...] [--STEP.KEY VALUE ...]",
        "",
        "Memory, hours, money and disk of every step, from model shapes; nothing is loaded or run.",
        "",
    ]
    for name, info in PlanConfig.model_fields.items():
        default = "required" if info.is_required() else f"default: {info.default}"
        text = f"{' '.join((info.description or '').split())} [{default}]"
        lines.append(f"  --{name.replace('_', '-')}")
        lines.append(textwrap.fill(text, 116, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


HELP = _help()
