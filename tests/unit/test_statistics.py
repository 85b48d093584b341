"""Statistics of evaluations, worked by hand, and intervals that keep what they state."""

from __future__ import annotations

import math
import random

import pytest

from rlt.results.intervals import (
    exact_interval,
    in_words,
    incomplete_beta,
    majority_at_k,
    paired_difference,
    pass_at_1,
    pass_at_k,
    student_t,
)


def test_pass_at_1_is_the_mean_of_question_means_with_a_clustered_error() -> None:
    solved = pass_at_1([[True, True], [True, False], [False, False]])
    assert solved.mean == pytest.approx(0.5)
    assert solved.standard_error == pytest.approx(math.sqrt(0.25 / 3))  # question means 1, 1/2, 0: variance 1/4
    assert (solved.questions, solved.samples) == (3, 2)


def test_always_right_scores_1_with_standard_error_0() -> None:
    solved = pass_at_1([[True] * 4] * 30)
    assert (solved.mean, solved.standard_error, solved.high) == (1.0, 0.0, 1.0)
    assert 0.85 < solved.low < 1.0  # 30 questions cannot prove perfection


def test_one_question_has_no_standard_error() -> None:
    assert pass_at_1([[True]]).standard_error is None


def test_pass_at_k_is_the_unbiased_estimator() -> None:
    # 4 samples, 1 right: 1 - C(3, 2) / C(4, 2) = 1/2.
    assert pass_at_k([[True, False, False, False]], 2) == pytest.approx(0.5)
    assert pass_at_k([[True, False, False, False], [False] * 4], 4) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="pass@3 needs 3 samples"):
        pass_at_k([[True, False]], 3)


def test_repeating_the_samples_moves_no_pass_at_1() -> None:
    rows = [[True, False], [True, True], [False, False]]
    assert pass_at_1(rows).mean == pass_at_1([row * 4 for row in rows]).mean


def test_majority_counts_answers_not_samples() -> None:
    right = [[True, False, False, True, False]]
    votes: list[list[str | None]] = [["7", "3", "4", "7.0", None]]
    assert majority_at_k(right, votes, 5, str.__eq__) == 1.0
    assert majority_at_k([[True, False, False]], [["7", "3", "3"]], 3, str.__eq__) == 0.0
    assert majority_at_k([[True, False]], [["7", "3"]], 2, str.__eq__) == 0.5  # a tie is shared
    assert majority_at_k([[False, False]], [[None, None]], 2, str.__eq__) == 0.0


def test_special_functions_have_their_tabulated_values() -> None:
    assert incomplete_beta(1, 2, 0.3) == pytest.approx(1 - 0.7**2)
    assert incomplete_beta(0.5, 0.5, 0.5) == pytest.approx(0.5)  # the arcsine law
    assert student_t(0.95, 1) == pytest.approx(12.7062, abs=1e-4)
    assert student_t(0.95, 29) == pytest.approx(2.04523, abs=1e-5)


def test_the_exact_interval_has_its_tails() -> None:
    low, high = exact_interval(0, 10)
    assert low == 0.0
    assert (1 - high) ** 10 == pytest.approx(0.025)
    low, high = exact_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4439, abs=1e-4), pytest.approx(0.9748, abs=1e-4))  # Clopper and Pearson


@pytest.mark.parametrize(
    ("questions", "samples", "truth"),
    [
        (30, 1, 0.5),
        (30, 1, 0.02),
        (30, 1, 0.1),
        (30, 1, 0.99),
        (30, 1, 0.995),
        (10, 1, 0.3),
        (500, 1, 0.98),
        (30, 8, 0.7),
        (5, 8, 0.5),
    ],
)
def test_intervals_of_a_known_coin_cover_it_at_their_stated_rate(questions: int, samples: int, truth: float) -> None:
    rng = random.Random(f"{questions} {samples} {truth}")
    covered = 0
    for _ in range(1000):
        tosses = [[rng.random() < truth for _ in range(samples)] for _ in range(questions)]
        solved = pass_at_1(tosses)
        covered += solved.low <= truth <= solved.high
    assert covered >= 935  # 95 % less two standard errors of 1,000 simulations


@pytest.mark.parametrize(
    ("questions", "samples", "first", "second"),
    [(30, 1, 0.5, 0.5), (100, 1, 0.02, 0.02), (30, 4, 0.3, 0.5), (10, 1, 0.5, 0.7)],
)
def test_paired_differences_of_known_coins_are_covered(
    questions: int, samples: int, first: float, second: float
) -> None:
    rng = random.Random(f"{questions} {samples} {first}")
    covered = 0
    for _ in range(1000):
        a = [[rng.random() < first for _ in range(samples)] for _ in range(questions)]
        b = [[rng.random() < second for _ in range(samples)] for _ in range(questions)]
        difference = paired_difference(a, b)
        covered += difference.low <= second - first <= difference.high
    assert covered >= 935


def test_the_comparison_says_in_words_what_is_noise() -> None:
    a, b = [[True]] * 10 + [[False]] * 20, [[True]] * 11 + [[False]] * 19
    assert "within noise" in in_words(paired_difference(a, b), "A", "B")
    b = [[True]] * 28 + [[False]] * 2
    assert "B is better than A, beyond noise" in in_words(paired_difference(a, b), "A", "B")
    assert "A is better than B, beyond noise" not in in_words(paired_difference(a, b), "A", "B")
