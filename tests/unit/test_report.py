"""The report's arithmetic by hand, and text that a model wrote escaped."""

import json
import sys

import pytest

from rlt.config import ReportConfig
from rlt.pipeline import run_recipe
from rlt.recipe import Step, build_recipe
from rlt.rows import write_rows
from rlt.runs import begin
from rlt.stages.report import _solved, headline, mean_and_interval, spearman
from rlt.tables import text_table
from rlt.tasks import load_task


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


def said(ours, other, key="solve_rate_t07"):
    """The headline on two arms with these rates of seeds 0, 1, ..."""
    arms = {
        name: {"seeds": [{"seed": seed, key: rate} for seed, rate in enumerate(rates)]}
        for name, rates in (("rlt", ours), ("warmup", other))
    }
    (sentence,) = headline(ReportConfig(output="r", headline=["rlt", "warmup"]), {"arms": arms})
    return sentence


@pytest.mark.parametrize(
    ("ours", "other", "sentence"),
    [
        # differences 0.3 and 0.4: mean 0.35, standard error 0.05, t(1 df) = 12.706
        ([0.5, 0.6], [0.2, 0.2], "0.35 better at T = 0.7 (95 % interval over seeds [-0.29, 0.99], 0 included; ahead in 2 of 2"),
        ([0.5, 0.7], [0.2, 0.4], "0.30 better at T = 0.7 (95 % interval over seeds [0.30, 0.30]; ahead in 2 of 2 seeds)."),
        ([0.2, 0.2], [0.4, 0.4], "0.20 WORSE at T = 0.7 (95 % interval over seeds [-0.20, -0.20]; ahead in 0 of 2 seeds)."),
        ([0.5, 0.5], [0.5, 0.5], "equal at T = 0.7 (95 % interval over seeds [0.00, 0.00], 0 included; ahead in 0 of 2"),
        ([0.504], [0.5], "equal at T = 0.7 (one seed, so no interval; ahead in 1 of 1 seeds)."),
    ],
)  # fmt: skip
def test_who_won_by_how_much_and_how_surely(ours, other, sentence):
    assert said(ours, other).startswith(f"rlt against warmup: {sentence}")


def test_an_arm_that_beats_ours_is_named_and_one_without_the_sampled_rate_is_not_compared():
    arms = {"rlt": [0.5, 0.6], "warmup": [0.2, 0.2], "greedy": [0.7, 0.8]}
    results = {
        "arms": {
            arm: {"seeds": [{"seed": i, "solve_rate_t07": rate} for i, rate in enumerate(rates)]}
            for arm, rates in arms.items()
        }
    }
    results["arms"]["other"] = {"seeds": [{"seed": 0, "solve_rate_greedy": 1.0}]}
    (told,) = headline(ReportConfig(output="r", headline=["rlt", "warmup"]), results)
    assert [line.partition(" at ")[0] for line in told.splitlines()] == [
        "rlt against warmup: 0.35 better",
        "rlt against greedy: 0.20 WORSE",
    ]


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


# -- a run, its steps' files written by hand ---------------------------------------------------------------------------


QUESTION = load_task("arithmetic").generate(1, 0, {})[0].question
EVIL = "<script>alert(1)</script> & <b>"


@pytest.fixture
def run(tmp_path):
    """A finished run of a teacher before and after RL, without a teacher in the scoring; it explains with markup."""
    recipe = build_recipe(
        {
            "name": "r", "folder": str(tmp_path), "seeds": [0],
            "explain": {"stage": "collect", "each": ["before", "after"], "model": "m", "data": "d"},
            "score": {"each": "@explain", "student": "s", "data": "@explain/{each}"},
            "report": {"explained": "explain", "scored": "score", "teachers": ["before", "after"], "task": "arithmetic"},
        },
        "r.yaml",
    )  # fmt: skip
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "recipe.yaml").write_text(recipe.dump())
    for step in recipe.steps[:4]:
        folder = begin(step.stage, step.config)
        if step.stage == "collect":
            row = {"question": QUESTION, "solution": EVIL, "explanation": EVIL, "closed": True}
            write_rows(step.config.output / "rows.jsonl", [row])
        else:
            reward = 1.0 if step.name == "score/after" else -2.0
            row = {"error": None, "reward": reward, "r_ss": reward, "r_kl": None, "explanation_kl_max": None}
            write_rows(step.config.output, [row, {"error": "too long"}])
        folder.finish({"loss": EVIL})
    return recipe


def test_text_that_a_model_wrote_is_escaped(run, tmp_path):
    assert run_recipe(run) == 0
    page = (tmp_path / "r" / "report.html").read_text()
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;") == 3  # solution, before, after
    assert "<script" not in page
    assert "<b>" not in page


def test_rewards_without_a_teacher_are_reported_without_their_kl(run, tmp_path):
    run_recipe(run)
    (row,) = json.loads((tmp_path / "r" / "results.json").read_text())["teacher"]["seeds"]
    assert row == {
        "seed": 0, "reward_before": -2.0, "reward_after": 1.0, "r_ss_before": -2.0, "r_ss_after": 1.0,
        "unclosed_rate_before": 0.0, "unclosed_rate_after": 0.0, "leak_rate_before": 0.0, "leak_rate_after": 0.0,
        "wrong_value_before": 0.0, "wrong_value_after": 0.0, "every_step_right_before": 0.0,
        "every_step_right_after": 0.0, "fully_correct_before": 0.0, "fully_correct_after": 0.0,
    }  # fmt: skip


def test_missing_pictures_are_told_with_the_install_line(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run_recipe(run)
    assert "no pictures, because matplotlib is not installed: pip install 'rlt[report]'" in capsys.readouterr().out
