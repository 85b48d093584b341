"""Where is the ball? Chained swaps: a second task for tiny models, made of other words than `rlt.tasks.arithmetic`.

A question names the ball's place and the swaps, `ball p swap p s swap t u ?`; a full explanation names each swap and where
the ball is after it, `swap p s s swap t u s`; the solution is its last place (one in six by chance).
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from rlt.tasks import experts
from rlt.tasks.arithmetic import grade as grade
from rlt.tasks.generation import distinct, steps_option
from rlt.types import JsonMap, Problem

CHEAP = True  # graded in this process: a comparison of two words
MIXTURES = experts.MIXTURES
PLACES = "pqrstu"


def generate(count: int, seed: int, options: JsonMap | None = None, exclude: Iterable[str] = ()) -> list[Problem]:
    """`count` problems with distinct questions, none of which is in `exclude`.

    Options: `steps`, the number of swaps, a number or [fewest, most] (5). Every other swap, on average, moves the ball.
    Raises ConfigError for other options, or when there are too few different questions.
    """
    fewest, most = steps_option("swaps", options or {}, 5, 10)

    def draw(rng: random.Random) -> Problem:
        question = _question(rng, rng.randint(fewest, most))
        place = places(question)[-1]
        return Problem("", question, solution=place, answer=place)

    return distinct("swaps", count, seed, draw, exclude, f"{fewest} to {most} swaps")


def _question(rng: random.Random, steps: int) -> str:
    words = ["ball", ball := rng.choice(PLACES)]
    for _ in range(steps):
        others = rng.sample([place for place in PLACES if place != ball], 2)
        if rng.random() < 0.5:
            pair, ball = [ball, others[0]], others[0]
            rng.shuffle(pair)
        else:
            pair = others
        words += ["swap", *pair]
    return " ".join([*words, "?"])


def swaps_of(question: str) -> list[str]:
    """The swaps of a question, `swap p s` each."""
    words = question.split()[2:-1]
    return [" ".join(words[i : i + 3]) for i in range(0, len(words), 3)]


def places(question: str) -> list[str]:
    """Where the ball is after each swap; the last place is the solution."""
    ball, found = question.split()[1], []
    for swap in swaps_of(question):
        _, first, second = swap.split()
        ball = {first: second, second: first}.get(ball, ball)
        found.append(ball)
    return found


def explain(problem: Problem, mixture: str, rng: random.Random) -> str:
    """An explanation by an expert drawn from `mixture`; its last step is always right."""
    swaps, right = swaps_of(problem.question), places(problem.question)
    steps = [f"{swap} {place}" for swap, place in zip(swaps, right, strict=True)]
    slips = [
        f"{swap} {rng.choice([one for one in PLACES if one != place])}"
        for swap, place in zip(swaps, right, strict=True)
    ]
    return experts.explanation("swaps", steps, slips, right[-1], mixture, rng)


def check_answer(answer: str, question: str) -> str | None:
    """Why the answer cannot be graded, or None: it must be a place."""
    return None if answer.strip() in tuple(PLACES) else f"the answer must be one of {', '.join(PLACES)}"


def inspect(explanation: str, question: str) -> dict[str, bool]:
    """What a person would see in an explanation.

    `complete`: each swap with the right place, in order, whatever stands between them. `correct`: those and no other word.
    `leaks`: the solution is said before the first swap. `wrong_value`: some swap of the question with a wrong place.
    """
    words = explanation.split()
    right = [[*swap.split(), place] for swap, place in zip(swaps_of(question), places(question), strict=True)]
    stated = [words[i : i + 4] for i in range(len(words) - 3)]
    first = words.index("swap") if "swap" in words else len(words)
    rest = iter(stated)
    return {
        "leaks": right[-1][3] in words[:first],
        "wrong_value": any(one[:3] in [step[:3] for step in right] and one[3] in PLACES and one not in right
                           for one in stated),
        "complete": all(step in rest for step in right),  # each `in` continues after the step before
        "correct": words == [word for step in right for word in step],
    }  # fmt: skip


def vocabulary() -> list[str]:
    """Every word of questions, explanations and solutions."""
    return ["ball", "swap", "?", *PLACES, *experts.WORDS]
