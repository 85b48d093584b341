"""The command `rlt`: one subcommand per stage, with flags from the stage's configuration. Imports torch only to run one."""

from __future__ import annotations

import difflib
import io
import json
import shutil
import sys
import textwrap
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlt import __version__
from rlt.allocator import keep_freed_memory
from rlt.config import MOVED, SHORT_FORMS, STAGES, Config, ReportConfig, ServeConfig, ViewConfig, parse_yaml, validate
from rlt.errors import ConfigError, ProblemsFound, guarded
from rlt.types import JsonRow

SUMMARIES = {
    "run": "Run all steps of a recipe; complete steps are skipped, interrupted ones resume",
    "check": "Check all steps of a recipe without running it: options, data, models, extras",
    "plan": "Estimate what a recipe needs on given GPUs: memory, hours, money, disk",
    "timings": "Print how long each step of a run took: the table from which `rlt run` estimates the time left",
    "serve": "Serve rewards over HTTP, for any trainer",
    "export": "Write a benchmark as a task of lm-evaluation-harness, which then scores a student",
    "view": "Make one HTML page of scored rows, token by token, or of a whole run",
} | {name: " ".join((config.__doc__ or "").split(". ")[0].split()).rstrip(".") for name, config in STAGES.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 (a stage found something wrong with its rows), 2 (an error, printed in one line)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale of ASCII cannot print every question
            stream.reconfigure(errors="backslashreplace")
    return guarded(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("--version", "-V"):
        print(f"rlt {__version__}")
        return 0
    command, rest = words[0], words[1:]
    if command in MOVED and command not in SUMMARIES:
        raise ConfigError(f"{MOVED[command]}.")
    if command not in SUMMARIES:
        near = difflib.get_close_matches(command, SUMMARIES, n=1)
        hint = f" Did you mean `rlt {near[0]}`?" if near else " See `rlt --help`."
        raise ConfigError(f"unknown command `{command}`.{hint}")
    if command == "evaluate" and rest[:1] == ["compare"]:
        return _compare(rest[1:])
    if "-h" in rest or "--help" in rest:
        print(_help(command))
        return 0
    keep_freed_memory()
    if command in COMMANDS:
        return COMMANDS[command](rest)
    return _stage(command, rest)


# -- commands ----------------------------------------------------------------------------------------------------------------


def _run(words: list[str]) -> int:
    names, flags = parse_flags(words, recipe=True)
    restart, only = flags.pop("restart", False), flags.pop("only", None)
    if len(names) != 1:
        raise ConfigError("usage: rlt run RECIPE [--restart] [--only STEP] [--KEY VALUE ...] [--STEP.KEY VALUE ...]")
    from rlt.pipeline import run_recipe
    from rlt.recipe import load_recipe

    return run_recipe(load_recipe(names[0], flags), restart=restart, only=None if only is None else str(only))


def _check(words: list[str]) -> int:
    names, flags = parse_flags(words, recipe=True)
    if len(names) != 1:
        raise ConfigError("usage: rlt check RECIPE [--KEY VALUE ...] [--STEP.KEY VALUE ...]")
    from rlt.checking import check_steps, table
    from rlt.recipe import read_recipe

    recipe, problems = read_recipe(names[0], flags)
    checked = check_steps(recipe, recipe.steps)
    problems = [*problems, *checked.problems]
    if problems:
        raise ProblemsFound(names[0], problems)
    print(table(recipe, checked))
    return 0


def _timings(words: list[str]) -> int:
    names, flags = parse_flags(words)
    if len(names) != 1 or flags:
        raise ConfigError("usage: rlt timings RUN_FOLDER > RECIPE_FOLDER/seconds.json")
    from rlt.pipeline import timings

    print(json.dumps(timings(Path(names[0])), indent=1))
    return 0


def _plan(words: list[str]) -> int:
    from rlt.stages import plan

    names, flags = parse_flags(words, recipe=True)
    if len(names) != 1:
        raise ConfigError("usage: rlt plan RECIPE --gpu NAME --count N [--price-per-hour X] ...; see `rlt plan --help`")
    print(plan.run(names[0], flags))
    return 0


def _serve(words: list[str]) -> int:
    from rlt.serve.server import serve

    names, flags = parse_flags(words)
    if names:
        raise ConfigError("usage: rlt serve --student DIR [--student DIR ...] [--teacher DIR] [--KEY VALUE ...]")
    return serve(validate(ServeConfig, flags, "rlt serve"))


def _export(words: list[str]) -> int:
    from rlt.integrations.lm_eval import ExportConfig, export

    names, flags = parse_flags(words)
    if names != ["lm-eval"]:
        raise ConfigError("usage: rlt export lm-eval --benchmark NAME --output FOLDER [--KEY VALUE ...]")
    print(export(validate(ExportConfig, flags, "rlt export")))
    return 0


def _view(words: list[str]) -> int:
    from rlt.results.page import view

    names, flags = parse_flags(words)
    if not names:
        raise ConfigError("usage: rlt view FILE_OR_RUN [FILE] [--output page.html] [--limit N] [--id ID] [--live]")
    return view(validate(ViewConfig, {**flags, "paths": names}, "rlt view"))


def _stage(stage: str, words: list[str]) -> int:
    names, flags = parse_flags(words)
    if names and Path(names[0]).suffix in (".yaml", ".yml"):
        # One stage of a recipe, in the recipe's run folder.
        from rlt.pipeline import run_recipe
        from rlt.recipe import load_recipe

        _, flags = parse_flags(words, recipe=True)
        restart = flags.pop("restart", False)
        return run_recipe(load_recipe(names[0], flags), restart=restart, only=stage)
    if names:
        raise ConfigError(
            f"rlt {stage}: {names[0]!r} is neither a flag nor a recipe (.yaml). Keys are flags: --KEY VALUE."
        )
    if not flags:
        print(_help(stage))
        return 2
    config = validate(STAGES[stage], flags, f"rlt {stage}")
    if isinstance(config, ReportConfig) and _reported(config.output, [key for key in flags if key != "output"]):
        return 0
    from rlt.outputs import read_state
    from rlt.pipeline import check_stage, run_stage, summary, told_while_silent

    before = bool((read_state(config.output) or {}).get("complete"))
    check_stage(stage, config)
    if not before:
        print(f"{stage}: starts -> {config.output}", flush=True)
    with told_while_silent(stage, stage):
        result = run_stage(stage, config)
    if before:
        print(f"{stage}: complete before: {summary(result)} -> {config.output}", flush=True)
    elif stage not in SAY_THEIR_END:
        print(f"{stage}: {summary(result)}", flush=True)
    return int(result.metrics.get("exit_status", 0))


def _reported(folder: Path, others: list[str]) -> bool:
    """Whether the run there has report steps of its own, which are then run. Raises ConfigError for `others`, more flags."""
    from rlt.pipeline import run_stage
    from rlt.recipe import recipe_of_run

    written = folder / "recipe.yaml"
    steps = recipe_of_run(folder).steps if written.is_file() else ()
    reports = [step for step in steps if step.stage == "report"]
    if reports and others:
        raise ConfigError(
            f"rlt report: {folder} has reports of its own: {', '.join(step.name for step in reports)}. Change them: "
            f"`rlt report {written} --{reports[0].name}.{others[0].replace('_', '-')} ...`; or give --output alone."
        )
    for step in reports:
        run_stage("report", step.config)
    return bool(reports)


def _compare(words: list[str]) -> int:
    names, flags = parse_flags(words)
    if len(names) != 2 or flags:
        raise ConfigError("usage: rlt evaluate compare FOLDER_A FOLDER_B (two outputs of `rlt evaluate`)")
    from rlt.results.comparison import compare

    print(compare(Path(names[0]), Path(names[1])))
    return 0


# -- flags -------------------------------------------------------------------------------------------------------------------


SAY_THEIR_END = ("score", "grade", "collect", "report")  # their own last line counts rows
SWITCHES = ("restart", "live")  # flags that take no value, wherever they stand


def parse_flags(words: Sequence[str], recipe: bool = False) -> tuple[list[str], JsonRow]:
    """Plain words, and flags as nested values: `--train.kl-coef 2 --train.trainer.max-steps=3` gives
    {"train": {"kl_coef": 2, "trainer": {"max_steps": 3}}}. A repeated flag makes a list; one without a value is True.
    Dashes become underscores, except in the first part of a dotted flag of a `recipe`, which is the name of a step.
    `--data F --data.on-invalid skip` gives {"data": {"path": "F", "on_invalid": "skip"}}, in either order.
    """
    plain: list[str] = []
    flags: JsonRow = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--") or word == "--":
            plain.append(word)
            continue
        key, equals, text = word[2:].partition("=")
        if equals:
            value = _value(text)
        elif key not in SWITCHES and position < len(words) and not words[position].startswith("--"):
            value = _value(words[position])
            position += 1
        else:
            value = True
        parts = key.split(".")
        step = [parts.pop(0)] if recipe and len(parts) > 1 else []
        _put(flags, [*step, *(part.replace("-", "_") for part in parts)], value)
    return plain, flags


def _value(text: str) -> Any:
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        return text
    return text if value is None and text not in ("null", "~") else value


def _put(flags: JsonRow, path: list[str], value: object) -> None:
    for part in path[:-1]:
        inner = flags.setdefault(part, {})
        if not isinstance(inner, dict):
            if part not in SHORT_FORMS:
                raise ConfigError(f"--{'.'.join(path)}: `{part}` already has a plain value.")
            inner = flags[part] = {SHORT_FORMS[part]: inner}
        flags = inner
    last = path[-1]
    if last in SHORT_FORMS and isinstance(flags.get(last), dict) and not isinstance(value, dict):
        flags, last = flags[last], SHORT_FORMS[last]
    if last in flags:
        before = flags[last]
        value = [*(before if isinstance(before, list) else [before]), value]
    flags[last] = value


# -- help --------------------------------------------------------------------------------------------------------------------


def _width() -> int:
    """Columns of the terminal; 80 without a terminal."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def _overview() -> str:
    width = max(map(len, SUMMARIES))
    lines = "\n".join(
        textwrap.fill(text, _width(), initial_indent=f"  {name:<{width}}  ", subsequent_indent=" " * (width + 4))
        for name, text in SUMMARIES.items()
    )
    return (
        f"{textwrap.fill('rlt: train, use and study Reinforcement-Learned Teachers (arXiv 2506.08388)', _width())}\n\n"
        "usage: rlt run RECIPE [--STEP.KEY VALUE ...]\n"
        "       rlt STAGE [RECIPE] [--KEY VALUE ...]\n"
        "       rlt evaluate compare FOLDER_A FOLDER_B\n\n"
        f"{lines}\n\n"
        "`rlt COMMAND --help` lists the keys of a command.\n"
        "Start with: rlt run recipes/quickstart/recipe.yaml"
    )


OVERRIDES = {
    "--KEY VALUE": "Override a key of the recipe, for example `--seeds 0,1`.",
    "--STEP.KEY VALUE": "Override a key of a step, for example `--train.kl-coef 2`.",
}


def _help(command: str) -> str:
    if command == "run":
        from rlt.recipe import RecipeHead

        switches = {
            "--restart": "Remove the results of these steps, and everything made from them, and start over.",
            "--only STEP": "Run only this step, or all steps of this stage; their inputs must be complete.",
        }
        return _page(
            ["rlt run RECIPE [--restart] [--only STEP] [--KEY VALUE ...] [--STEP.KEY VALUE ...]"],
            command, switches | OVERRIDES, RecipeHead,
        )  # fmt: skip
    if command == "check":
        return _page(["rlt check RECIPE [--KEY VALUE ...] [--STEP.KEY VALUE ...]"], command, OVERRIDES)
    if command == "timings":
        return _page(["rlt timings RUN_FOLDER > RECIPE_FOLDER/seconds.json"], command, {})
    if command == "plan":
        from rlt.planning import PlanConfig

        return _page(
            ["rlt plan RECIPE --gpu NAME --count N [--KEY VALUE ...] [--STEP.KEY VALUE ...]"],
            command, OVERRIDES, PlanConfig,
        )  # fmt: skip
    if command == "export":
        from rlt.integrations.lm_eval import ExportConfig

        usage = "rlt export lm-eval --benchmark NAME --output FOLDER [--KEY VALUE ...]"
        return _page([usage], command, {}, ExportConfig)
    if command == "serve":
        return _page(["rlt serve --student DIR [--KEY VALUE ...]"], command, {}, ServeConfig)
    if command == "view":
        return _page(["rlt view FILE_OR_RUN [FILE] [--KEY VALUE ...]"], command, {}, ViewConfig)
    usages = [f"rlt {command} --output PATH [--KEY VALUE ...]", f"rlt {command} RECIPE [--STEP.KEY VALUE ...]"]
    return _page(usages, command, {}, STAGES[command])


def _page(usages: list[str], command: str, switches: dict[str, str], model: type[Config] | None = None) -> str:
    width = _width()
    usage = [
        textwrap.fill(line, width, initial_indent=head, subsequent_indent=" " * 11, break_on_hyphens=False)
        for line, head in zip(usages, ["usage: ", *["       "] * len(usages)], strict=False)
    ]
    text = textwrap.fill(f"{SUMMARIES[command]}.", width)
    entries = [_entry(flag, meaning) for flag, meaning in switches.items()]
    if model is not None:
        entries += [_entry(name, meaning) for name, meaning in _keys(model)]
    return "\n".join([*usage, "", text, "", *entries])


def _entry(flag: str, text: str) -> str:
    return f"  {flag}\n" + textwrap.fill(
        text, _width(), initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
    )


def _keys(model: type[Config]) -> list[tuple[str, str]]:
    """Flag and meaning of every key, those that are required first."""
    keys = []
    for name, field in sorted(model.model_fields.items(), key=lambda item: not item[1].is_required()):
        keys.append((_flag(name), _meaning(field)))
        nested = _nested(field)
        if nested is not None:
            keys += [(_flag(f"{name}.{key}"), _meaning(inner)) for key, inner in nested.model_fields.items()]
    return keys


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _meaning(field: FieldInfo) -> str:
    words = [" ".join((field.description or "").split())]
    choices = [one for kind in (field.annotation, *typing.get_args(field.annotation)) for one in _choices(kind)]
    if choices:
        words.append(f"One of {', '.join(map(str, choices))}.")
    default = field.get_default(call_default_factory=True, validated_data={})
    words.append("[required]" if default is PydanticUndefined else f"[default: {_shown(default)}]")
    return " ".join(words)


def _choices(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def _shown(value: object) -> str:
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


COMMANDS = {
    "run": _run,
    "check": _check,
    "timings": _timings,
    "plan": _plan,
    "serve": _serve,
    "export": _export,
    "view": _view,
}


if __name__ == "__main__":
    sys.exit(main())
