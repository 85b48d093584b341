"""The teacher's prompts for a data set, and the room that the context leaves after them."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlt.config import AnyData
from rlt.data.problems import Dropped, iter_problems
from rlt.errors import DataError, ModelError
from rlt.text.formats import Format, teacher_prompt
from rlt.text.tokens import encode
from rlt.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Survey:
    """A data set: the numbers of valid problems and invalid rows, a digest, and places of problems without a prompt."""

    problems: int
    dropped: int
    digest: str
    without_prompt: frozenset[int] = frozenset()


def survey(data: AnyData, fmt: Format, tokenizer: PreTrainedTokenizerBase) -> Survey:
    """The Survey after one pass over all rows, none of which is kept in memory.

    Raises DataError for an invalid row or a problem that the chat template rewrites (with `data.on_invalid: skip`, counts
    them), for a duplicate id, and if no problem is left.
    """
    import numpy as np

    digest, ids = hashlib.sha256(), array("Q")
    dropped, rewritten = Dropped(), Dropped()
    places: set[int] = set()
    for place, problem in enumerate(iter_problems(data, fmt, dropped=dropped)):
        digest.update(repr(problem).encode())
        ids.append(int.from_bytes(hashlib.blake2b(problem.id.encode(), digest_size=8).digest(), "big"))
        try:
            teacher_prompt(fmt, tokenizer, problem)
        except ModelError as error:
            line = f"{data.path}: problem {problem.id}: {error}"
            if data.on_invalid == "error":
                raise DataError(f"{line}\nRemove it, or set `data.on_invalid: skip`.") from error
            rewritten.append(line)
            places.add(place)
    if len(ids) == len(places):
        first = dropped.first if dropped.number else rewritten.first
        raise DataError(f"{data.path}: no problem left; {dropped.number + len(places)} are invalid. The first: {first}")
    if len(np.unique(np.frombuffer(ids, dtype=np.uint64))) < len(ids):
        raise DataError(f"{data.path}: column `id` has duplicates. Make ids unique, or remove the column.")
    if places:
        print(f"{len(places)} of {len(ids)} problems skipped; the first: {rewritten.first}", flush=True)
    return Survey(len(ids), dropped.number, digest.hexdigest(), frozenset(places))


@dataclass(frozen=True)
class Room:
    """Places of problems whose prompt fills the context, and the number with room for fewer tokens than requested."""

    left_out: frozenset[int] = frozenset()
    short: int = 0


def room(
    data: AnyData,
    fmt: Format,
    tokenizer: PreTrainedTokenizerBase,
    surveyed: Survey,
    context: int | None,
    max_tokens: int,
) -> Room:
    """The Room that a context of so many tokens leaves for explanations; prints how many problems are affected.

    Raises DataError for a prompt that fills the context, unless `data.on_invalid` is `skip`, and if all prompts do.
    """
    if context is None:
        return Room()
    left_out, rooms, first = [], [], ""
    frame = len(teacher_prompt(fmt, tokenizer, Problem("", "?", "?")).encode())
    for position, problem in enumerate(iter_problems(data, fmt)):
        # A token has at least one byte, so most prompts need not be tokenized.
        text = len(problem.question.encode()) + len(problem.solution.encode())
        if position in surveyed.without_prompt or frame + text + max_tokens <= context:
            continue
        tokens = len(encode(tokenizer, teacher_prompt(fmt, tokenizer, problem)))
        if tokens < context:
            rooms += [context - tokens] if context - tokens < max_tokens else []
            continue
        line = (
            f"{data.path}: problem {problem.id}: its prompt of {tokens} tokens fills the context of {context}, with no room "
            "for an explanation"
        )
        if data.on_invalid == "error":
            raise DataError(f"{line}. Remove it, set `data.on_invalid: skip`, or use a longer context.")
        left_out.append(position)
        first = first or line
    if left_out and len(left_out) + len(surveyed.without_prompt) == surveyed.problems:
        raise DataError(f"{first}. None of {surveyed.problems} problems has room for one.")
    if left_out:
        print(f"{len(left_out)} of {surveyed.problems} problems skipped; the first: {first}", flush=True)
    if rooms:
        print(
            f"{len(rooms)} of {surveyed.problems} problems have room for fewer than `max_tokens` {max_tokens} tokens in the "
            f"context of {context}; the smallest room is {min(rooms)}",
            flush=True,
        )
    return Room(frozenset(left_out), len(rooms))
