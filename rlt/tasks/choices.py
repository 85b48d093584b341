"""Laying out the choices of a multiple-choice row below its question, as lines `A. text`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import cast

from pydantic import model_validator

from rlt.config import Config
from rlt.errors import DataError
from rlt.tasks.multiple_choice import LETTERS
from rlt.types import JsonMap, JsonRow


class Choices(Config):
    """Columns of the choices: right and wrong ones, to be shuffled; or a list in fixed order, with the right one's key."""

    right: str | None = None
    """Column of the right choice."""
    wrong: list[str] = []
    """Columns of the wrong choices."""
    seed: int | None = None
    """The order depends only on this seed and the question's id."""
    listed: str | None = None
    """Column with all choices in order, instead of `right` and `wrong`; `a.b` is column `b` of column `a`."""
    labels: str | None = None
    """Column with the choices' own labels, such as ARC's `1` to `4`; null: letters."""
    key: str | None = None
    """Column with the label of the right choice."""

    @model_validator(mode="after")
    def _one_form(self) -> Choices:
        shuffled = self.right is not None and bool(self.wrong) and self.seed is not None
        listed = self.listed is not None and self.key is not None
        if shuffled == listed or (listed and (self.right or self.wrong)):
            raise ValueError("give `right`, `wrong` and `seed`, or `listed` and `key`")
        return self


def laid_out(choices: Choices, row: JsonRow, where: str, key: str) -> JsonRow:
    """`id`, `question` with its choices, and the letter as `answer`; a row already in that form is returned unchanged.

    Raises DataError for a row that lacks a choice or its key.
    """
    if choices.listed is not None:
        return _in_order(choices, row, where, key) if _column(row, choices.listed) is not None else row
    assert choices.right is not None
    if choices.right not in row and "answer" in row:
        return row
    columns = ("question", choices.right, *choices.wrong)
    missing = [column for column in columns if not str(row.get(column) or "").strip()]
    if missing:
        raise DataError(f"{where}: column `{missing[0]}` is missing or empty; a question needs all its choices.")
    texts = [str(row[column]).strip() for column in (choices.right, *choices.wrong)]
    order = list(range(len(texts)))
    random.Random(f"choices {choices.seed} {key}").shuffle(order)
    return _row(row, key, [texts[index] for index in order], order.index(0))


def _in_order(choices: Choices, row: JsonRow, where: str, key: str) -> JsonRow:
    assert choices.listed is not None
    assert choices.key is not None
    texts = [str(text).strip() for text in _column(row, choices.listed) or ()]
    if not 2 <= len(texts) <= len(LETTERS):
        raise DataError(f"{where}: column `{choices.listed}` has {len(texts)} choices; expected 2 to {len(LETTERS)}.")
    if not all(texts):
        raise DataError(f"{where}: column `{choices.listed}`: choice {texts.index('') + 1} is empty.")
    labels = [str(label) for label in _column(row, choices.labels) or ()] if choices.labels else list(LETTERS)
    right = str(row.get(choices.key)).strip()
    if right not in labels[: len(texts)]:
        raise DataError(
            f"{where}: column `{choices.key}`: {right!r} is not one of the labels {', '.join(labels[: len(texts)])}."
        )
    return _row(row, key, texts, labels.index(right))


def _row(row: JsonRow, key: str, texts: list[str], right: int) -> JsonRow:
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]
    question = "\n".join([str(row["question"]).strip(), "", *lines])
    return {"id": row.get("id", key), "question": question, "answer": LETTERS[right]}


def _column(row: JsonMap, name: str) -> Sequence[object] | None:
    value: object = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return cast(Sequence[object] | None, value)
