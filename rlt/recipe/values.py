"""Values of a recipe: merge overrides, replace `@step` and `{each}`, find paths next to the recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from rlt.config import SHORT_FORMS
from rlt.types import JsonMap, JsonRow

_REFERENCE = re.compile(r"^@([\w.-]+(?:/[\w.-]+)?)(?::(.+))?$")


def with_references(values: JsonMap, path_of: Callable[[str, str | None], str]) -> JsonRow:
    """`values` with `path_of(step, part)` for each text `@step` or `@step:part`."""

    def resolved(text: str) -> str:
        match = _REFERENCE.match(text)
        return path_of(match[1], match[2]) if match else text

    return _each_text(values, resolved)


def filled(values: JsonMap, names: Mapping[str, object]) -> JsonRow:
    """`values` with `{name}` in each text replaced by what `names` has for it."""

    def replaced(text: str) -> str:
        for name, value in names.items():
            text = text.replace("{" + name + "}", str(value))
        return text

    return _each_text(values, replaced)


def with_paths_of(values: JsonMap, folder: Path) -> JsonRow:
    """`values` with paths such as `./format.yaml` resolved against the recipe's folder, if they exist there and not here.

    For `./models/{seed}` the folder `./models` must exist.
    """

    def found(text: str) -> str:
        there = text.startswith(("./", "../")) and not Path(text).exists() and (folder / text.split("{")[0]).exists()
        return str(folder / text) if there else text

    return _each_text(values, found)


def _each_text(values: JsonMap, change: Callable[[str], str]) -> JsonRow:
    def changed(value: object) -> object:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, dict):
            return _each_text(value, change)
        return [changed(item) for item in value] if isinstance(value, list) else value

    return {key: changed(value) for key, value in values.items()}


def deep_merge(under: JsonMap, over: JsonMap) -> JsonRow:
    """`under` updated with `over`: mappings are merged, everything else is replaced.

    `data: FILE` under `data: {on_invalid: skip}` is merged as `data: {path: FILE}`.
    """
    merged = dict(under)
    for key, value in over.items():
        before = merged.get(key)
        if isinstance(value, Mapping) and isinstance(before, str) and key in SHORT_FORMS:
            before = {SHORT_FORMS[key]: before}
        if isinstance(before, dict) and isinstance(value, Mapping):
            value = deep_merge(before, value)
        merged[key] = value
    return merged
