"""The command `rlt`: one subcommand a stage, flags from the stage's configuration. Imports no torch before it must."""

from __future__ import annotations

import difflib
import sys
import textwrap
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from rlt import __version__
from rlt.allocator import keep_freed_memory
from rlt.config import MOVED, STAGES, Config, ReportConfig, ServeConfig, ViewConfig, parse_yaml, validate
from rlt.errors import ConfigError, guarded

SUMMARIES = {
    "run": "do every stage of a recipe, in order; skips what is complete, goes on with what was cut off",
    "plan": "say what a recipe needs on given GPUs: memory, hours, money, disk",
    "serve": "answer rewards over HTTP, for any trainer",
    "view": "make one HTML page of scored rows, token by token, or of a whole run",
} | {name: " ".join((config.__doc__ or "").split(". ")[0].split()).rstrip(".") for name, config in STAGES.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 (a stage says that something was wrong with its rows), 2 (an error, told in one line)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
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
        raise ConfigError(f"there is no command `{command}`.{hint}")
    if command == "evaluate" and rest[:1] == ["compare"]:
        return _compare(rest[1:])
    if "-h" in rest or "--help" in rest:
        print(_help(command))
        return 0
    keep_freed_memory()
    if command == "run":
        return _run(rest)
    if command == "plan":
        return _plan(rest)
    if command == "serve":
        return _serve(rest)
    if command == "view":
        return _view(rest)
    return _stage(command, rest)


# -- commands ----------------------------------------------------------------------------------------------------------------


def _run(words: list[str]) -> int:
    names, flags = parse_flags(words, recipe=True)
    restart, only = flags.pop("restart", False), flags.pop("only", None)
    if len(names) != 1:
        raise ConfigError("usage: rlt run RECIPE [--restart] [--only STEP] [--name NAME] [--STEP.KEY VALUE ...]")
    from rlt.pipeline import run_recipe
    from rlt.recipe import load_recipe

    return run_recipe(load_recipe(names[0], flags), restart=restart, only=None if only is None else str(only))


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


def _view(words: list[str]) -> int:
    from rlt.stages.report import view

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
        raise ConfigError(f"rlt {stage}: {names[0]!r} is neither a flag nor a recipe (.yaml).")
    if not flags:
        print(_help(stage))
        return 2
    config = validate(STAGES[stage], flags, f"rlt {stage}")
    if isinstance(config, ReportConfig) and _reported(config.output, [key for key in flags if key != "output"]):
        return 0
    from rlt.pipeline import run_stage, summary

    print(f"{stage}: begins -> {config.output}", flush=True)
    result = run_stage(stage, config)
    if stage not in SAY_THEIR_END:
        print(f"{stage}: {summary(result)}", flush=True)
    return int(result.metrics.get("exit_status", 0))


def _reported(folder: Path, others: list[str]) -> bool:
    """Whether the run there has report steps of its own; they are made anew. Raises ConfigError for `others`, more flags."""
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


def parse_flags(words: Sequence[str], recipe: bool = False) -> tuple[list[str], dict[str, Any]]:
    """Plain words, and flags as nested values: `--train.kl-coef 2 --train.trainer.max-steps=3` gives
    {"train": {"kl_coef": 2, "trainer": {"max_steps": 3}}}. A flag given again makes a list; one without value is True.
    Dashes become underscores, except in the first part of a dotted flag of a `recipe`: that is a step's name.
    """
    plain: list[str] = []
    flags: dict[str, Any] = {}
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


def _put(flags: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        flags = flags.setdefault(part, {})
        if not isinstance(flags, dict):
            raise ConfigError(f"--{'.'.join(path)}: `{part}` was given a plain value before.")
    last = path[-1]
    if last in flags:
        before = flags[last]
        value = [*(before if isinstance(before, list) else [before]), value]
    flags[last] = value


# -- help --------------------------------------------------------------------------------------------------------------------


def _overview() -> str:
    width = max(map(len, SUMMARIES))
    lines = "\n".join(f"  {name:<{width}}  {_short(text, 120 - width - 4)}" for name, text in SUMMARIES.items())
    return (
        "rlt: train, use and study Reinforcement-Learned Teachers (arXiv 2506.08388)\n\n"
        "usage: rlt run RECIPE [--STEP.KEY VALUE ...]\n"
        "       rlt STAGE [RECIPE] [--KEY VALUE ...]\n"
        "       rlt evaluate compare FOLDER_A FOLDER_B\n\n"
        f"{lines}\n\n"
        "`rlt COMMAND --help` lists its keys. First try: rlt run recipes/quickstart/recipe.yaml"
    )


def _short(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" ...")


def _help(command: str) -> str:
    if command == "run":
        from rlt.recipe import RecipeHead

        return (
            "usage: rlt run RECIPE [--restart] [--only STEP] [--KEY VALUE ...] [--STEP.KEY VALUE ...]\n\n"
            f"{SUMMARIES['run']}.\n\n"
            "  --restart      remove what these steps left, and what was made from it, and start over\n"
            "  --only STEP    run only that step (or all steps of that stage); its inputs must be complete\n"
            "  --STEP.KEY V   override a key of a step, for example --train.kl-coef 2\n" + _fields(RecipeHead)
        )
    if command == "plan":
        from rlt.stages import plan

        return plan.HELP
    if command == "serve":
        return f"usage: rlt serve --student DIR [--KEY VALUE ...]\n\n{SUMMARIES['serve']}.\n\n" + _fields(ServeConfig)
    if command == "view":
        return f"usage: rlt view FILE_OR_RUN [FILE] [--KEY VALUE ...]\n\n{SUMMARIES['view']}.\n\n" + _fields(ViewConfig)
    return (
        f"usage: rlt {command} --output PATH [--KEY VALUE ...]\n       rlt {command} RECIPE [--STEP.KEY VALUE ...]\n\n"
        f"{SUMMARIES[command]}.\n\n" + _fields(STAGES[command])
    )


def _fields(model: type[Config]) -> str:
    lines = []
    for name, field in model.model_fields.items():
        nested = _nested(field)
        if nested is not None:
            lines.append(_line(name, field) + _fields_under(name, nested))
        else:
            lines.append(_line(name, field))
    return "\n".join(lines)


def _fields_under(prefix: str, model: type[Config]) -> str:
    return "".join("\n" + _line(f"{prefix}.{name}", field) for name, field in model.model_fields.items())


def _line(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"default: {_shown(field.get_default(call_default_factory=True))}"
    text = f"{' '.join((field.description or '').split())} [{default}]"
    head = f"  --{name.replace('_', '-')}"
    body = textwrap.fill(text, 116, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return f"{head}\n{body}"


def _shown(value: Any) -> str:
    return "null" if value is None else yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n...")


def _nested(field: FieldInfo) -> type[Config] | None:
    for candidate in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            return candidate
    return None


if __name__ == "__main__":
    sys.exit(main())
