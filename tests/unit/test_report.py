"""The report's arithmetic by hand, and text that a model wrote escaped."""

import json
from dataclasses import replace

import pytest

from rlt.config import ReportConfig
from rlt.data.rows import write_rows
from rlt.outputs import begin
from rlt.pipeline import run_recipe
from rlt.recipe import build_recipe
from rlt.results.intervals import MeanEstimate, mean_with_interval, spearman
from rlt.results.students import Arm, ArmSeed, Solved, differences
from rlt.results.summary import BandSeed, Results, collect_results
from rlt.results.tables import Table, said_once, text_table
from rlt.results.words import sentences, terminal_report
from rlt.tasks import load_task


def test_spearman_by_hand():
    assert spearman([0.1, 0.2, 0.3, 0.9]) == pytest.approx(1.0)
    assert spearman([0.9, 0.3, 0.2, 0.1]) == pytest.approx(-1.0)
    assert spearman([0.1, 0.3, 0.2, 0.4]) == pytest.approx(0.8)
    assert spearman([0.5, 0.5, 0.5]) == 0.0


def test_interval_over_three_seeds_is_students_t():
    # mean 0.5, standard deviation 0.1, t(2 df) = 4.303: half-width 0.2484
    estimate = mean_with_interval([0.4, 0.5, 0.6])
    assert (estimate.mean, estimate.half) == (pytest.approx(0.5), pytest.approx(0.2484, abs=1e-4))


def test_one_value_has_no_interval():
    assert mean_with_interval([0.4]) == MeanEstimate(0.4, None, 1)
    assert not mean_with_interval([0.4]).excludes_zero


# -- arms --------------------------------------------------------------------------------------------------------------

CONFIG = ReportConfig(output="r", headline=["rlt", "warmup"])


def solved(rate, temperature=0.7, interval=None):
    return Solved(rate, 0.01, interval, 600, 4, temperature, 1.0)


def arm(name, rates, temperature=0.7, description=None):
    return Arm(name, description, tuple(ArmSeed(i, solved(rate, temperature)) for i, rate in enumerate(rates)))


def results(arms=(), **more):
    values = {
        "name": "r", "description": "", "arms": tuple(arms), "teacher": (), "teacher_decoding": None, "bands": (),
        "scores": (), "seconds": {}, "incomplete": (), "versions": {},
    }  # fmt: skip
    return Results(**(values | more))


@pytest.mark.parametrize(
    ("ours", "other", "result", "certainty"),
    [
        # differences 0.3 and 0.4: mean 0.35, standard error 0.05, t(1 df) = 12.706
        ([0.5, 0.6], [0.2, 0.2], "0.35 more than warmup", "[-0.29, 0.99] and includes 0, so the result is inconclusive; rlt"),
        ([0.5, 0.7], [0.2, 0.4], "0.30 more than warmup", "[0.30, 0.30] and excludes 0; rlt is ahead in 2 of 2."),
        ([0.2, 0.2], [0.4, 0.4], "0.20 LESS than warmup", "[-0.20, -0.20] and excludes 0; rlt is ahead in 0 of 2."),
        ([0.5, 0.5], [0.5, 0.5], "as many as warmup", "includes 0, so the result is inconclusive; rlt is ahead in 0"),
        ([0.504], [0.5], "as many as warmup", "one seed, so there is no interval over seeds"),
    ],
)  # fmt: skip
def test_three_sentences_say_what_won_by_how_much_and_how_surely(ours, other, result, certainty):
    said = sentences(CONFIG, results([arm("rlt", ours), arm("warmup", other)]))
    assert [one.partition(":")[0] for one in said] == ["Compared", "Result", "Certainty"]
    assert "on 600 held-out problems, 4 samples each at temperature 0.7, top-p 1, " in said[0]
    assert result in said[1]
    assert certainty in said[2]


def test_an_arm_that_beats_ours_is_named_and_one_decoded_in_another_way_is_not_compared():
    arms = [arm("rlt", [0.5, 0.6]), arm("warmup", [0.2, 0.2]), arm("best", [0.7, 0.8]), arm("other", [1.0], 0.0)]
    said = sentences(CONFIG, results(arms))
    assert "(rlt, warmup, best)" in said[0]
    assert said[1].endswith("warmup (0.20); best (0.75) solved more than rlt.")


def test_without_a_headline_the_best_two_are_compared_and_that_is_said():
    arms = [arm("a", [0.1, 0.1]), arm("b", [0.6, 0.6]), arm("c", [0.5, 0.4])]
    said = sentences(ReportConfig(output="r"), results(arms))
    assert said[1] == "Result: b solved 0.60, 0.15 more than c (0.45)."
    assert said[2].endswith("the two arms were picked after seeing the results.")


