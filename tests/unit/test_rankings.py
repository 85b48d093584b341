"""Rankings of explanations: what students of their bands solve, in numbers, words and the figure."""

from dataclasses import replace

import pytest

from rlt.config import ReportConfig
from rlt.recipe import build_recipe
from rlt.results.dots import arms_panel, rankings_panel, write_figure
from rlt.results.rankings import Ranking, rankings_of
from rlt.results.students import Arm, ArmSeed, Solved, solve_rate
from rlt.results.summary import collect_results
from rlt.results.words import terminal_report


def solved(rate: float | None, verdicts=None) -> Solved | None:
    return None if rate is None else Solved(rate, 0.01, None, 4, 1, 0.7, 1.0, verdicts)


def test_a_ranking_has_the_rates_of_its_bands_and_their_rank_correlation() -> None:
    # Seed 0 rises throughout (Spearman 1); in seed 1 the two lower bands change places (1 - 6 * 2 / 60 = 0.8).
    rates = {(0, "a"): 0.1, (0, "b"): 0.2, (0, "c"): 0.4, (0, "d"): 0.8}
    rates |= {(1, "a"): 0.3, (1, "b"): 0.2, (1, "c"): 0.4, (1, "d"): 0.6, (2, "a"): 0.5}
    config = ReportConfig(output="r", rankings={"reward": ["a", "b", "c", "d"]})
    (ranking,) = rankings_of(config, [0, 1, 2], lambda seed, arm: solved(rates.get((seed, arm))))
    assert list(ranking.rates) == [0, 1]
    assert [solve_rate(band)[0] for band in ranking.bands] == pytest.approx([0.2, 0.2, 0.4, 0.7])
    assert ranking.spearman.mean == pytest.approx(0.9)
    assert ranking.gain.estimate.mean == pytest.approx(0.5)


def test_a_ranking_with_students_of_its_extreme_bands_alone_is_shown_next_to_one_with_all() -> None:
    rates = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "e": 0.45, "f": 0.25}
    config = ReportConfig(output="r", rankings={"reward": ["a", "b", "c", "d"], "length": ["e", "f"]})
    found = rankings_of(config, [0], lambda seed, arm: solved(rates[arm]))
    results = collect_results(config, build_recipe({"name": "r", "report": {}}, "r.yaml"))
    text = terminal_report(config, replace(results, rankings=found))
    lines = [line.split() for line in text.splitlines()]
    assert ["reward", "1", "0.100", "0.200", "0.300", "0.400", "0.30", "1.00"] in lines
    assert ["length", "1", "0.450", "-", "-", "0.250", "-0.20", "-1.00"] in lines
    assert "from the largest difference to the smallest: reward (+0.30), length (-0.20)." in " ".join(text.split())


def test_a_ranking_with_a_single_seed_beside_others_with_two_has_no_interval() -> None:
    several = Ranking("reward", {0: [solved(0.1), solved(0.4)], 1: [solved(0.2), solved(0.4)]})
    alone = Ranking("length", {0: [solved(0.1), solved(0.2)]})
    results = collect_results(ReportConfig(output="r"), build_recipe({"name": "r", "report": {}}, "r.yaml"))
    said = " ".join(terminal_report(ReportConfig(output="r"), replace(results, rankings=(several, alone))).split())
    # Differences .3 and .2: .25 +- 12.706 * .05.
    assert "over 2 seeds: reward [-0.39, 0.89], length none, one seed." in said


def verdicts_of(*right: bool):
    return {f"q{number}": [one] for number, one in enumerate(right)}


def test_one_seed_has_the_interval_over_its_problems_paired() -> None:
    # The highest band's student is right in q0, q1 and q2, the lowest one's in q0: a difference of 2 of 4.
    lowest, highest = (
        solved(0.25, verdicts_of(True, False, False, False)),
        solved(0.75, verdicts_of(True, True, True, False)),
    )
    gain = Ranking("reward", {0: [lowest, highest]}).gain
    assert (gain.ours, gain.other, gain.estimate.mean, gain.ahead) == ("highest", "lowest", 0.5, 1)
    # Bonett and Price: the differences 0 1 1 0 and 1 -1 have mean 1/3 and error sqrt((4 - 6/9) / 5 / 6) = 1/3; t(5) = 2.571.
    assert gain.bounds == pytest.approx((1 / 3 - 2.571 / 3, 1.0), abs=1e-3)


def test_the_figure_has_a_row_per_ranking_and_a_point_for_each_extreme_band(tmp_path) -> None:
    rankings = [Ranking("reward", {0: [solved(0.1), solved(0.4)], 1: [solved(0.3), solved(0.4)]})]
    (row,) = rankings_panel(rankings).rows
    assert (row.label, [[one.rate for one in of] for of in row.students]) == ("reward", [[0.1, 0.3], [0.4, 0.4]])
    drawn = write_figure(tmp_path / "students.svg", [], rankings).read_text()
    # The lowest band's interval is 0.2 +- 12.706 * 0.1, cut to [0, 1]: the scale ends at 1, 470 units from its start at 190.
    assert 'd="M190.0 43H660.0"' in drawn
    assert 'cx="284.0" cy="43" r="3.5" fill="white"' in drawn
    assert 'cx="378.0" cy="51" r="3.5" fill="#174a7c"' in drawn
    assert "over seeds" in drawn


def test_the_figure_of_arms_has_greedy_students_hollow_above_sampled_ones(tmp_path) -> None:
    arms = [Arm("a&b", None, (ArmSeed(0, solved(0.2), solved(0.5)),)), Arm("base", None, (ArmSeed(0, solved(0.1)),))]
    assert [len(row.students) for row in arms_panel(arms).rows] == [2, 1]
    drawn = write_figure(tmp_path / "students.svg", arms, []).read_text()
    assert "a&amp;b" in drawn
    # The scale ends at the largest value, 0.5; nothing has an interval.
    assert 'cx="660.0" cy="43" r="3.5" fill="white"' in drawn
    assert 'cx="378.0" cy="51" r="3.5" fill="#174a7c"' in drawn
    assert 'cx="284.0" cy="73" r="3.5" fill="#174a7c"' in drawn
    assert "over problems; one seed" in drawn
