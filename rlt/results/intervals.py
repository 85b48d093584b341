"""Statistics of sampled evaluations: means, standard errors and intervals. No dependencies.

Questions are the units: samples of one question are not independent, so every standard error is clustered by question.
Intervals of a rate are exact binomial ones (Clopper and Pearson) at the effective number of trials that the clustered
error implies (Korn and Graubard 1998). Their coverage is at least the stated rate, also with few questions and for rates
near 0 and 1, unlike mean +- 2 errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

LEVEL = 0.95
INTERVAL = (
    "95 % exact binomial interval (Korn and Graubard: effective sample size from the error clustered by question)"
)
DIFFERENCE_INTERVAL = "95 % t interval of the paired difference by question, with Bonett and Price's adjustment"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A rate or a difference with its standard error (None for a single question) and interval `[low, high]`."""

    mean: float
    standard_error: float | None
    low: float
    high: float
    questions: int
    samples: int


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean of `count` values with the half-width of its 95 % interval, None for a single value."""

    mean: float
    half: float | None
    count: int

    @property
    def bounds(self) -> tuple[float, float] | None:
        """`(low, high)` of the interval; None for a single value."""
        return None if self.half is None else (self.mean - self.half, self.mean + self.half)

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval; False without an interval."""
        return self.half is not None and abs(self.mean) > self.half


def pass_at_1(correct: Sequence[Sequence[bool]]) -> Estimate:
    """Mean over questions of the share of correct samples; `correct[question][sample]`, at least one sample each.

    The standard error is that of a mean of question means. Raises ValueError without questions.
    """
    means = [sum(row) / len(row) for row in correct]
    mean, error = _mean_and_error(means)
    samples = round(sum(map(len, correct)) / len(correct))
    low, high = _rate_interval(mean, error, len(means), samples)
    return Estimate(mean, error, low, high, len(means), samples)


def paired_difference(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], level: float = LEVEL
) -> Estimate:
    """pass@1 of `second` minus that of `first` on the same questions in the same order, with its two-sided interval.

    The interval includes two pseudo-questions, one won by each side (by 1/sqrt(samples)): the adjustment of Bonett and
    Price (2012) for paired proportions, without which the interval is far too short if few questions differ.
    """
    differences = [sum(b) / len(b) - sum(a) / len(a) for a, b in zip(first, second, strict=True)]
    mean, error = _mean_and_error(differences)
    samples = min(map(len, [*first, *second]))
    weight = 1 / math.sqrt(samples)
    padded = [*differences, weight, -weight]
    centre, spread = _mean_and_error(padded)
    assert spread is not None
    reach = student_t(level, len(differences) + 1) * spread
    return Estimate(mean, error, max(-1.0, centre - reach), min(1.0, centre + reach), len(differences), samples)


def pass_at_k(correct: Sequence[Sequence[bool]], k: int) -> float:
    """Unbiased estimate of the probability that one of `k` samples is correct (Chen et al. 2021, equation 1), averaged
    over questions.

    Raises ValueError if a question has fewer than `k` samples.
    """
    if any(len(row) < k for row in correct):
        raise ValueError(f"pass@{k} needs {k} samples of each question")
    return _mean([1 - math.comb(len(row) - sum(row), k) / math.comb(len(row), k) for row in correct])


def majority_at_k(
    correct: Sequence[Sequence[bool]],
    extracted: Sequence[Sequence[str | None]],
    k: int,
    same: Callable[[str, str], bool],
) -> float:
    """Share of questions whose most frequent answer is correct, over disjoint groups of `k` samples in order.

    Correct samples vote together, wrong ones if `same` holds; unreadable answers do not vote; ties share the question.
    Samples beyond the last full group are ignored.
    """
    shares = []
    for right, answers in zip(correct, extracted, strict=True):
        groups = range(0, len(right) - k + 1, k)
        shares.append(_mean([_majority(right[i : i + k], answers[i : i + k], same) for i in groups]))
    return _mean(shares)


def _majority(right: Sequence[bool], answers: Sequence[str | None], same: Callable[[str, str], bool]) -> float:
    votes_right = sum(right)
    wrong: list[tuple[str, int]] = []
    for is_right, answer in zip(right, answers, strict=True):
        if is_right or answer is None:
            continue
        place = next((i for i, (other, _) in enumerate(wrong) if same(answer, other)), None)
        if place is None:
            wrong.append((answer, 1))
        else:
            wrong[place] = (wrong[place][0], wrong[place][1] + 1)
    most = max([votes_right, *(count for _, count in wrong)])
    tied = sum(count == most for _, count in wrong)
    return 1 / (1 + tied) if votes_right == most and most > 0 else 0.0


