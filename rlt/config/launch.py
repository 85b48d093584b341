"""accelerate's configurations: those shipped with rlt, and the user's own files."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml

from rlt.config.yaml_text import parse_yaml, yaml_problem
from rlt.errors import ConfigError
from rlt.types import JsonRow

SHIPPED = resources.files("rlt") / "shipped" / "accelerate"


def launch_file(name: str) -> Path:
    """The accelerate configuration with this shipped name, or the YAML file at this path. Raises ConfigError."""
    shipped = sorted(entry.name.removesuffix(".yaml") for entry in SHIPPED.iterdir() if entry.name.endswith(".yaml"))
    if name in shipped:
        return Path(str(SHIPPED / f"{name}.yaml"))
    if Path(name).is_file():
        return Path(name)
    raise ConfigError(f"`launch`: {name!r} is neither a shipped configuration ({', '.join(shipped)}) nor a file.")


def launch_options(accelerate: Path) -> JsonRow:
    """The options in an accelerate configuration; raises ConfigError if it is not one."""
    try:
        options = parse_yaml(accelerate.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"`launch`: {accelerate}: not valid YAML: {yaml_problem(error)}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"`launch`: {accelerate}: not valid YAML: not UTF-8 text.") from error
    if not isinstance(options, dict):
        raise ConfigError(f"`launch`: {accelerate}: not an accelerate configuration; `accelerate config` writes one.")
    return options
