"""The command `rlt`: one subcommand per stage, with flags from its configuration.

Imports torch only to run a stage.
"""

from __future__ import annotations

import difflib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from rlt import __version__
from rlt.allocator import keep_freed_memory
from rlt.catalog import copy_recipe, is_recipe, listing, recipe_path
from rlt.config import MOVED, SHORT_FORMS, STAGES, ReportConfig, ServeConfig, ViewConfig, parse_yaml, validate
from rlt.errors import ConfigError, ProblemsFound, guarded
from rlt.helptext import SUMMARIES, describe, overview, page
from rlt.terminal import fitted, terminal_width
from rlt.types import JsonRow


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 (some rows could not be processed) or 2 (an error, printed in one line)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale of ASCII cannot print every question
            stream.reconfigure(errors="backslashreplace")
    return guarded(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
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
        print(page(command))
        return 0
    keep_freed_memory()
    if command in COMMANDS:
        return COMMANDS[command](rest)
    return _stage(command, rest)


# -- commands ----------------------------------------------------------------------------------------------------------------


def _usage(command: str) -> ConfigError:
    return ConfigError(f"usage: {', or: '.join(describe(command).usages)}; see `rlt {command} --help`")


def _one_name(command: str, words: list[str], recipe: bool = False) -> tuple[str, JsonRow]:
    """The only plain word after a command, and the flags. Raises ConfigError for none or several words."""
    names, flags = parse_flags(words, recipe)
    if len(names) != 1:
        raise _usage(command)
    return names[0], flags


def _run(words: list[str]) -> int:
    name, flags = _one_name("run", words, recipe=True)
    restart, only = bool(flags.pop("restart", False)), flags.pop("only", None)
    from rlt.pipeline import run_recipe
    from rlt.recipe import load_recipe

    recipe = load_recipe(recipe_path(name), flags)
    return run_recipe(recipe, restart=restart, only=None if only is None else str(only))


def _evolve(words: list[str]) -> int:
    names, flags = parse_flags(words, recipe=True)
    if len(names) != 1:
        raise ConfigError("usage: rlt evolve RECIPE [--KEY VALUE ...] [--evolve.KEY VALUE ...] [--STEP.KEY VALUE ...]")
    from rlt.evolve.run import evolve
    from rlt.recipe import load_recipe

    return evolve(load_recipe(recipe_path(names[0]), flags))


def _check(words: list[str]) -> int:
    name, flags = _one_name("check", words, recipe=True)
    from rlt.checking import check_search, check_steps, table
    from rlt.recipe import read_recipe

    recipe, problems = read_recipe(recipe_path(name), flags)
    checked = check_steps(recipe, recipe.steps)
    problems = [*problems, *checked.problems, *(check_search(recipe) if not problems else [])]
    if problems:
        raise ProblemsFound(name, problems)
    print(table(recipe, checked))
    return 0


def _recipes(words: list[str]) -> int:
    names, flags = parse_flags(words)
    if flags or (names and (names[0] != "copy" or len(names) != 3)):
        raise _usage("recipes")
    if names:
        copy = copy_recipe(names[1], Path(names[2]).expanduser())
        print(f"{copy}: edit it, then `rlt check {copy}` and `rlt run {copy}`.")
        return 0
    from rlt.results.tables import text_table

    print(text_table(["recipe", "time", "hardware", "purpose"], list(listing()), width=terminal_width()))
    print("\n`rlt run NAME` runs one, `rlt recipes copy NAME FOLDER` copies one to edit.")
    return 0


def _init(words: list[str]) -> int:
    from rlt.draft import InitConfig
    from rlt.drafting import init

    name, flags = _one_name("init", words)
    for line in init(validate(InitConfig, {**flags, "data": name}, "rlt init")):
        print(fitted(line))
    return 0


def _completion(words: list[str]) -> int:
    from rlt.completion import SHELLS, script

    if len(words) != 1 or words[0] not in SHELLS:
        raise _usage("completion")
    print(script(words[0]))
    return 0


def _timings(words: list[str]) -> int:
    name, flags = _one_name("timings", words)
    if flags:
        raise _usage("timings")
    from rlt.pipeline import timings

    print(json.dumps(timings(Path(name)), indent=1))
    return 0


def _plan(words: list[str]) -> int:
    from rlt.stages import plan

    name, flags = _one_name("plan", words, recipe=True)
    print(plan.run(recipe_path(name), flags))
    return 0


def _serve(words: list[str]) -> int:
    from rlt.serve.server import serve

    names, flags = parse_flags(words)
    if names:
        raise _usage("serve")
    return serve(validate(ServeConfig, flags, "rlt serve"))


def _export(words: list[str]) -> int:
    from rlt.integrations.lm_eval import ExportConfig, export

    names, flags = parse_flags(words)
    if names != ["lm-eval"]:
        raise _usage("export")
    print(export(validate(ExportConfig, flags, "rlt export")))
    return 0


def _view(words: list[str]) -> int:
    from rlt.results.page import view

    names, flags = parse_flags(words)
    if not names:
        raise _usage("view")
    return view(validate(ViewConfig, {**flags, "paths": names}, "rlt view"))


def _stage(stage: str, words: list[str]) -> int:
    names, flags = parse_flags(words)
    if names and is_recipe(names[0]):
        # One stage of a recipe, in the recipe's run folder.
        from rlt.pipeline import run_recipe
        from rlt.recipe import load_recipe

        _, flags = parse_flags(words, recipe=True)
        restart = bool(flags.pop("restart", False))
        return run_recipe(load_recipe(recipe_path(names[0]), flags), restart=restart, only=stage)
    if names:
        raise ConfigError(f"rlt {stage}: {names[0]!r} is neither a flag nor a recipe. Keys are flags: --KEY VALUE.")
    if not flags:
        print(page(stage))
        return 2
    config = validate(STAGES[stage], flags, f"rlt {stage}")
    if isinstance(config, ReportConfig) and _reported(config.output, [key for key in flags if key != "output"]):
        return 0
    from rlt.outputs import complete_state
    from rlt.pipeline import check_stage, run_stage
    from rlt.progress import summary, told_while_silent

    before = complete_state(config.output) is not None
    check_stage(stage, config)
    if not before:
        print(f"{stage}: starts -> {config.output}", flush=True)
    with told_while_silent(stage, stage):
        result = run_stage(stage, config)
    if before:
        print(f"{stage}: already complete: {summary(result)} -> {config.output}", flush=True)
    elif stage not in SAY_THEIR_END:
        print(f"{stage}: {summary(result)}", flush=True)
    return result.exit_status


def _reported(folder: Path, others: list[str]) -> bool:
    """Runs the report steps of a run's own recipe; False if it has none. Raises ConfigError for `others`, more flags."""
    from rlt.pipeline import run_stage
    from rlt.recipe import recipe_of_run

    written = folder / "recipe.yaml"
    steps = recipe_of_run(folder).steps if written.is_file() else ()
    reports = [step for step in steps if step.stage == "report"]
    if reports and others:
        raise ConfigError(
            f"rlt report: the recipe of {folder} has its own reports: {', '.join(step.name for step in reports)}. Change them: "
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


SAY_THEIR_END = ("score", "grade", "collect", "report")  # print their own summary
SWITCHES = ("restart", "live")  # flags without a value


def parse_flags(words: Sequence[str], recipe: bool = False) -> tuple[list[str], JsonRow]:
    """Plain words, and flags as nested values: `--train.kl-coef 2 --train.trainer.max-steps=3` gives
    {"train": {"kl_coef": 2, "trainer": {"max_steps": 3}}}. Repeated flags become a list; a flag without a value is True.
    Dashes become underscores, except in the step name of a `recipe`'s dotted flags.
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


def _value(text: str) -> object:
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
    inner = flags.get(last)
    if last in SHORT_FORMS and isinstance(inner, dict) and not isinstance(value, dict):
        flags, last = inner, SHORT_FORMS[last]
    if last in flags:
        before = flags[last]
        value = [*(before if isinstance(before, list) else [before]), value]
    flags[last] = value


COMMANDS = {
    "run": _run,
    "evolve": _evolve,
    "check": _check,
    "plan": _plan,
    "recipes": _recipes,
    "init": _init,
    "timings": _timings,
    "serve": _serve,
    "export": _export,
    "view": _view,
    "completion": _completion,
}


if __name__ == "__main__":
    sys.exit(main())
