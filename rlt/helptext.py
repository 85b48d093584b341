"""Output of `rlt --help` and `rlt COMMAND --help`: keys by topic, required ones first. No torch."""

from __future__ import annotations

import inspect
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlt.config import STAGES, Config, ServeConfig, StageConfig, ViewConfig
from rlt.terminal import terminal_width

SUMMARIES = {
    "run": "Run all steps of a recipe; complete steps are skipped, interrupted ones resume",
    "evolve": "Grow an archive of teachers: mutate a recipe, train on from a parent's weights, keep every child with its score",
    "check": "Check all steps of a recipe without running it: options, data, models, extras",
    "plan": "Estimate what a recipe needs on given GPUs: memory, hours, money, disk",
    "recipes": "List the recipes that come with rlt, or copy one to edit",
    "init": "Write a recipe for your own data, with settings that fit your hardware",
    "timings": "Print how long each step of a run took, the table for estimating the time left",
    "serve": "Serve rewards over HTTP, for any trainer",
    "export": "Export a benchmark as a task of lm-evaluation-harness, to evaluate a student there",
    "view": "Make one HTML page of scored rows, token by token, or of a whole run",
    "completion": "Print a script that completes commands, keys and recipes in bash, zsh or fish",
} | {name: " ".join((config.__doc__ or "").split(". ")[0].split()).rstrip(".") for name, config in STAGES.items()}

OVERRIDES = {
    "--KEY VALUE": "Override a key of the recipe, for example `--seeds 0,1`.",
    "--STEP.KEY VALUE": "Override a key of a step, for example `--train.kl-coef 2`.",
}
RECIPE = (
    "RECIPE is a YAML file, a folder with a recipe.yaml, or a name that `rlt recipes` lists. Local files and folders take "
    "precedence."
)


class Command(NamedTuple):
    """Usage lines, flags that are not configuration keys, the configuration, and a remark."""

    usages: Sequence[str]
    switches: Mapping[str, str] = {}
    model: type[Config] | None = None
    remark: str = ""


class Key(NamedTuple):
    """A key of a configuration as a flag."""

    flag: str
    meaning: str
    topic: str
    choices: tuple[object, ...]


def describe(name: str) -> Command:
    """Arguments of a command."""
    if name == "run":
        from rlt.recipe import RecipeHead

        switches = {
            "--restart": "Remove the results of these steps and of everything that depends on them, and start over.",
            "--only STEPS": "Run only these steps, or all steps of these stages, separated by commas; inputs must be complete.",
        }
        usage = "rlt run RECIPE [--restart] [--only STEPS] [--KEY VALUE ...] [--STEP.KEY VALUE ...]"
        return Command([usage], switches | OVERRIDES, RecipeHead, RECIPE)
    if name == "evolve":
        from rlt.recipe import RecipeHead

        usage = "rlt evolve RECIPE [--KEY VALUE ...] [--evolve.KEY VALUE ...] [--STEP.KEY VALUE ...]"
        return Command([usage], OVERRIDES, RecipeHead, RECIPE)
    if name == "plan":
        from rlt.planning import PlanConfig

        usage = "rlt plan RECIPE --gpu NAME --count N [--KEY VALUE ...] [--STEP.KEY VALUE ...]"
        return Command([usage], OVERRIDES, PlanConfig, RECIPE)
    if name == "init":
        from rlt.draft import InitConfig

        return Command(["rlt init FILE [--output RECIPE.yaml] [--KEY VALUE ...]"], {}, InitConfig)
    if name == "export":
        from rlt.integrations.lm_eval import ExportConfig

        return Command(["rlt export lm-eval --benchmark NAME --output FOLDER [--KEY VALUE ...]"], {}, ExportConfig)
    commands = {
        "check": Command(["rlt check RECIPE [--KEY VALUE ...] [--STEP.KEY VALUE ...]"], OVERRIDES, None, RECIPE),
        "recipes": Command(["rlt recipes", "rlt recipes copy NAME FOLDER"]),
        "timings": Command(["rlt timings RUN_FOLDER > RECIPE.seconds.json"]),
        "serve": Command(["rlt serve --student DIR [--KEY VALUE ...]"], {}, ServeConfig),
        "view": Command(["rlt view FILE_OR_RUN [FILE] [--KEY VALUE ...]"], {}, ViewConfig),
        "completion": Command(["rlt completion bash|zsh|fish"], {}, None, INSTALL),
    }
    if name in commands:
        return commands[name]
    usages = [f"rlt {name} --output PATH [--KEY VALUE ...]", f"rlt {name} RECIPE [--STEP.KEY VALUE ...]"]
    return Command(usages, {}, STAGES[name])


