"""The key `evolve` of a recipe: which steps a teacher runs, with what, and what is refused before anything runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from rlt.catalog import shipped_recipes
from rlt.checking import check_search
from rlt.cli import main
from rlt.config import EvolveOptions
from rlt.errors import ConfigError, RunError
from rlt.evolve.run import _claim
from rlt.evolve.selection import Draft
from rlt.evolve.teachers import Repeat
from rlt.recipe import build_recipe, load_recipe
from rlt.recipe.evolution import plan_of

FIRST = Draft(0, None, None, {}, (), "first")


def values(folder="runs", **evolve):
    options = {"screen": "screen", "final": "final", "search": {"train.kl_coef": [1.0, 3.0], "pick.count": [8, 16]}}
    return {
        "name": "a", "folder": str(folder), "seeds": [4],
        "defaults": {"evaluate": {"benchmark": "@questions"}},
        "questions": {"stage": "problems", "task": "arithmetic", "count": 4},
        "corpus": {"stage": "problems", "task": "arithmetic", "count": 32},
        "warmup": {"model": "base/{seed}", "data": "@corpus"},
        "pick": {"stage": "problems", "data": "@corpus", "count": 16},
        "train": {"model": "@warmup", "student": "base/{seed}", "data": "@pick", "trainer": {"max_steps": 2}},
        "collect": {"each": {"hot": {"temperature": 1.0, "data": "@corpus"}, "cold": {"data": "@corpus"}}, "model": "@train"},
        "short": {"stage": "distill", "model": "base/{seed}", "data": "@collect/hot"},
        "screen": {"stage": "evaluate", "model": "@short"},
        "distill": {"each": "@collect", "model": "base/{seed}", "data": "@collect/{each}"},
        "evaluate": {"each": "@distill", "model": "@distill/{each}"},
        "final": {"stage": "evaluate", "model": "@distill/hot"},
        "evolve": {**options, **evolve},
    }  # fmt: skip


def recipe(folder="runs", **evolve):
    return build_recipe(values(folder, **evolve), "r.yaml")


def repeat(folder="runs", **evolve):
    made = recipe(folder, **evolve)
    return Repeat(made, plan_of(made), 4)


def test_steps_are_shared_or_run_for_each_teacher_phase_by_phase():
    plan = plan_of(recipe())
    assert plan.shared == ("questions", "corpus", "warmup")
    assert plan.phases["screen"] == ("pick", "train", "collect", "short", "screen")
    assert plan.phases["score"] == ("pick", "train", "collect", "short", "screen", "distill", "evaluate")
    assert plan.phases["final"][-1] == "final"
    assert plan.settings == {"train.kl_coef": 3.0, "pick.count": 16}  # a default of the stage, and a key of the step


def test_the_first_teacher_is_not_trained():
    steps = {step.name: step.config for step in repeat().recipe_of(FIRST).steps}
    assert "train" not in steps
    assert steps["collect/hot"].model == "runs/a/seed-4/shared/warmup"
    assert steps["collect/cold"].data.path == "runs/a/seed-4/shared/corpus.jsonl"
    assert steps["distill/cold"].data.path == "runs/a/seed-4/teachers/first/collect/cold"
    assert steps["evaluate/hot"].benchmark == ["runs/a/seed-4/shared/questions.jsonl"]  # of `defaults`


def test_a_child_has_its_settings_its_parents_weights_and_a_seed_of_its_own():
    child = Draft(3, 1, "1-abc", {"train.kl_coef": 1.0, "pick.count": 8}, (), "3-def")
    steps = {step.name: step.config for step in repeat().recipe_of(child).steps}
    train = steps["train"]
    assert (train.model, train.kl_coef, train.seed) == ("runs/a/seed-4/teachers/1-abc/train", 1.0, 30004)
    assert train.trainer == {"max_steps": 2}
    assert steps["pick"].count == 8
    assert steps["distill/hot"].seed == 4  # students of all teachers are trained alike
    assert steps["collect/hot"].model == "runs/a/seed-4/teachers/3-def/train"


def test_a_child_of_the_first_teacher_starts_from_the_recipes_own_model():
    child = Draft(1, 0, "first", {"train.kl_coef": 1.0, "pick.count": 16}, (), "1-abc")
    train = next(step.config for step in repeat().recipe_of(child, "screen").steps if step.name == "train")
    assert train.model == "runs/a/seed-4/shared/warmup"


def test_a_step_for_each_variant_of_a_shared_step_keeps_them():
    raw = values()
    raw["corpus"] = {"stage": "problems", "each": {"one": {"count": 8}, "two": {"count": 9}}, "task": "arithmetic"}
    raw["warmup"]["data"] = raw["pick"]["data"] = "@corpus/one"
    raw["collect"] = {"each": "@corpus", "model": "@train", "data": "@corpus/{each}"}
    raw["short"]["data"], raw["final"]["model"] = "@collect/one", "@distill/one"
    made = build_recipe(raw, "r.yaml")
    steps = {step.name: step.config for step in Repeat(made, plan_of(made), 4).recipe_of(FIRST).steps}
    assert steps["collect/two"].data.path == "runs/a/seed-4/shared/corpus/two.jsonl"


@pytest.mark.parametrize(
    ("evolve", "message"),
    [
        ({"search": {"train.kl_coef": [1.0, 2.0]}}, "own value, 3.0, is not among 1.0, 2.0"),
        ({"search": {"train.kl_coef": {"low": 4.0, "high": 9.0}}}, "own value, 3.0, is not among 4.0 to 9.0"),
        ({"search": {"trian.kl_coef": [1.0, 3.0]}}, "`evolve.search.trian.kl_coef`: does not begin with a step"),
        ({"search": {"train.kl_coeff": [1.0, 3.0]}}, "own value, None"),
        ({"search": {"train.model": ["@warmup", "x"]}}, "cannot be searched"),
        ({"search": {"train.alpha": {"low": 0, "high": 1, "step": 2}}}, "leaves one value"),
        ({"search": {"train.alpha": [0.01, -1.0], "train.floor": ["low"]}}, "at least two different"),
        ({"search": {"train.estimator": ["k1", "k3"]}}, "own value, None"),
        ({"train": "warmup"}, "`evolve.train`: this recipe has no train step `warmup`"),
        ({"score": "distill"}, "`evolve.score`: this recipe has no evaluate step `distill`"),
        ({"score": "screen"}, "must be different steps"),
        ({"mutations": 3}, "`mutations` 3 is more than the 2 keys"),
        ({"arms": ["archive", "worst"]}, "`evolve.arms"),
    ],
)
def test_what_does_not_fit_the_recipe_is_refused(evolve, message):
    with pytest.raises(ConfigError) as error:
        recipe(**evolve)
    assert message in str(error.value)


def test_every_value_of_the_search_is_checked_before_the_first_step():
    with pytest.raises(ConfigError, match=r"evolve.search.train.kl_coef` 'much'.*valid number"):
        recipe(search={"train.kl_coef": [3.0, "much"]})


def test_a_score_that_no_teacher_can_change_is_refused():
    raw = values()
    raw["evaluate"] = {"model": "@warmup"}
    with pytest.raises(ConfigError, match="`evaluate` does not depend on `train`"):
        build_recipe(raw, "r.yaml")


def test_a_changed_recipe_is_refused_but_children_may_be_added(tmp_path):
    _claim(recipe(tmp_path))
    _claim(recipe(tmp_path, children=20, arms=["archive", "continue"]))
    with pytest.raises(RunError, match=r"`evolve.mutations`: 1 there, 2 now.*--name a-2"):
        _claim(recipe(tmp_path, mutations=2))
    changed = values(tmp_path)
    changed["train"]["trainer"]["max_steps"] = 3
    with pytest.raises(RunError, match=r"`train.trainer.max_steps`: 2 there, 3 now"):
        _claim(build_recipe(changed, "r.yaml"))


def test_the_key_survives_the_runs_own_copy_of_the_recipe(tmp_path):
    _claim(recipe(tmp_path))
    assert load_recipe(tmp_path / "a" / "recipe.yaml").head.evolve == EvolveOptions(**values()["evolve"])


def test_a_value_that_only_a_step_can_refuse_is_named_with_its_key(capsys):
    recipe = str(shipped_recipes()["archive"])
    assert main(["check", recipe, "--evolve.search", "{train.format: [words, wrods]}"]) == 2
    assert "`evolve.search.train.format` 'wrods': step" in capsys.readouterr().err


def test_the_shipped_recipe_and_each_value_of_its_search_have_no_problem():
    assert check_search(load_recipe(shipped_recipes()["archive"])) == []


def test_help_and_recipes_load_without_optuna_and_matplotlib():
    code = (
        "import sys; sys.modules['optuna'] = sys.modules['matplotlib'] = None\n"
        "import rlt.cli; from rlt.catalog import shipped_recipes; from rlt.recipe import load_recipe\n"
        "load_recipe(shipped_recipes()['archive']); print(rlt.cli.main(['evolve', '--help']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert "--evolve.search" in done.stdout
    assert done.stdout.endswith("0\n")
