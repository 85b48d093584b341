"""Simulated experts for tasks that are chains of steps.

They write like solvers whose final answer was right. They are synthetic and leak on purpose; results on them must say so.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from rlt.errors import ConfigError

MIXTURES: dict[str, dict[str, float]] = {
    "careful": {"careful": 1.0},
    "noisy": {"careful": 0.05, "leap": 0.55, "sloppy": 0.20, "answer_first": 0.20},
}
LEAP = 0.6  # chance that a step is left out
WORDS = ("...", "so")


def explanation(
    task: str, steps: Sequence[str], slips: Sequence[str], end: str, mixture: str, rng: random.Random
) -> str:
    """An explanation by an expert drawn from `mixture`, made from the right `steps`, wrong ones (`slips`), and the `end`.

    `careful` writes every step, `leap` leaves steps out and marks the gap, `sloppy` has one wrong step that is not the last,
    `answer_first` states the end and leaps. Raises ConfigError for an unknown mixture.
    """
    kind = drawn(task, MIXTURES, mixture, rng)
    if kind == "sloppy" and len(steps) > 1:
        place = rng.randrange(len(steps) - 1)
        steps = [*steps[:place], slips[place], *steps[place + 1 :]]
    if kind in ("leap", "answer_first"):
        steps = leaped(steps, LEAP, rng)
    return " ".join(["so", end, *steps] if kind == "answer_first" else steps)


def drawn(task: str, mixtures: Mapping[str, Mapping[str, float]], mixture: str, rng: random.Random) -> str:
    """A kind of expert, drawn by the shares of `mixture`; raises ConfigError for an unknown mixture."""
    if mixture not in mixtures:
        raise ConfigError(f"{task}: unknown mixture of experts {mixture!r}; expected one of {', '.join(mixtures)}.")
    (kind,) = rng.choices(list(mixtures[mixture]), weights=list(mixtures[mixture].values()))
    return kind


def leaped(steps: Sequence[str], share: float, rng: random.Random, keep_last: bool = True) -> list[str]:
    """The steps, each left out with the chance `share`, with gaps marked by `...`.

    An unmarked gap would make the next value look wrong and ruin a student's arithmetic. The last step is kept, because a
    solver that was right says how it ended.
    """
    words: list[str] = []
    for number, step in enumerate(steps):
        word = "..." if rng.random() < share and not (keep_last and number == len(steps) - 1) else step
        if word != "..." or words[-1:] != ["..."]:
            words.append(word)
    return words
