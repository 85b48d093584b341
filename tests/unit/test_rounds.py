"""Feedback rounds: how a recipe unrolls them, how a round is accepted, when the loop ends, what the report says of them."""

import json
import random
import xml.etree.ElementTree as ElementTree

import pytest

from rlt.config import AcceptConfig, BestConfig, ReportConfig
from rlt.data.rows import read_rows, write_rows
from rlt.errors import ConfigError, ProblemsFound
from rlt.outputs import begin
from rlt.pipeline import run_recipe
from rlt.recipe import build_recipe, load_recipe
from rlt.results.intervals import paired_difference
from rlt.results.rounds import Round, figure, measured, parted
from rlt.results.summary import collect_results
from rlt.results.words import _of_rounds, sentences, terminal_report
from rlt.stages import accept, best

WORK = {"stage": "problems", "task": "arithmetic", "count": 2}
EVALUATE = {"benchmark": "q.jsonl"}
INITIAL = {"distill": {"model": "m", "data": "d"}, "evaluate": {"model": "@round0/distill", **EVALUATE}}
STEPS = {
    "train": {"model": "m", "student": "@round{previous}/distill", "data": "d"},
    "distill": {"model": "m", "data": "d"},
    "evaluate": {"model": "@round{round}/distill", **EVALUATE},
}


def rounds(folder="out", count=2, head=(), **keys):
    values = {"count": count, "initial": INITIAL, "steps": STEPS, **keys}
    return build_recipe({"name": "r", "folder": str(folder), **dict(head), "rounds": values}, "r.yaml")


def step(recipe, name):
    return next(one for one in recipe.steps if one.name == name)


# -- unrolled ----------------------------------------------------------------------------------------------------------


def test_each_round_is_ordinary_steps_and_a_decision_and_best_comes_last():
    assert [one.name for one in rounds().steps] == [
        "round0/distill", "round0/evaluate", "round1/train", "round1/distill", "round1/evaluate", "round1/accept",
        "round2/train", "round2/distill", "round2/evaluate", "round2/accept", "best",
    ]  # fmt: skip


def test_a_round_names_itself_and_the_previous_one():
    recipe = rounds()
    assert step(recipe, "round2/train").config.student == ["out/r/round1/distill"]
    assert step(recipe, "round2/evaluate").config.model == "out/r/round2/distill"


def test_every_step_of_a_later_round_waits_for_the_decisions_before_it():
    third = [one for one in rounds(count=3).steps if one.round == 3]
    assert len(third) == 4
    assert all({"round1/accept", "round2/accept"} <= {*one.after} for one in third)


def test_the_written_recipe_of_a_run_unrolls_to_the_same_steps(tmp_path):
    recipe = rounds(tmp_path, head={"defaults": {"accept": {"patience": 3}}})
    assert step(recipe, "round2/accept").config.patience == 3
    (tmp_path / "recipe.yaml").write_text(recipe.dump())
    assert load_recipe(tmp_path / "recipe.yaml").steps == recipe.steps


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"accept": {"by": "exam"}}, "`rounds.accept.by`: `rounds.initial` has no evaluate step 'exam'"),
        ({"result": "train"}, "`rounds.result`: `rounds.initial` has no step 'train'"),
        ({"steps": {**STEPS, "accept": {}}}, "`rounds.steps.accept`: choose another name"),
        ({"steps": {**STEPS, "exam": {}}}, "`rounds.steps.exam`: unknown stage 'exam'"),
        ({"initial": {**INITIAL, "train": STEPS["train"]}}, "`rounds.initial.train`: round 0 has no previous round"),
        (
            {"steps": {**STEPS, "collect": {"each": ["a"]}}},
            "`rounds.steps.collect`: steps of a round cannot have variants",
        ),
        ({"acept": {}}, "did you mean accept?"),
    ],
)
def test_what_is_wrong_with_rounds_is_said_with_its_key(keys, said):
    with pytest.raises((ConfigError, ProblemsFound)) as error:
        rounds(**keys)
    assert said in str(error.value)