def test_a_solve_rate_of_one_seed_has_the_interval_over_problems():
    one = Arm("rlt", None, (ArmSeed(0, solved(0.5, interval=(0.46, 0.54))),))
    text = terminal_report(CONFIG, results([one]))
    assert "0.500 [0.46, 0.54]" in text
    assert "[95 % interval over problems]" in " ".join(text.split())


@pytest.mark.parametrize(("ours", "verdict"), [(14, "excludes 0"), (5, "includes 0, so the result is inconclusive")])
def test_with_one_seed_the_difference_has_the_interval_over_its_questions(ours, verdict):
    # 20 questions, one sample each: the other student solves the first four, ours the first 14 or 5.
    def student(name, right):
        verdicts = {(f"{i}", ""): [i < right] for i in range(20)}
        return Arm(name, None, (ArmSeed(0, replace(solved(right / 20), verdicts=verdicts)),))

    arms = [student("rlt", ours), student("warmup", 4)]
    low, high = differences(arms, arms[0])[0].bounds
    assert low < (ours - 4) / 20 < high
    certain = sentences(CONFIG, results(arms))[2]
    assert (
        f"over questions of this one seed is [{low:.2f}, {high:.2f}] and {verdict}; other seeds may differ." in certain
    )
    text = " ".join(terminal_report(CONFIG, results(arms)).split())
    assert f"[{low:.2f}, {high:.2f}] 1 of 1" in text
    assert "95 % interval: over questions, paired" in text


def test_students_that_answered_no_common_question_have_no_interval():
    arms = [arm("rlt", [0.6]), arm("warmup", [0.5])]
    assert differences(arms, arms[0])[0].bounds is None


def test_bands_are_called_rising_only_in_the_seeds_where_each_solves_more_than_the_one_below():
    bands = tuple(
        BandSeed(seed, tuple(map(solved, rates))) for seed, rates in enumerate([(0.1, 0.2, 0.3), (0.2, 0.1, 0.3)])
    )
    text = terminal_report(CONFIG, results(bands=bands))
    assert "as in 1 of 2 seeds" in " ".join(text.split())


def test_nothing_is_wider_than_100_columns_and_every_seed_is_shown():
    arms = [arm(f"an_arm_with_a_long_name_{i}", [0.1 * i] * 15, 0.7, "long words " * 12) for i in range(3)]
    config = ReportConfig(output="r", note="words " * 60)
    text = terminal_report(config, results(arms, seconds={f"step-{i}": 10.0 for i in range(40)}))
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"seed {seed}" in text for seed in range(15))


def test_arms_may_be_a_list_or_have_descriptions():
    assert ReportConfig(output="r", arms="a, b").arms == {"a": None, "b": None}
    assert ReportConfig(output="r", arms=["a"]).arms == {"a": None}
    assert ReportConfig(output="r", arms={"a": "what it is"}).arms == {"a": "what it is"}


def test_columns_are_aligned():
    assert text_table(["a", "bb"], [["ccc", "d"]]) == "a    bb\n-------\nccc  d"


def test_a_cell_is_wrapped_at_spaces_where_the_table_is_too_wide():
    assert text_table(["a", "b"], [["x", "one two three"]], width=12) == "a  b\n------------\nx  one two\n   three"


def test_a_step_of_another_stage_that_has_an_arms_name_is_no_result(tmp_path):
    values = {"name": "r", "folder": str(tmp_path), "warmup": {"model": "m", "data": "d"}, "report": {}}
    recipe = build_recipe(values, "r.yaml")
    begin("warmup", recipe.steps[0].config).finish({"loss": 0.1})
    assert collect_results(ReportConfig(output=tmp_path, arms=["warmup"]), recipe).arms == ()


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


def test_text_that_a_model_wrote_is_data_of_the_page_and_never_markup(run, tmp_path):
    assert run_recipe(run) == 0
    page = (tmp_path / "r" / "report.html").read_text()
    assert page.count("<script") == page.count("</script") == 2
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    before, *_ = (row for row in data["rows"] if row["source"] == 0)
    assert before["explanation"] == before["solution"] == EVIL
    assert [data["sources"][i]["name"] for i in data["side_by_side"]] == ["score/before, seed 0", "score/after, seed 0"]


