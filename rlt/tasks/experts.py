"""Simulated experts for tasks that are chains of steps: how solvers write that stopped at the right end.

They are synthetic, and they leak on purpose; results on them must say so.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlt.errors import ConfigError

MIXTURES: dict[str, dict[str, float]] = {
    "careful": {"careful": 1.0},
    "noisy": {"careful": 0.05, "leap": 0.55, "sloppy": 0.20, "answer_first": 0.20},
}
LEAP = 0.6  # chance that a step but the last is left out
WORDS = ("...", "so")


def explanation(
    task: str, steps: Sequence[str], slips: Sequence[str], end: str, mixture: str, rng: random.Random
) -> str:
    """An explanation by an expert drawn from `mixture`: of right `steps`, of wrong ones (`slips`), with the `end` said first.

    `careful` writes every step. `leap` leaves steps out and marks the gap, `sloppy` has one wrong step that is not the last,
    `answer_first` says the end and leaps. Raises ConfigError for an unknown mixture.
    """
    if mixture not in MIXTURES:
        raise ConfigError(f"{task}: unknown mixture of experts {mixture!r}; expected one of {', '.join(MIXTURES)}.")
    (kind,) = rng.choices(list(MIXTURES[mixture]), weights=list(MIXTURES[mixture].values()))
    if kind == "sloppy" and len(steps) > 1:
        place = rng.randrange(len(steps) - 1)
        steps = [*steps[:place], slips[place], *steps[place + 1 :]]
    if kind in ("leap", "answer_first"):
        steps = _leaped(steps, rng)
    return " ".join(["so", end, *steps] if kind == "answer_first" else steps)


def _leaped(steps: Sequence[str], rng: random.Random) -> list[str]:
    words: list[str] = []
    for number, step in enumerate(steps):
        word = "..." if rng.random() < LEAP and number < len(steps) - 1 else step
        if word != "..." or words[-1:] != ["..."]:
            words.append(word)
    return words
