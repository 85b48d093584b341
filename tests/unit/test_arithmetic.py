"""Chained arithmetic: values by hand, experts that are always right in the end."""

import random

import pytest

from rlt.errors import ConfigError
from rlt.tasks import arithmetic
from rlt.types import Problem

QUESTION = "3 d - 4 g * 3 b + 6 ?"  # 3-4 = 9, 9*3 = 7, 7+6 = 3 (mod 10)
PROBLEM = Problem(id="0", question=QUESTION, solution="3", answer="3")


def test_values_of_each_step_by_hand():
    assert arithmetic.values(QUESTION) == [9, 7, 3]


def test_a_careful_expert_names_every_step_and_its_value():
    assert arithmetic.explain(PROBLEM, "careful", random.Random(0)) == "d - 4 9 g * 3 7 b + 6 3"


@pytest.mark.parametrize("seed", range(30))
def test_every_expert_ends_with_the_right_value(seed):
    explanation = arithmetic.explain(PROBLEM, "noisy", random.Random(seed))
    assert explanation.split()[-1] == "3"


def test_same_seed_same_problems_and_none_that_is_excluded():
    first = arithmetic.generate(20, 1)
    assert first == arithmetic.generate(20, 1)
    rest = arithmetic.generate(20, 1, exclude={p.question for p in first[:5]})
    assert not {p.question for p in rest} & {p.question for p in first[:5]}


def test_questions_are_distinct_and_their_answers_right():
    problems = arithmetic.generate(200, 2, {"steps": [2, 5]})
    assert len({p.question for p in problems}) == 200
    assert all(p.answer == str(arithmetic.values(p.question)[-1]) for p in problems)


def test_too_few_different_questions_is_an_error():
    with pytest.raises(ConfigError, match="not 3000 different"):
        arithmetic.generate(3000, 0, {"steps": 1})


@pytest.mark.parametrize("options", [{"step": 3}, {"steps": 0}, {"steps": [4, 2]}])
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError, match="options"):
        arithmetic.generate(1, 0, options)


@pytest.mark.parametrize(
    ("solution", "correct", "extracted"),
    [("3", True, "3"), ("it is 3", True, "3"), ("13", False, "13"), ("", False, None)],
)
def test_the_last_word_is_graded(solution, correct, extracted):
    verdict = arithmetic.grade(solution, "3", QUESTION)
    assert (verdict.correct, verdict.extracted) == (correct, extracted)


@pytest.mark.parametrize(
    ("explanation", "seen"),
    [
        ("d - 4 9 g * 3 7 b + 6 3", {"complete", "correct"}),
        ("a - 4 9 g * 3 7 a + 6 3", {"complete"}),  # labels of no step
        ("hmm d - 4 9 let see g * 3 7 b + 6 3", {"complete"}),
        ("d - 4 9 d - 4 9 g * 3 7 b + 6 3", {"complete"}),
        ("so 3 d - 4 9 g * 3 7 b + 6 3", {"leaks", "complete"}),
        ("d - 4 9 g * 3 2 wait g * 3 7 b + 6 3", {"wrong_value", "complete"}),
        ("d - 4 9 ... b + 6 3", set()),
        ("g * 3 7 d - 4 9 b + 6 3", set()),  # a step before the one that it needs
        ("d - 4 8 g * 3 7 b + 6 3", {"wrong_value"}),
        ("d - 4 9 g * 7 7 b + 6 3", set()),  # an operand of no step
        ("so 3 ... b + 6 3", {"leaks"}),
        ("d - 4 9 g * 3", set()),
        ("", set()),
    ],
)
def test_inspection_sees_leaks_gaps_slips_and_what_spoils_no_calculation(explanation, seen):
    found = arithmetic.inspect(explanation, QUESTION)
    assert {name for name, there in found.items() if there} == seen
    assert set(found) == {"leaks", "wrong_value", "complete", "correct"}


def test_a_step_that_comes_twice_has_to_be_there_twice():
    question = "0 a + 5 b + 5 c + 5 ?"  # 5, 0, 5
    assert arithmetic.inspect("a + 5 5 b + 5 0 c + 5 5", question)["complete"]
    assert not arithmetic.inspect("a + 5 5 b + 5 0", question)["complete"]


def test_every_word_of_questions_and_explanations_is_in_the_vocabulary():
    rng, words = random.Random(0), set(arithmetic.vocabulary())
    for problem in arithmetic.generate(300, 3, {"steps": [1, 6]}):
        assert set(problem.question.split()) | set(arithmetic.explain(problem, "noisy", rng).split()) <= words
