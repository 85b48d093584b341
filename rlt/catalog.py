"""Shipped recipes: found by name, listed, copied.

Their folder is `recipes/`; wheels contain it too.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import yaml

from rlt.config import parse_yaml
from rlt.errors import ConfigError
from rlt.types import JsonRow

FOLDER = Path(str(resources.files("rlt"))) / "shipped" / "recipes"  # in a clone, a link to recipes/
MAIN = "recipe.yaml"


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every shipped recipe. `NAME` is `recipes/NAME/recipe.yaml`, `NAME/other` is `recipes/NAME/other.yaml`."""
    found: dict[str, Path] = {}
    for path in sorted(FOLDER.glob("*/*.yaml"), key=_order):
        if "description" in _content(path):  # launch configurations and formats lie in these folders too
            found[path.parent.name if path.name == MAIN else f"{path.parent.name}/{path.stem}"] = path
    return found


def _order(path: Path) -> tuple[object, ...]:
    # The one to run first comes first.
    return path.parent.name != "quickstart", path.parent.name, path.name != MAIN, path.name


def recipe_path(name: str) -> Path:
    """The file of a recipe, given as a file, a folder with a recipe.yaml, or the name of a shipped one, in this order.

    Raises ConfigError if it is none of these.
    """
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    if (path / MAIN).is_file():
        return path / MAIN
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else " `rlt recipes` lists the shipped ones."
    raise ConfigError(f"{name}: no such recipe: not a file, not a folder with a {MAIN}, not a shipped recipe.{hint}")


def is_recipe(name: str) -> bool:
    """Whether the word names a recipe rather than something else."""
    return Path(name).suffix in (".yaml", ".yml") or (Path(name) / MAIN).is_file() or name in shipped_recipes()


def listing() -> Iterator[tuple[str, str, str, str]]:
    """`(name, time, hardware, purpose)` of each shipped recipe, from its own file; `-` if not given."""
    for name, path in shipped_recipes().items():
        content = _content(path)
        time, hardware = (str(content.get(key) or "-") for key in ("time", "hardware"))
        yield name, time, hardware, str(content["description"])


def copy_recipe(name: str, folder: Path) -> Path:
    """Copies a shipped recipe with its whole folder; returns the copy. Raises ConfigError if `folder` is not empty."""
    shipped = shipped_recipes()
    if name not in shipped:
        raise ConfigError(f"{name}: no such shipped recipe; expected one of {', '.join(shipped)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: already exists. Choose another folder for the copy.")
    try:
        shutil.copytree(shipped[name].parent, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    return folder / shipped[name].name


def _content(path: Path) -> JsonRow:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}