def test_rewards_without_a_teacher_are_reported_without_their_kl(run, tmp_path):
    run_recipe(run)
    (row,) = json.loads((tmp_path / "r" / "results.json").read_text())["teacher"]["seeds"]
    assert row == {
        "seed": 0, "reward_before": -2.0, "reward_after": 1.0, "r_ss_before": -2.0, "r_ss_after": 1.0,
        "unclosed_rate_before": 0.0, "unclosed_rate_after": 0.0, "leak_rate_before": 0.0, "leak_rate_after": 0.0,
        "wrong_value_before": 0.0, "wrong_value_after": 0.0, "every_step_right_before": 0.0,
        "every_step_right_after": 0.0, "fully_correct_before": 0.0, "fully_correct_after": 0.0,
    }  # fmt: skip


# -- scored variants ---------------------------------------------------------------------------------------------------


@pytest.fixture
def scored(tmp_path):
    """A run of two variants of a score step over three rows, one of which has an error in the second variant."""
    values = {
        "name": "r", "folder": str(tmp_path), "report": {},
        "score": {"student": "s", "data": "d", "placebos": True, "each": {"human": {}, "nothing": {"control": "empty"}}},
    }  # fmt: skip
    recipe = build_recipe(values, "r.yaml")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "recipe.yaml").write_text(recipe.dump())
    rewards = {"score/human": [-1.0, -2.0, -3.0], "score/nothing": [-4.0, -6.0, None]}
    for step in recipe.steps[:2]:
        folder = begin("score", step.config)
        rows = [
            {"id": str(i), "error": None if reward is not None else "too long", "reward": reward, "r_ss": reward,
             "r_kl": None, "lift_over_empty": 0.5, "lift_over_shuffled": None}
            for i, reward in enumerate(rewards[step.name])
        ]  # fmt: skip
        write_rows(step.config.output, rows)
        folder.finish({})
    return recipe


def test_rewards_of_variants_are_compared_by_row(scored, tmp_path, capsys):
    assert run_recipe(scored) == 0
    told = capsys.readouterr().out
    # -1, -2, -3: mean -2, half t(2 df) / sqrt(3) = 2.48; differences -3, -4: mean -3.5, half 12.706 * 0.5 = 6.35
    assert "human    3     -2.00 ± 2.48   -2.00 ± 2.48   0.50 ± 0.00" in told
    assert "nothing  2     -5.00 ± 12.71  -5.00 ± 12.71  0.50 ± 0.00" in told
    assert "1 left out because of errors" in told
    assert "Result: human has the highest mean reward (-2.00), nothing the lowest (-5.00)." in told
    assert "from human includes 0 for nothing (-3.50 [-9.85, 2.85])." in " ".join(told.split())
    (row,) = json.loads((tmp_path / "r" / "results.json").read_text())["scores"]
    assert row["variants"]["nothing"]["reward_minus_first"]["count"] == 2


def test_variants_of_other_rows_are_not_paired(scored, capsys):
    path = scored.steps[1].config.output
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_rows(path, [row | {"id": "x" + row["id"]} for row in rows])
    run_recipe(scored)
    assert "is unavailable for nothing, which have different rows" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("named", "shown"), [([], []), (["score-b"], ["score-b"])])
def test_score_steps_are_shown_next_to_students_if_the_report_names_them(tmp_path, named, shown):
    scored = {"stage": "score", "student": "m", "data": "d"}
    evaluated = {"model": "m", "benchmark": "b", "task": "arithmetic"}
    values = {
        "name": "r",
        "folder": str(tmp_path),
        "score-a": scored,
        "score-b": scored,
        "evaluate": evaluated,
        "report": {},
    }
    recipe = build_recipe(values, "r.yaml")
    for step in recipe.steps[:2]:
        folder = begin("score", step.config)
        write_rows(step.config.output, [{"reward": -1.0, "error": None}])
        folder.finish({"rows": 1})
    benchmarks = {"b": {"pass@1": 0.5, "standard_error": None, "questions": 1, "samples": 1}}
    begin("evaluate", recipe.steps[2].config).finish({"benchmarks": benchmarks, "temperature": 0.7})
    found = collect_results(ReportConfig(output=tmp_path, scores=named), recipe)
    assert [one.step for one in found.scores] == shown
    assert len(found.arms) == 1


def test_what_a_column_means_is_said_once():
    first, second = Table("1", [], [], (("a", "x"), ("b", "y"))), Table("2", [], [], (("b", "y"), ("b", "z")))
    assert [table.meanings for table in said_once([first, second])] == [(("a", "x"), ("b", "y")), (("b", "z"),)]
