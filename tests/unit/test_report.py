"""The report's arithmetic by hand, and text that a model wrote escaped."""

import pytest

from rlt.config import ReportConfig
from rlt.pipeline import run_recipe
from rlt.recipe import Step, build_recipe
from rlt.stages.report import _solved, headline, mean_and_interval, spearman, text_table


def test_spearman_by_hand():
    assert spearman([0.1, 0.2, 0.3, 0.9]) == pytest.approx(1.0)
    assert spearman([0.9, 0.3, 0.2, 0.1]) == pytest.approx(-1.0)
    assert spearman([0.1, 0.3, 0.2, 0.4]) == pytest.approx(0.8)
    assert spearman([0.5, 0.5, 0.5]) == 0.0


def test_interval_over_three_seeds_is_students_t():
    # mean 0.5, standard deviation 0.1, t(2 df) = 4.303: half-width 0.2484
    assert mean_and_interval([0.4, 0.5, 0.6]) == (pytest.approx(0.5), "[0.25, 0.75]")


def test_one_seed_has_no_interval():
    assert mean_and_interval([0.4]) == (0.4, "one seed")


def test_an_arm_that_beats_ours_is_named():
    arms = {"rlt": [0.5, 0.6], "warmup": [0.2, 0.2], "greedy": [0.7, 0.8]}
    results = {
        "arms": {
            arm: {"seeds": [{"seed": i, "solve_rate_t07": rate} for i, rate in enumerate(rates)]}
            for arm, rates in arms.items()
        }
    }
    config = ReportConfig(output="r", headline=["rlt", "warmup"])
    (said,) = headline(config, results)
    assert "rlt against warmup: 0.35 better at T = 0.7" in said
    assert "rlt against greedy: 0.20 WORSE at T = 0.7" in said
    assert "ahead in 0 of 2 seeds" in said


def test_columns_are_aligned():
    assert text_table(["a", "bb"], [["ccc", "d"]]) == "a    bb\n-------\nccc  d"


def test_a_step_of_another_stage_that_has_an_arms_name_is_no_result(tmp_path):
    step = Step("warmup", "warmup", 0, ReportConfig(output=tmp_path), ())
    assert _solved({(0, "warmup"): (step, {"metrics": {"loss": 0.1}})}, 0, "warmup") is None


def test_a_recipe_may_have_several_reports(tmp_path, capsys):
    recipe = {
        "name": "r", "folder": str(tmp_path), "p": {"stage": "problems", "task": "arithmetic", "count": 2},
        "report": {}, "again": {"stage": "report", "suffix": "-again", "title": "The other table"},
    }  # fmt: skip
    run_recipe(build_recipe(recipe, "test"))
    assert {"results.json", "report.html", "results-again.json", "report-again.html"} <= {
        path.name for path in (tmp_path / "r").iterdir()
    }
    assert "The other table" in capsys.readouterr().out
