"""Countdown: solvable by construction, and a checker that no text fools."""

from __future__ import annotations

import random

import pytest

from rlt.errors import ConfigError
from rlt.tasks import countdown

QUESTION = "25 7 3 4 make 46 ?"


@pytest.mark.parametrize(
    "solution",
    ["25 + ( 7 * 3 )", "25+7*3", r"\boxed{25 + 7 \times 3}", r"\boxed{25+7\cdot 3 = 46}", "So 25 + (7 × 3) = 46.",
     "25 + 7 * 3 = 46\n", "First 3 + 4 = 7. No: 25 + 7 * 3 = 46", r"\boxed{\left(25 + 7 \times 3\right)}",
     "( ( 25 ) ) + 7 * 3", "25 + 7 * 3 +"],
)  # fmt: skip
def test_right_expressions(solution: str) -> None:
    assert countdown.grade(solution, "46", QUESTION).correct


@pytest.mark.parametrize(
    "solution",
    ["46", "25 + 7 + 7 + 7", "7 * 7 - 3", "25 + 21", "25 + 7 * 3 + 0", "25 + 7 * 3 )", "( 25 + 7 * 3",
     "25 ** 2", "25 + 7 * 3 = 46, or 25 + 4 = 29", "__import__('os')", "2 5 + 7 * 3", "257 * 3", "(25 + 7) * 3",
     "25 + 7 * 3 / ( 4 - 4 )",
     "1e9", "25 + 7 x 3", "", "no", "((((" * 1000, "9" * 5000 + "+ 1", "25.0 + 7 * 3"],
)  # fmt: skip
def test_wrong_expressions(solution: str) -> None:
    assert not countdown.grade(solution, "46", QUESTION).correct


def test_arithmetic_is_exact() -> None:
    assert countdown.grade("8 / ( 3 - 8 / 3 )", "24", "8 3 8 3 make 24 ?").correct  # 8 / (1/3)
    assert not countdown.grade("3 / 7 * 7", "3", "3 7 make 3 ?").correct  # 7 is given once


def test_other_ways_to_ask_are_read() -> None:
    question = "Using the numbers [19, 7, 5, 5], create an equation that equals 65."
    assert countdown.grade("(19 - 7) * 5 + 5", "65", question).correct
    assert countdown.read_question(question) == ([19, 7, 5, 5], 65)
    assert countdown.check_answer("65", "no numbers") is not None
    assert countdown.check_answer("sixty", QUESTION) is not None


def test_every_problem_is_solved_by_its_own_solution_and_told_in_the_vocabulary() -> None:
    rng, words = random.Random(0), set(countdown.vocabulary())
    problems = countdown.generate(300, 0, {"numbers": [3, 5], "spare": 1})
    assert len({p.question for p in problems}) == 300
    for problem in problems:
        assert countdown.grade(problem.solution, problem.answer or "", problem.question).correct
        for mixture in countdown.MIXTURES:
            text = countdown.explain(problem, mixture, rng)
            assert set(f"{problem.question} {problem.solution} {text}".split()) <= words


def test_the_same_seed_makes_the_same_problems_and_excluded_ones_are_not_made() -> None:
    first = countdown.generate(20, 3)
    assert countdown.generate(20, 3) == first
    again = countdown.generate(20, 3, exclude=[p.question for p in first])
    assert not {p.question for p in first} & {p.question for p in again}


def test_explanations_are_inspected_step_by_step() -> None:
    assert countdown.inspect("7 * 3 21 25 + 21 46", QUESTION) == {"leaks": False, "correct": True}
    assert not countdown.inspect("7 * 3 21 25 + 21 45", QUESTION)["correct"]
    assert not countdown.inspect("7 * 7 49 49 - 3 46", QUESTION)["correct"]
    assert countdown.inspect("so 25 + ( 7 * 3 ) ...", QUESTION) == {"leaks": True, "correct": False}


@pytest.mark.parametrize("options", [{"numbers": 1}, {"numbers": 7}, {"largest": 100}, {"spare": 3}, {"steps": 4}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="countdown: options are"):
        countdown.generate(1, 0, options)
