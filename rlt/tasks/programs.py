"""Programs of a few lines: simple code, for models with a vocabulary of some dozen words.

A question names steps, `write add 3 , double , negate ?`; the solution is a program that reads a number, takes these steps
and prints it. It is graded by `rlt.tasks.code` against three pairs of input and output (the form of APPS). A full
explanation translates each step to Python: `add 3 += 3 , double *= 2 , negate *= -1 ,`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

from rlt.tasks import code, experts
from rlt.tasks.generation import distinct, steps_option
from rlt.types import JsonRow, Problem

CHEAP = code.CHEAP
MIXTURES = experts.MIXTURES
INPUTS = (-4, 1, 7)
NUMBERS = range(1, 10)
READ, WRITE = "x=int(input())", "print(x)"
STEPS = {"add": "+= {}", "take": "-= {}", "double": "*= 2", "triple": "*= 3", "negate": "*= -1", "square": "*= x"}
"""Name of a step in questions -> its Python."""

grade = code.grade
check_answer = code.check_answer
check_machine = code.check_machine


def generate(count: int, seed: int, options: JsonRow | None = None, exclude: Iterable[str] = ()) -> list[Problem]:
    """`count` problems with distinct questions, none of which is in `exclude`.

    Options: `steps`, a number or [fewest, most] (3). Raises ConfigError for other options, and if there are too few
    different questions.
    """
    fewest, most = steps_option("programs", options or {}, 3, 8)

    def draw(rng: random.Random) -> Problem:
        steps = [_step(rng) for _ in range(rng.randint(fewest, most))]
        return _problem(f"write {' , '.join(steps)} ?")

    return distinct("programs", count, seed, draw, exclude, f"{fewest} to {most} steps")


def _step(rng: random.Random) -> str:
    name = rng.choice(list(STEPS))
    return f"{name} {rng.choice(NUMBERS)}" if "{}" in STEPS[name] else name


def _problem(question: str) -> Problem:
    lines = [READ, *(f"x {python(step)}" for step in steps_of(question)), WRITE]
    program = " \n ".join(lines)
    outputs = []
    for x in INPUTS:
        for step in steps_of(question):
            x = _taken(step, x)
        outputs.append(str(x))
    tests = json.dumps({"inputs": [str(x) for x in INPUTS], "outputs": outputs})
    return Problem("", question, f"```python \n {program} \n ```", tests)


def _taken(step: str, x: int) -> int:
    name, number = (*step.split(), "0")[:2]
    return {
        "add": x + int(number), "take": x - int(number), "double": 2 * x, "triple": 3 * x, "negate": -x, "square": x * x,
    }[name]  # fmt: skip


def steps_of(question: str) -> list[str]:
    """The steps in a question."""
    return question.removeprefix("write ").removesuffix(" ?").split(" , ")


def python(step: str) -> str:
    """A step in Python."""
    name, *number = step.split()
    return STEPS[name].format(*number)


def explain(problem: Problem, mixture: str, rng: random.Random) -> str:
    """An explanation by an expert drawn from `mixture`."""
    steps = steps_of(problem.question)
    wrong = [rng.choice([name for name in STEPS if name != step.split()[0]]) for step in steps]
    slips = [f"{step} {STEPS[other].format(rng.choice(NUMBERS))} ," for step, other in zip(steps, wrong, strict=True)]
    end = " , ".join(python(step) for step in steps) + " ;"
    return experts.explanation("programs", [f"{step} {python(step)} ," for step in steps], slips, end, mixture, rng)


def vocabulary() -> list[str]:
    """Every word of questions, explanations and solutions."""
    kept = ["\n", "```python", "```", READ, WRITE, "x", "+=", "-=", "*=", "-1", "write", ",", ";", "?"]
    return [*kept, *STEPS, *"0123456789", *experts.WORDS]
