"""The reward's arithmetic on numbers worked by hand."""

import math

import pytest
import torch

from rlt.errors import ScoringError
from rlt.reward.formula import combine, divergence, reward_parts, stretch_sums
from rlt.reward.sides import Side, explanation_divergence
from rlt.types import RewardParts

SOLUTION = torch.tensor([-1.0, -3.0, -0.5, -0.5, 0.0])  # mean -1, minimum -3
KL = torch.tensor([0.5, -0.5, 2.0, 0.0, 0.5])  # mean 0.5, maximum 2


def test_five_tokens_by_hand():
    parts = reward_parts(SOLUTION, KL, alpha=0.01, kl_coef=3, format_penalty=-1)
    assert parts.r_ss == pytest.approx(-1 + 0.01 * -3)
    assert parts.r_kl == pytest.approx(0.5 + 0.01 * 2)
    assert parts.reward == pytest.approx(-1.03 - 3 * 0.52 - 1)
    assert (parts.solution_log_prob_mean, parts.solution_log_prob_min) == (-1, -3)
    assert (parts.explanation_kl_mean, parts.explanation_kl_max) == (0.5, 2)
    assert (parts.solution_tokens, parts.explanation_tokens, parts.format_penalty) == (5, 5, -1)


def test_every_weight_reaches_its_term():
    parts = reward_parts(SOLUTION, KL, alpha=0.1, alpha_kl=0.2, mean_coef=2, kl_coef=1, format_penalty=0)
    assert parts.r_ss == pytest.approx(2 * -1 + 0.1 * -3)
    assert parts.r_kl == pytest.approx(2 * 0.5 + 0.2 * 2)


def test_without_a_teacher_the_reward_is_r_ss_and_the_penalty():
    parts = reward_parts(SOLUTION, None, alpha=0.01, kl_coef=3, format_penalty=-1)
    assert parts.reward == pytest.approx(-2.03)
    assert parts.r_kl is parts.explanation_kl_mean is parts.explanation_kl_max is None


def test_an_explanation_without_tokens_costs_nothing():
    assert reward_parts(SOLUTION, torch.zeros(0), alpha=0.01, kl_coef=3, format_penalty=0).r_kl == 0


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_nan_and_infinity_are_errors_and_never_penalties(bad):
    with pytest.raises(ScoringError, match="NaN or infinity"):
        reward_parts(torch.tensor([0.0, bad]), KL, alpha=0.01, kl_coef=3, format_penalty=0)
    with pytest.raises(ScoringError, match="NaN or infinity"):
        reward_parts(SOLUTION, torch.tensor([0.0, bad]), alpha=0.01, kl_coef=3, format_penalty=0)


def test_a_solution_without_tokens_is_an_error():
    with pytest.raises(ScoringError, match="no token of the solution"):
        reward_parts(torch.zeros(0), KL, alpha=0.01, kl_coef=3, format_penalty=0)


def test_one_sample_estimates_by_hand():
    teacher, student = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0])
    assert divergence(teacher, student, "k1").tolist() == [1, -1]
    assert divergence(teacher, student, "k3").tolist() == pytest.approx([math.exp(-1) - 1 + 1, math.exp(1) - 1 - 1])


def test_one_sample_estimates_are_unbiased():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.2, 0.3])
    exact = (p * (p / q).log()).sum()
    for estimator in ("k1", "k3"):
        assert (p * divergence(p.log(), q.log(), estimator)).sum() == pytest.approx(exact.item(), abs=1e-6)


def test_sums_over_stretches():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    assert stretch_sums(values, [range(0, 2), range(2, 3), range(3, 5)]).tolist() == [3, 4, 24]


def test_divergence_between_tokenizers_by_hand():
    teacher = Side([1, 2, 3], [0, 2, 3, 5], torch.tensor([-1.0, -1.0, -2.0]))  # ab|c|de
    student = Side([7, 8], [0, 3, 5], torch.tensor([-5.0, -1.0]))  # abc|de
    kl, tokens = explanation_divergence(teacher, student, "k1", same=False)
    assert kl.tolist() == [-2 - -5, -2 - -1]
    assert tokens == 2


def test_divergence_over_stretches_is_token_wise_where_the_tokenizers_are_the_same():
    ids, boundaries = [4, 5, 6, 7, 8], [0, 1, 2, 4, 4, 5]  # the third and fourth are bytes of one character
    teacher, student = torch.tensor([-1.0, -2, -3, -4, -5]), torch.tensor([-2.0, -2, -5, -1, -5])
    same = explanation_divergence(Side(ids, boundaries, teacher), Side(ids, boundaries, student), "k1", same=True)
    assert same[0].tolist() == [1, 0, 2, -3, 0]
    longer = Side([3, *ids], [-1, *boundaries], torch.cat([torch.zeros(1), teacher]))
    kl, tokens = explanation_divergence(longer, Side(ids, boundaries, student), "k1", same=True)
    assert (kl.tolist(), tokens) == ([1, 0, 2, -3, 0], 5)  # a first token that merged on one side only is left out


def test_several_students_give_the_mean_or_the_smallest():
    low = RewardParts(reward=-3.0, r_ss=-3.0, solution_log_prob_mean=-3.0, format_penalty=0.0, solution_tokens=2)
    high = RewardParts(reward=-1.0, r_ss=-1.0, solution_log_prob_mean=-1.0, format_penalty=0.0, solution_tokens=3)
    assert combine([high, low], "min") is low
    mean = combine([high, low], "mean")
    assert (mean.reward, mean.r_ss, mean.r_kl, mean.solution_tokens) == (-2, -2, None, None)
