"""What a stage inherits from its models: their format, and the date that chat templates print."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlt.config import Config, StageConfig
from rlt.errors import ConfigError
from rlt.outputs import inputs_of, read_state
from rlt.text.clock import VARIABLE, pin_date, pinned_date
from rlt.text.formats import DEFAULT_FORMAT, load_format


def prepared(stage: str, config: StageConfig) -> StageConfig:
    """The configuration with its format resolved. Also pins the date that chat templates print.

    The date is that of the output if it has begun, else of the run, else of the model it starts from, else today's.
    Raises ConfigError if a model was trained with a format other than the given one.
    """
    pin_date(date_of([config.output], os.environ.get(VARIABLE), [*map(Path, inputs_of(config))]))
    if "format" in type(config).model_fields:
        return config.model_copy(update={"format": format_for(stage, config)})
    return config


def date_of(outputs: Iterable[Path], run: str | None = None, inputs: Iterable[Path] = ()) -> str:
    """The date pinned for the first of these outputs that has begun, else `run`, else that of `inputs`, else today's."""

    def dates(paths: Iterable[Path]) -> Iterator[str]:
        return (state["date"] for state in map(read_state, paths) if state and state.get("date"))

    return next(dates(outputs), None) or run or next(dates(inputs), None) or pinned_date()


def format_of(model: str) -> str | None:
    """Name or file of the format that this model folder was trained with; None if no stage made it."""
    name = (read_state(Path(model.rpartition("#")[2])) or {}).get("config", {}).get("format")
    return None if name is None else str(name)


def format_for(stage: str, config: Config) -> str:
    """The stage's format: the given one, else the one its models were trained with, else DEFAULT_FORMAT.

    Raises ConfigError if these differ, except in the stages that teach a format (`warmup`, `distill`). A student's format
    may differ in the parts that only teachers read, and RL may word its teacher's prompt differently: it trains with it.
    """
    teachers = [getattr(config, "model", None), getattr(config, "teacher", None)]
    students = getattr(config, "student", None) or []
    models = [*teachers, *students]
    trained = {model: name for model in models if isinstance(model, str) and (name := format_of(model)) is not None}
    given: str | None = getattr(config, "format", None)
    name = given or next(iter(trained.values()), DEFAULT_FORMAT)
    for model, other in trained.items():
        rephrased = bool(given) and stage == "train"
        if not _same_format(other, name, model not in teachers, rephrased) and not (
            given and stage in ("warmup", "distill")
        ):
            fix = f"Leave `format` out, or set it to `{other}`" if given else "Use models of one format"
            raise ConfigError(
                f"{stage}: {model} was trained with the format `{other}`, not `{name}`, so its text could not be read. {fix}."
            )
    return name


def _same_format(one: str, other: str, for_students: bool, rephrased: bool) -> bool:
    try:
        formats = load_format(one), load_format(other)
    except ConfigError:
        return one == other
    if for_students:
        return formats[0].for_students() == formats[1].for_students()
    if rephrased:
        formats = formats[0], formats[1].model_copy(update={"teacher_system_prompt": formats[0].teacher_system_prompt})
    return formats[0] == formats[1]