def mean_with_interval(values: Sequence[float]) -> MeanEstimate:
    """The mean of independent `values` with its 95 % t interval: mean +- `half`, where `half` is None for one value."""
    mean, error = _mean_and_error(values)
    half = None if error is None else student_t(LEVEL, len(values) - 1) * error
    return MeanEstimate(mean, half, len(values))


def spearman(values: Sequence[float]) -> float:
    """Spearman's rank correlation of `values` with their position (1: strictly rising); ties share their rank."""
    ranks = [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values
    ]
    middle = (len(values) - 1) / 2
    top = sum((i - middle) * (rank - middle) for i, rank in enumerate(ranks))
    bottom = math.sqrt(sum((i - middle) ** 2 for i in range(len(ranks))) * sum((r - middle) ** 2 for r in ranks))
    return top / bottom if bottom else 0.0


def rank_interval(correlation: float, count: int) -> tuple[float, float]:
    """95 % interval of a rank correlation of `count` pairs: Fisher's z with the variance of Bonett and Wright (2000),
    (1 + r^2 / 2) / (count - 3). Raises ValueError for fewer than 4 pairs.
    """
    if count < 4:
        raise ValueError(f"{count} pairs are too few for an interval of their correlation")
    middle = math.atanh(max(-1 + 1e-9, min(1 - 1e-9, correlation)))
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt((1 + correlation**2 / 2) / (count - 3))
    return math.tanh(middle - half), math.tanh(middle + half)


# -- intervals ---------------------------------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("no questions")
    return math.fsum(values) / len(values)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    mean = _mean(values)
    if len(values) == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _rate_interval(rate: float, error: float | None, questions: int, samples: int) -> tuple[float, float]:
    trials = float(questions)
    if samples > 1 and error and 0 < rate < 1:
        # Korn and Graubard (1998): the trials that a simple sample of the same error would have, fewer as the error is
        # itself an estimate; never fewer than questions, since answers of one question agree at most wholly.
        shrink = (NormalDist().inv_cdf((1 + LEVEL) / 2) / student_t(LEVEL, questions - 1)) ** 2
        trials = min(max(rate * (1 - rate) / error**2 * shrink, questions), questions * samples)
    return exact_interval(rate * trials, trials)


@lru_cache(maxsize=4096)
def exact_interval(successes: float, trials: float) -> tuple[float, float]:
    """Clopper and Pearson's interval: at its ends, at least (at most) this many successes have a probability of 2.5 %.

    `successes` and `trials` may be fractional.
    """
    tail = (1 - LEVEL) / 2
    low = 0.0 if successes <= 0 else _root(lambda rate: incomplete_beta(successes, trials - successes + 1, rate) - tail)
    high = 1.0
    if successes < trials:
        high = _root(lambda rate: incomplete_beta(successes + 1, trials - successes, rate) - (1 - tail))
    return low, high


def _root(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(52):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b); 1 for a = 0 and 0 for b = 0 (limits), 0 <= x <= 1.

    By its continued fraction (DLMF 8.17.22), evaluated with Lentz's method.
    """
    if a <= 0 or x >= 1:
        return 1.0
    if b <= 0 or x <= 0:
        return 0.0
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    ) / a  # fmt: skip
    tiny, fraction, c, d = 1e-300, 1.0, 1.0, 0.0
    for step in range(500):
        half = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = half * (b - half) * x / ((a + step - 1) * (a + step))
        else:
            term = -(a + half) * (a + b + half) * x / ((a + step - 1) * (a + step))
        d = 1 / (1 + term * d or tiny)
        c = 1 + term / c or tiny
        fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * (fraction - 1)


@lru_cache(maxsize=256)
def student_t(level: float, degrees: int) -> float:
    """The two-sided quantile of Student's t: `student_t(0.95, 29)` is 2.045. `degrees` at least 1."""
    tail = 1 - level

    def inside(share: float) -> float:
        # P(|T| > t) = I_x(degrees / 2, 1 / 2) with x = degrees / (degrees + t^2).
        return incomplete_beta(degrees / 2, 0.5, share) - tail

    share = _root(inside)
    return math.sqrt(degrees * (1 - share) / share)


# -- in words ----------------------------------------------------------------------------------------------------------


def in_words(difference: Estimate, first: str, second: str) -> str:
    """One sentence: the difference in points, its interval, and whether it is within noise."""
    points = difference.mean * 100
    interval = f"95 % interval {difference.low * 100:+.1f} to {difference.high * 100:+.1f}"
    basis = f"{difference.questions} questions x {difference.samples} sample(s)"
    if difference.low <= 0 <= difference.high:
        return f"{second} - {first}: {points:+.1f} points ({interval}; {basis}): within noise."
    better, worse = (second, first) if points > 0 else (first, second)
    verdict = f"{better} is better than {worse}, beyond noise."
    return f"{second} - {first}: {points:+.1f} points ({interval}; {basis}): {verdict}"