INSTALL = (
    'bash: `eval "$(rlt completion bash)"` in ~/.bashrc. zsh: `rlt completion zsh > DIR/_rlt` with DIR in $fpath, before '
    "compinit. fish: `rlt completion fish > ~/.config/fish/completions/rlt.fish`."
)


def keys(model: type[Config]) -> list[Key]:
    """Every key: required ones first, then the model's own, then shared ones by topic."""
    found = []
    for name, field in model.model_fields.items():
        owner = next(kind for kind in model.__mro__ if name in inspect.get_annotations(kind))
        topic = "Required" if field.is_required() else "" if owner is model else _topic(owner)
        found.append(Key(_flag(name), _meaning(field), topic, _all_choices(field)))
        nested = _nested(field)
        for key, inner in nested.model_fields.items() if nested is not None else ():
            found.append(Key(_flag(f"{name}.{key}"), _meaning(inner), topic, _all_choices(inner)))
    shared = [kind for kind in model.__mro__ if kind is not StageConfig]
    order = ["Required", "", *map(_topic, shared), _topic(StageConfig)]
    return sorted(found, key=lambda key: order.index(key.topic))


def _topic(kind: type) -> str:
    return " ".join((kind.__doc__ or kind.__name__).split()).rstrip(".")


def page(name: str) -> str:
    """Help of a command, wrapped to the terminal."""
    command, width = describe(name), terminal_width()
    usage = [
        textwrap.fill(line, width, initial_indent=head, subsequent_indent=" " * 11, break_on_hyphens=False)
        for line, head in zip(command.usages, ["usage: ", *["       "] * len(command.usages)], strict=False)
    ]
    texts = [f"{SUMMARIES[name]}.", *([command.remark] if command.remark else [])]
    text = [textwrap.fill(one, width, break_on_hyphens=False) for one in texts]
    entries = [_entry(flag, meaning) for flag, meaning in command.switches.items()]
    return "\n".join([*usage, "", "\n\n".join(text), "", *entries, *_sections(command)]).rstrip()


def _sections(command: Command) -> Iterator[str]:
    topic, first = None, not command.switches
    for key in keys(command.model) if command.model is not None else ():
        if key.topic != topic:
            title = textwrap.fill(f"{key.topic or 'Options'}:", terminal_width())
            yield title if first else f"\n{title}"
            topic, first = key.topic, False
        yield _entry(key.flag, key.meaning)


def overview() -> str:
    """Output of `rlt --help`."""
    width = max(map(len, SUMMARIES))
    lines = "\n".join(
        textwrap.fill(
            text, terminal_width(), initial_indent=f"  {name:<{width}}  ", subsequent_indent=" " * (width + 4)
        )
        for name, text in SUMMARIES.items()
    )
    title = "rlt: train, use and study Reinforcement-Learned Teachers (arXiv 2506.08388)"
    return (
        f"{textwrap.fill(title, terminal_width())}\n\n"
        "usage: rlt run RECIPE [--STEP.KEY VALUE ...]\n"
        "       rlt STAGE [RECIPE] [--KEY VALUE ...]\n"
        "       rlt evaluate compare FOLDER_A FOLDER_B\n\n"
        f"{lines}\n\n"
        "`rlt COMMAND --help` lists the keys of a command.\n"
        "Start with: rlt run quickstart"
    )


def _entry(flag: str, text: str) -> str:
    return f"  {flag}\n" + textwrap.fill(
        text, terminal_width(), initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _meaning(field: FieldInfo) -> str:
    words = [" ".join((field.description or "").split())]
    choices = _all_choices(field)
    if choices:
        words.append(f"One of {', '.join(map(str, choices))}.")
    default = field.get_default(call_default_factory=True, validated_data={})
    words.append("[required]" if default is PydanticUndefined else f"[default: {shown(default)}]")
    return " ".join(words)


def _all_choices(field: FieldInfo) -> tuple[object, ...]:
    kinds = (field.annotation, *typing.get_args(field.annotation))
    return tuple(one for kind in kinds if typing.get_origin(kind) is typing.Literal for one in typing.get_args(kind))


def shown(value: object) -> str:
    """A default, written as YAML."""
    if isinstance(value, Config):
        value = value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple):
        value = list(value)
    if value is None:
        return "null"
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("\n...")


def _nested(field: FieldInfo) -> type[Config] | None:
    for candidate in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            return candidate
    return None
