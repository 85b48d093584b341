"""Chained swaps: where the ball is, how experts say it, and what an inspection sees."""

import random

import pytest

from rlt.errors import ConfigError
from rlt.tasks import load_generated_task, swaps
from rlt.types import Problem

QUESTION = "ball p swap p s swap t u swap q s ?"
CAREFUL = "swap p s s swap t u s swap q s q"


def test_the_ball_moves_only_with_its_own_place() -> None:
    assert swaps.places(QUESTION) == ["s", "s", "q"]


def test_the_solution_is_the_last_place_and_questions_are_distinct() -> None:
    problems = swaps.generate(500, 0, {"steps": [2, 3]}, exclude=[QUESTION])
    assert len({problem.question for problem in problems} | {QUESTION}) == 501
    assert all(problem.solution == problem.answer == swaps.places(problem.question)[-1] for problem in problems)


def test_every_place_is_the_solution_about_equally_often() -> None:
    problems = swaps.generate(3000, 1)
    assert all(400 < sum(problem.solution == place for problem in problems) < 600 for place in swaps.PLACES)


def test_a_careful_explanation_says_each_swap_and_where_the_ball_is() -> None:
    assert swaps.explain(Problem("0", QUESTION, "q", "q"), "careful", random.Random(0)) == CAREFUL


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (CAREFUL, {"leaks": False, "wrong_value": False, "complete": True, "correct": True}),
        (f"{CAREFUL} ...", {"leaks": False, "wrong_value": False, "complete": True, "correct": False}),
        ("so q ... swap q s q", {"leaks": True, "wrong_value": False, "complete": False, "correct": False}),
        (
            "swap p s p swap t u s swap q s q",
            {"leaks": False, "wrong_value": True, "complete": False, "correct": False},
        ),
        ("", {"leaks": False, "wrong_value": False, "complete": False, "correct": False}),
    ],
)
def test_an_inspection_sees(text: str, seen: dict[str, bool]) -> None:
    assert swaps.inspect(text, QUESTION) == seen


def test_experts_end_right() -> None:
    rng = random.Random(0)
    for problem in swaps.generate(200, 2):
        assert swaps.explain(problem, "noisy", rng).split()[-1] == problem.solution


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="swaps: options are `steps`"):
        load_generated_task("swaps").generate(1, 0, {"step": 3})
