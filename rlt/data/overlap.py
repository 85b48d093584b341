"""Questions that training and held-out data share, on which a solve rate would mislead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rlt.config import AnyData, DataConfig, EvaluateConfig, StageConfig
from rlt.data.code_rows import question_of
from rlt.data.problems import numbered_rows
from rlt.errors import DataError
from rlt.types import JsonRow

MadeBy = Callable[[str], JsonRow | None]
"""Path of a stage's output -> that stage's configuration, as JSON; None if no stage made this path."""


def overlap(training: AnyData, held_out: DataConfig) -> list[tuple[str, str]]:
    """`(where it is held out, where it is trained on)` of each question in both; [] unless both are local files.

    Questions are compared as text without surrounding blanks. `skip` and `limit` of both apply.
    """
    if not (all(Path(source.path).exists() for source in training.sources) and Path(held_out.path).exists()):
        return []
    return shared(training, questions_of(held_out))


def shared(training: AnyData, held_out: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """As `overlap`, for held-out questions given as `(where, question)`."""
    wanted = {question.strip(): where for where, question in held_out}
    return [
        (wanted.pop(question.strip()), where)
        for where, question in questions_of(training)
        if question.strip() in wanted
    ]


def questions_of(data: AnyData) -> Iterator[tuple[str, str]]:
    """`(where, question)` of each row that has a question, valid or not."""
    for source in data.sources:
        for _, where, row in numbered_rows(source):
            question = _question(source, row)
            if isinstance(question, str):
                yield where, question


def _question(source: DataConfig, row: JsonRow) -> object:
    question = row.get(source.columns.get("question", "question"), row.get("problem"))
    if source.task == "code":
        question = question_of(row) or question
    if question is None and isinstance(turns := row.get("conversations"), list):
        return next((turn.get("value") for turn in turns if turn.get("from") in ("user", "human")), None)
    return question


def training_data(model: str, made_by: MadeBy) -> Iterator[DataConfig]:
    """The local data a model was trained on, by the stage that made it and those that made its starting model."""
    seen: set[str] = set()
    while model not in seen:
        seen.add(model)
        config = made_by(model) or {}
        yield from _made_from(config.get("data"), made_by)
        model = start if isinstance(start := config.get("model"), str) else model


def _made_from(data: object, made_by: MadeBy) -> Iterator[DataConfig]:
    """The files of this data configuration, or, if they do not exist yet, those they will be made from."""
    if not isinstance(data, dict):
        return
    if "sources" in data:
        for source in data["sources"]:
            yield from _made_from(source, made_by)
    elif Path(data["path"]).exists():
        known = {key: value for key, value in data.items() if key in DataConfig.model_fields}
        yield DataConfig.model_validate(known)
    else:
        # Not made yet: its questions will be those of the data it is made from.
        maker = made_by(data["path"]) or made_by(str(Path(data["path"]).parent)) or {}
        yield from _made_from(maker.get("data"), made_by)


def leaks(configs: Sequence[StageConfig]) -> Iterator[str]:
    """A line for each file of an evaluate step in a recipe that shares questions with the model's training data.

    Reads only files that exist; evaluation checks again.
    """
    made = {str(config.output): config.model_dump(mode="json") for config in configs}
    seen: set[str] = set()
    for config in configs:
        if not isinstance(config, EvaluateConfig) or config.allow_overlap:
            continue
        for name in [config.data] if config.data else config.benchmark:
            for data in training_data(config.model, made.get) if Path(name).exists() else ():
                pair = f"{name} {config.limit} {data}"  # many steps of a recipe evaluate on the same file
                if pair not in seen and (both := overlap(data, DataConfig(path=name, limit=config.limit))):
                    yield said(both, name, data)
                seen.add(pair)


def refuse(both: Sequence[tuple[str, str]], name: str, data: DataConfig) -> None:
    """Raise DataError if there is an overlap."""
    if both:
        raise DataError(said(both, name, data))


def said(both: Sequence[tuple[str, str]], name: str, data: DataConfig) -> str:
    """One line about an overlap, with its first question and the fix."""
    here, there = both[0]
    return (
        f"{name}: {len(both)} of its questions are in the training data {data.path}, the first at {here} and {there}. "
        "Evaluate on other questions (`data.skip`, `data.limit`, or `exclude` of the stage `problems`), or set "
        "`allow_overlap: true`."
    )