def test_a_step_of_the_recipe_cannot_have_the_name_of_one_that_rounds_make():
    values = {"count": 1, "initial": INITIAL, "steps": STEPS}
    with pytest.raises(ProblemsFound, match="step `best`: `rounds` already creates a step of this name"):
        build_recipe({"name": "r", "best": {"stage": "distill", "model": "m", "data": "d"}, "rounds": values}, "r.yaml")


def test_other_solutions_are_a_placebo_for_every_problem(tmp_path):
    """Each problem keeps its question, and gets a solution and answer that are not its own."""
    recipe = build_recipe({
        "name": "r", "folder": str(tmp_path), "p": {**WORK, "count": 30},
        "wrong": {"stage": "problems", "data": "@p", "solution": "other"},
    }, "r")  # fmt: skip
    run_recipe(recipe)
    right, wrong = ([row for _, row in read_rows(one.config.output)] for one in recipe.steps)
    assert [row["question"] for row in wrong] == [row["question"] for row in right]
    assert all(a["answer"] != b["answer"] and a["solution"] != b["solution"] for a, b in zip(right, wrong, strict=True))


# -- accepted ----------------------------------------------------------------------------------------------------------


def evaluated(folder, correct):
    """What `rlt evaluate` leaves: `correct[question][sample]`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"benchmark": "q", "question_id": str(q), "question_sha256": str(q), "correct": right}
        for q, samples in enumerate(correct) for right in samples
    ]  # fmt: skip
    write_rows(folder / "responses.jsonl", rows)
    sampling = {"samples": len(correct[0]), "seed": 0, "temperature": 0.7, "top_p": 1.0}
    results = {"benchmarks": {"q": {"version": "1"}}, "sampling": sampling, "system_prompt": "format",
               "instruction": "none", "format": "words", "model": "m"}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    metrics = {"seconds": 0.0, "benchmarks": {"q": {"pass@1": 0.5}}}
    state = {"stage": "evaluate", "complete": True, "config": {}, "finished": "f", "metrics": metrics}
    (folder / "stage.json").write_text(json.dumps(state))


def share(right, questions=40):
    return [[q < right] for q in range(questions)]


def decide(folder, solved, looks=4, **keys):
    """The decisions about rounds 1, 2, ... whose students solve so many of 40 questions."""
    for number, right in enumerate(solved):
        evaluated(folder / f"e{number}", share(right))
    decisions = []
    for number in range(1, len(solved)):
        config = AcceptConfig(
            output=folder / f"a{number}", evaluations=[folder / f"e{k}" for k in range(number + 1)], looks=looks,
            decisions=[folder / f"a{k}" for k in range(1, number)], **keys,
        )  # fmt: skip
        decisions.append(accept.run(config).metrics)
    return decisions


def test_a_round_is_compared_with_the_best_so_far_and_two_rejections_in_a_row_end_the_loop(tmp_path):
    found = decide(tmp_path, [10, 30, 20, 29])
    assert [one["accepted"] for one in found] == [True, False, False]
    assert [one["compared_with"] for one in found] == [0, 1, 1]
    assert [one["best"] for one in found] == [1, 1, 1]
    assert [one["ended"] for one in found] == [False, False, True]
    assert found[0]["gain"] == pytest.approx(0.5)


def test_an_acceptance_forgets_the_rejections_before_it(tmp_path):
    found = decide(tmp_path, [10, 8, 30, 29])
    assert [one["rejections"] for one in found] == [1, 0, 1]
    assert not any(one["ended"] for one in found)


def test_more_looks_ask_for_more(tmp_path):
    # 5 of 40 questions won, none lost; padded by one each way: mean 5/42, standard error sqrt(0.1566 / 42) = 0.061.
    (few,) = decide(tmp_path / "few", [10, 15], looks=1)
    (many,) = decide(tmp_path / "many", [10, 15], looks=20)
    assert few["look_error_rate"] == 0.05
    assert many["look_error_rate"] == pytest.approx(0.0025)
    assert few["low"] == pytest.approx(5 / 42 - 1.683 * 0.0611, abs=1e-3)  # t(0.95, 41) = 1.683
    assert (few["accepted"], many["accepted"]) == (True, False)


@pytest.mark.parametrize("truth", [[0.5] * 9, [0.4, 0.6] + [0.6] * 7, [0.5, 0.5, 0.45, 0.5, 0.4, 0.5, 0.5, 0.45, 0.5]])
def test_in_simulated_loops_a_round_that_is_no_better_is_accepted_no_more_often_than_stated(truth):
    """Eight looks, 400 loops: with 0.05 per look one loop in five or more would accept something false."""
    rng, loops, looks, false, naive = random.Random(1), 400, len(truth) - 1, 0, 0
    hardness = [rng.uniform(-0.3, 0.3) for _ in range(60)]

    def answers(rate):
        return [[rng.random() < min(1, max(0, rate + hard)) for _ in range(2)] for hard in hardness]

    for _ in range(loops):
        rows = [answers(rate) for rate in truth]
        for spent in (0.05 / looks, 0.05):
            top, wrong = 0, False
            for number in range(1, len(rows)):
                if paired_difference(rows[top], rows[number], 1 - 2 * spent).low > 0:
                    wrong |= truth[number] <= truth[top]
                    top = number
            if spent == 0.05:
                naive += wrong
            else:
                false += wrong
    # Binomial: 0.05 + 3 standard errors of 400 loops.
    assert false / loops <= 0.05 + 3 * (0.05 * 0.95 / loops) ** 0.5
    assert naive > false


def test_a_real_gain_is_accepted():
    rng, accepted = random.Random(2), 0
    for _ in range(50):
        rows = [[[rng.random() < rate for _ in range(4)] for _ in range(200)] for rate in (0.5, 0.6)]
        accepted += paired_difference(*rows, 1 - 2 * 0.05 / 4).low > 0
    assert accepted >= 40


def test_decisions_that_do_not_fit_the_evaluations_are_refused():
    with pytest.raises(ValueError, match="3 `evaluations` need 1 `decisions`"):
        AcceptConfig(output="a", evaluations=["0", "1", "2"], looks=4)
    with pytest.raises(ValueError, match="`looks` is 1, but this is round 2"):
        AcceptConfig(output="a", evaluations=["0", "1", "2"], decisions=["d"], looks=1)


# -- the loop ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def looped(tmp_path):
    """A recipe of four rounds, of which the first is better than all others; students and evaluations are there."""
    recipe = rounds(tmp_path, 4, {"seeds": [0]}, initial=INITIAL, steps={
        "work": WORK, "distill": STEPS["distill"], "evaluate": STEPS["evaluate"],
    })  # fmt: skip
    recipe.folder.mkdir()
    (recipe.folder / "recipe.yaml").write_text(recipe.dump())
    for one in recipe.steps:
        if one.stage == "distill":
            folder = begin("distill", one.config)
            (folder.path / "weights").write_text(one.name)
            folder.finish({})
        elif one.stage == "evaluate":
            folder = begin("evaluate", one.config)
            evaluated(folder.path, share(30 if one.round == 1 else 10))
            solved = {"pass@1": 0.5, "standard_error": None, "questions": 40, "samples": 1}
            folder.finish({"benchmarks": {"q": solved}, "temperature": 0.7})
    return recipe


def test_after_two_rejections_no_later_round_runs_and_the_best_one_is_the_result(looped, capsys):
    assert run_recipe(looped) == 0
    folder = looped.folder
    assert (folder / "round3" / "work.jsonl").is_file()
    assert not (folder / "round4" / "work.jsonl").exists()
    assert (folder / "best" / "model" / "weights").read_text() == "round1/distill"
    assert "round4/work: skipped, its loop ended at round 3" in capsys.readouterr().out


def test_a_second_run_does_nothing_and_says_what_is_not_run(looped, capsys):
    run_recipe(looped)
    before = {path: path.stat().st_mtime_ns for path in looped.folder.rglob("*.json*")}
    run_recipe(looped)
    assert {path: path.stat().st_mtime_ns for path in looped.folder.rglob("*.json*")} == before
    assert "skipped: seed 0 round4/work: its loop ended at round 3" in capsys.readouterr().out


def test_a_step_elsewhere_that_uses_a_round_that_did_not_run_does_not_run_either(looped):
    run_recipe(looped)
    more = {"count": 4, "initial": INITIAL, "steps": {"work": WORK, **{k: STEPS[k] for k in ("distill", "evaluate")}}}
    use = {"stage": "select", "keep": "all", "data": "@round4/work"}
    recipe = build_recipe({"name": "r", "folder": str(looped.head.folder), "rounds": more, "use": use}, "r.yaml")
    assert recipe.not_run() == {f"seed 0 {name}": 3 for name in (
        "round4/work", "round4/distill", "round4/evaluate", "round4/accept", "use")}  # fmt: skip


def test_what_is_not_run_is_not_called_incomplete(looped):
    run_recipe(looped)
    assert collect_results(ReportConfig(output=looped.folder), looped).incomplete == ()


def test_with_no_round_accepted_the_first_student_is_the_best(tmp_path):
    model = tmp_path / "m0"
    model.mkdir()
    (model / "stage.json").write_text(json.dumps({"stage": "distill", "complete": True, "config": {}, "metrics": {}}))
    config = BestConfig(output=tmp_path / "best", models=[model], decisions=[tmp_path / "never"])
    assert best.run(config).metrics["best"] == 0


# -- the report --------------------------------------------------------------------------------------------------------


def test_measures_of_explanations_by_hand():
    rows = [
        {"explanation": "a b c", "solution": "b c", "question": ""},
        {"explanation": "a b a b", "solution": "x", "question": ""},
    ]
    # Bigrams: ab bc | ab ba ab: 3 different of 5. Four words: one, of the second. "b c" is copied, "x" is not.
    assert measured(rows, None) == {"words": 3.5, "distinct_2": 0.6, "distinct_4": 1.0, "copying": 0.5}


def two_rounds(accepted=True):
    decision = {"accepted": accepted, "gain": 0.1}
    return tuple(
        Round(seed, number, {"solved": 0.1 * number + seed, "score: reward": -1.0 * number}, decision if number else None)
        for seed in (0, 1) for number in (0, 1, 2)
    )  # fmt: skip


def test_the_report_has_a_column_per_round_and_says_how_the_judges_moved(tmp_path):
    results = collect_results(ReportConfig(output=tmp_path), build_recipe({"name": "r", "p": WORK}, "r"))
    results = type(results)(**{name: getattr(results, name) for name in results.__dataclass_fields__}
                            | {"rounds": two_rounds()})  # fmt: skip
    text = terminal_report(ReportConfig(output=tmp_path), results)
    assert "round 0  round 1  round 2" in text
    assert "2 of 2" in text
    (said,) = _of_rounds(results.rounds)
    assert (
        said == "Rounds accepted in at least one seed: 1, 2. Change of the mean rewards from round 1 to 2: score -1.00."
    )
    assert sentences(ReportConfig(output=tmp_path), results)


def test_the_report_says_in_which_rounds_reward_and_gain_part_company():
    def of(*correlations):
        return [Round(seed, number, {"gain: correlation": value})
                for number, seeds in enumerate(correlations, 1) for seed, value in enumerate(seeds)]  # fmt: skip

    assert parted(of((0.5, -0.9), (0.3, 0.1))) == [
        "Reward and gain from learning part company, by their rank correlation: round 1 (-0.20)."
    ]
    assert parted(of((0.5, 0.3), (0.3, 0.1))) == [
        "Reward and gain from learning rank alike in every round (correlation 0.20 or more)."
    ]
    assert parted(two_rounds()) == []


def test_the_figure_is_an_svg_with_a_panel_per_measure_and_a_line_per_seed_and_mean():
    root = ElementTree.fromstring(figure(two_rounds()))
    name = "{http://www.w3.org/2000/svg}"
    titles = [one.text for one in root.iter(f"{name}text") if one.get("font-weight") == "bold"]
    assert titles == ["solved", "score: reward"]
    assert len([*root.iter(f"{name}polyline")]) == 2 * (2 + 1)
