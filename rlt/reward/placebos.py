"""Placebos and controls: empty explanations, another question's, wrong numbers, bare solutions."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from rlt.models.logprobs import Progress
from rlt.reward.items import ScoredRow, StudentLost
from rlt.reward.scoring import RewardEngine
from rlt.reward.tokens import TokenNumbers
from rlt.types import Explanation


def with_placebos(
    engine: RewardEngine,
    items: Sequence[Explanation],
    scored: Sequence[ScoredRow],
    others: Mapping[int, str | None],
    progress: Progress | None = None,
) -> list[ScoredRow]:
    """`scored` with `lift_over_empty` and `lift_over_shuffled` in the rows of `others` that have an `r_ss`.

    `others[i]` is the text of another question's explanation that replaces that of `items[i]`, or None. The empty
    explanation consists of the paddings. A lift is None if there is no placebo or a student cannot read it. Every call
    scores once, even without rows: ranks that share a student must call it equally often.
    """
    wanted = [i for i in others if scored[i].parts.r_ss is not None]
    asked = [(i, "empty", engine.fmt.as_written("")) for i in wanted]
    asked += [(i, "shuffled", other) for i in wanted if (other := others[i]) is not None]
    # Without teacher and sampling: only r_ss is compared.
    plain = RewardEngine(engine.students, engine.fmt, engine.options.model_copy(update={"accuracy": None}))
    try:
        keep = {place for place, (i, _, _) in enumerate(asked) if scored[i].tokens}
        texts = [replace(items[i], text=text) for i, _, text in asked]
        rows = plain.score(texts, progress=progress, keep_tokens=keep, ranks=False)
    except StudentLost as error:
        raise StudentLost(str(error)) from error  # without `rows`, which are the placebos'
    found = {(i, kind): row for (i, kind, _), row in zip(asked, rows, strict=True)}
    return [_compared(row, found.get((i, "empty")), found.get((i, "shuffled"))) for i, row in enumerate(scored)]


def _compared(row: ScoredRow, empty: ScoredRow | None, shuffled: ScoredRow | None) -> ScoredRow:
    tokens = {
        name: replace(
            numbers,
            log_probs_empty=_same_solution(numbers, empty, name),
            log_probs_shuffled=_same_solution(numbers, shuffled, name),
        )
        for name, numbers in row.tokens.items()
    }
    lifts = [_lift(row.parts.r_ss, placebo.parts.r_ss if placebo else None) for placebo in (empty, shuffled)]
    return replace(row, tokens=tokens, lift_over_empty=lifts[0], lift_over_shuffled=lifts[1])


def _same_solution(numbers: TokenNumbers, placebo: ScoredRow | None, name: str) -> torch.Tensor | None:
    """The placebo's log-probs of the same solution tokens; None if it has none or other tokens merge with the tags."""
    other = placebo.tokens.get(name) if placebo else None
    return other.log_probs if other is not None and other.solution == numbers.solution else None


def controlled(explanation: Explanation, control: str, padding: str, seed: int) -> Explanation:
    """The explanation with another text: `empty`, with wrong `numbers`, or the bare `solution`.

    Each number is replaced everywhere by another one with as many digits, drawn from `seed` and the question.
    """
    if control == "numbers":
        return replace(explanation, text=_other_numbers(explanation.text, f"{seed} {explanation.problem.question}"))
    return replace(explanation, text=(explanation.problem.solution if control == "solution" else "") + padding)


def _other_numbers(text: str, seed: str) -> str:
    rng = random.Random(seed)
    instead: dict[str, str] = {}

    def other(match: re.Match[str]) -> str:
        digits = match[0]
        low, high = (0, 9) if len(digits) == 1 else (10 ** (len(digits) - 1), 10 ** len(digits) - 1)
        while instead.setdefault(digits, str(rng.randint(low, high))) == digits:
            del instead[digits]
        return instead[digits]

    return re.sub(r"\d+", other, text)


def next_text(items: Sequence[Explanation], scored: Sequence[ScoredRow], i: int) -> str | None:
    """The text of the next item after `i`, cyclically, that has an `r_ss` and another question; None if there is none."""
    return next(
        (
            items[j].text
            for j in (*range(i + 1, len(items)), *range(i))
            if scored[j].parts.r_ss is not None and items[j].problem.question != items[i].problem.question
        ),
        None,
    )


def _lift(value: float | None, placebo: float | None) -> float | None:
    return None if value is None or placebo is None else value - placebo
