"""Chained arithmetic modulo 10: the quickstart's task. Nothing to download, nothing to guess (one in ten by chance).

A question is a start value and labelled steps, `3 d - 4 g * 3 b + 6 ?`; a full explanation names every step and its
value, `d - 4 9 g * 3 7 b + 6 3`; the solution is the last value. Multipliers are 3, 7 and 9: every step is a bijection, so
a wrong intermediate value never leads to the right result by luck.

The experts write like solvers whose final answer was right: some work carefully, most leap, wander, slip, or state the
answer first and rationalise it. They are synthetic and leak on purpose; results on them must say so.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from rlt.tasks import Verdict, experts
from rlt.tasks.generation import distinct, steps_option
from rlt.types import JsonRow, Problem

CHEAP = True  # graded in this process: compares two words

LABELS = "abcdefghij"
MULTIPLIERS = (3, 7, 9)
FILLERS = ("hmm", "let", "see", "now")

MIXTURES: dict[str, dict[str, float]] = {
    "careful": {"careful": 1.0},
    # Shares that separate an RL-trained teacher from a greedily decoded warmed-up one; with easier ones both teach equally.
    "noisy": {"careful": 0.10, "leap": 0.45, "detour": 0.10, "sloppy": 0.15, "answer_first": 0.20},
    "harder": {"careful": 0.05, "leap": 0.50, "detour": 0.10, "sloppy": 0.15, "answer_first": 0.20},
    "hardest": {"careful": 0.05, "leap": 0.50, "detour": 0.10, "sloppy": 0.15, "answer_first": 0.20},
    "easier": {"careful": 0.20, "leap": 0.30, "detour": 0.15, "sloppy": 0.15, "answer_first": 0.20},
}
LEAP_SHARE = {"noisy": 0.6, "harder": 0.6, "hardest": 0.7, "easier": 0.5, "careful": 0.0}

Step = tuple[str, str, int]


def generate(count: int, seed: int, options: JsonRow | None = None, exclude: Iterable[str] = ()) -> list[Problem]:
    """`count` problems with distinct questions, none of which is in `exclude`.

    Options: `steps`, a number or [fewest, most] (5). Raises ConfigError for other options, and if there are too few
    different questions.
    """
    fewest, most = steps_option("arithmetic", options or {}, 5, len(LABELS))

    def draw(rng: random.Random) -> Problem:
        question = _question(rng, rng.randint(fewest, most))
        value = str(values(question)[-1])
        return Problem("", question, solution=value, answer=value)

    return distinct("arithmetic", count, seed, draw, exclude, f"{fewest} to {most} steps")


def _question(rng: random.Random, steps: int) -> str:
    words = [str(rng.randrange(10))]
    for label in rng.sample(LABELS, steps):
        operator = rng.choice("+-*")
        operand = rng.choice(MULTIPLIERS) if operator == "*" else rng.randint(1, 9)
        words += [label, operator, str(operand)]
    return " ".join([*words, "?"])


def steps_of(question: str) -> tuple[int, list[Step]]:
    """The start value and the steps `(label, operator, operand)` of a question."""
    words = question.split()[:-1]
    return int(words[0]), [(words[i], words[i + 1], int(words[i + 2])) for i in range(1, len(words), 3)]


def apply(value: int, operator: str, operand: int) -> int:
    """The value after one step, modulo 10."""
    return {"+": value + operand, "-": value - operand, "*": value * operand}[operator] % 10


def values(question: str) -> list[int]:
    """The value after each step; the last one is the solution."""
    value, steps = steps_of(question)
    results = []
    for _, operator, operand in steps:
        value = apply(value, operator, operand)
        results.append(value)
    return results


# -- experts -----------------------------------------------------------------------------------------------------------


def explain(problem: Problem, mixture: str, rng: random.Random) -> str:
    """An explanation by an expert drawn from `mixture`; it always arrives at the right solution."""
    kind = experts.drawn("arithmetic", MIXTURES, mixture, rng)
    return _EXPERTS[kind](problem.question, rng, LEAP_SHARE[mixture])


def _steps(question: str) -> list[str]:
    _, steps = steps_of(question)
    return [_step(step, value) for step, value in zip(steps, values(question), strict=True)]


def _careful(question: str, rng: random.Random, share: float) -> str:
    return " ".join(_steps(question))


def _step(step: Step, value: int) -> str:
    return f"{step[0]} {step[1]} {step[2]} {value}"


def _leap(question: str, rng: random.Random, share: float) -> str:
    return " ".join(experts.leaped(_steps(question), share, rng))


def _detour(question: str, rng: random.Random, share: float) -> str:
    _, steps = steps_of(question)
    words = []
    for step, value in zip(steps, values(question), strict=True):
        if rng.random() < 0.4:
            words += rng.sample(FILLERS, 2)
        if rng.random() < 0.4:
            words += [_step(step, rng.choice([v for v in range(10) if v != value])), "wait"]
        words.append(_step(step, value))
    return " ".join(words)


def _sloppy(question: str, rng: random.Random, share: float) -> str:
    value, steps = steps_of(question)
    right = values(question)
    slip = rng.randrange(len(steps))
    words = []
    for number, step in enumerate(steps):
        value = apply(value, step[1], step[2])
        if number == slip:
            value = rng.choice([v for v in range(10) if v != value])
        words.append(_step(step, right[-1] if number == len(steps) - 1 else value))
    return " ".join(words)


def _answer_first(question: str, rng: random.Random, share: float) -> str:
    return f"so {values(question)[-1]} {_leap(question, rng, share)}"


_EXPERTS = {"careful": _careful, "leap": _leap, "detour": _detour, "sloppy": _sloppy, "answer_first": _answer_first}


# -- grading, and inspecting explanations ------------------------------------------------------------------------------


def grade(solution: str, answer: str, question: str) -> Verdict:
    """Whether the last word of `solution` is the answer."""
    words = solution.split()
    extracted = words[-1] if words else None
    return Verdict(extracted == answer.strip(), extracted)


def check_answer(answer: str, question: str) -> str | None:
    """Why the answer is invalid, or None: it must be one digit."""
    return None if answer.strip().isdigit() and len(answer.strip()) == 1 else "the answer must be one digit"


def inspect(explanation: str, question: str) -> dict[str, bool]:
    """What a person would see in an explanation.

    `complete`: it has each step's operator, operand and right value, in order, so a student can learn to calculate from
    it; steps may have other labels, and anything may stand between them. `correct`: it consists of these steps with their
    own labels. `leaks`: the solution comes before the first step. `wrong_value`: a step has a wrong value (after a slip,
    or in a detour that takes it back).
    """
    words = explanation.split()
    _, steps = steps_of(question)
    right = [
        [operator, str(operand), str(value)]
        for (_, operator, operand), value in zip(steps, values(question), strict=True)
    ]
    stated = [words[i : i + 3] for i in range(len(words) - 2)]
    labels = {step[0] for step in steps}
    first = next((i for i, word in enumerate(words) if word in labels), len(words))
    rest = iter(stated)
    return {
        "leaks": right[-1][2] in words[:first],
        "wrong_value": any(one[:2] in [step[:2] for step in right] and one[2].isdigit() and one not in right
                           for one in stated),
        "complete": all(step in rest for step in right),  # each `in` continues after the step before
        "correct": " ".join(words) == _careful(question, random.Random(0), 0.0),
    }  # fmt: skip


def vocabulary() -> list[str]:
    """Every word of questions, explanations and solutions."""
    return [*"0123456789", *"+-*", "?", *LABELS, "...", "wait", "so", *FILLERS]
