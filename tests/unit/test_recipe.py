"""Recipes: references, variants, seeds, overrides; errors that name the step and the key."""

import pytest

from rlt.config import parse_yaml
from rlt.errors import ConfigError
from rlt.recipe import build_recipe, deep_merge, load_recipe

HEAD = {"name": "r", "folder": "out"}


def recipe(**steps):
    return build_recipe({**HEAD, **steps}, "r.yaml")


def step(recipe, name, seed=0):
    return next(s for s in recipe.steps if s.name == name and s.seed == seed)


def test_a_reference_is_the_output_of_that_step_and_makes_a_dependency():
    r = recipe(warmup={"model": "m", "data": "d.jsonl"}, train={"model": "@warmup", "student": "s", "data": "d.jsonl"})
    assert step(r, "train").config.model == "out/r/warmup"
    assert step(r, "train").after == ("warmup",)


def test_a_reference_may_name_a_file_inside_the_output():
    r = recipe(rank={"data": "d.jsonl", "scores": "s.jsonl"}, distill={"model": "m", "data": "@rank:band-1.jsonl"})
    assert step(r, "distill").config.data.path == "out/r/rank/band-1.jsonl"


def test_with_several_seeds_each_has_its_own_folder():
    r = build_recipe({**HEAD, "seeds": [3, 4], "warmup": {"model": "m", "data": "d.jsonl"}}, "r.yaml")
    assert [(s.seed, str(s.config.output), s.config.seed) for s in r.steps] == [
        (3, "out/r/seed-3/warmup", 3),
        (4, "out/r/seed-4/warmup", 4),
    ]


def test_variants_are_steps_and_can_be_taken_over_by_a_later_step():
    r = recipe(
        distill={"model": "m", "each": {"a": {"data": "a.jsonl"}, "b": {"data": "b.jsonl"}}},
        evaluate={"each": "@distill", "model": "@distill/{each}", "benchmark": "math500"},
    )
    assert [s.name for s in r.steps] == ["distill/a", "distill/b", "evaluate/a", "evaluate/b"]
    assert step(r, "evaluate/b").config.model == "out/r/distill/b"
    assert step(r, "evaluate/b").after == ("distill/b",)


def test_defaults_lie_under_a_steps_own_keys():
    r = recipe(
        defaults={"distill": {"format": "r1", "trainer": {"max_steps": 1, "learning_rate": 2.0}}},
        distill={"model": "m", "data": "d.jsonl", "trainer": {"max_steps": 9}},
    )
    assert step(r, "distill").config.format == "r1"
    assert step(r, "distill").config.trainer == {"max_steps": 9, "learning_rate": 2.0}


def test_overrides_reach_into_a_step(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: r\nwarmup: {model: m, data: d.jsonl, trainer: {max_steps: 5}}\n")
    r = load_recipe(path, {"warmup": {"trainer": {"max_steps": 1}}, "seeds": [7]})
    assert step(r, "warmup", 7).config.trainer == {"max_steps": 1}


def test_what_is_dumped_makes_the_same_recipe(tmp_path):
    r = recipe(warmup={"model": "m", "data": "d.jsonl"}, train={"model": "@warmup", "student": "s", "data": "d.jsonl"})
    path = tmp_path / "recipe.yaml"
    path.write_text(r.dump())
    assert load_recipe(path).steps == r.steps


def test_merging_replaces_everything_but_mappings():
    assert deep_merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"warmup": {"modle": "m", "data": "d"}}, "`modle`: no such key (did you mean model"),
        ({"warm": {"model": "m"}}, "no stage 'warm' (did you mean warmup?)"),
        (
            {"warmup": {"model": "@bace", "data": "d"}, "base": {"task": "arithmetic"}},
            "@bace is no other step of this recipe (did you mean @base?)",
        ),
        ({"warmup": {"model": "@warmup", "data": "d"}}, "@warmup is no other step"),
        (
            {"warmup": {"model": "@base", "data": "d"}, "base": {"task": "arithmetic"}},
            "step `warmup`: @base is a later step. Steps run in order: write `base` before `warmup`.",
        ),
        (
            {"distill": {"model": "m", "each": {"a": {"data": "@distill/b"}, "b": {"data": "d"}}}},
            "step `distill/a`: @distill/b is a later step",
        ),
        ({"report": {}, "warmup": {"model": "@report", "data": "d"}}, "@report is no other step"),
        ({"warmup": 3}, "must be a mapping"),
        ({"evaluate": {"each": "@distill", "model": "m"}}, "no earlier step of that name has variants"),
        ({"defaults": {"dstill": {}}, "warmup": {"model": "m", "data": "d"}}, "`defaults.dstill`"),
        ({"train": {"model": "m", "student": "s", "data": "d", "kl_coef": "much"}}, "`kl_coef`"),
    ],
)
def test_mistakes_are_told_with_step_key_and_fix(steps, message):
    with pytest.raises(ConfigError) as caught:
        recipe(**steps)
    assert message in str(caught.value)
    assert "r.yaml" in str(caught.value)


STUDIED = {
    "collect": {"each": {"before": {}, "after": {}}, "model": "m", "data": "d"},
    "score": {"each": "@collect", "data": "@collect/{each}", "student": "s", "output": "s{each}.jsonl"},
    "train": {"model": "m", "student": "s", "data": "d"},
    "evaluate": {"each": ["original", "rlt"], "model": "m", "benchmark": "math500"},
}
REPORT = {"arms": ["original", "evaluate/rlt"], "bands": ["rlt"], "teachers": ["before", "after"], "explained": "collect",
          "scored": "score", "trained": "train", "headline": ["evaluate/rlt", "original"], "task": "arithmetic"}  # fmt: skip


def test_a_report_names_steps_and_variants_of_the_recipe():
    assert recipe(**STUDIED, report=REPORT).steps[-1].config.arms == ["original", "evaluate/rlt"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("arms", ["orignal"], "`arms`: 'orignal' is no step or variant of that kind. Did you mean original?"),
        ("arms", ["collect/before"], "`arms`: 'collect/before'"),
        ("bands", ["quarter1"], "`bands`: 'quarter1' is no step or variant of that kind. There are: original, rlt."),
        ("teachers", ["before", "aftr"], "`teachers`: 'aftr'"),
        ("teachers", ["before"], "`teachers`: must be two names, or none"),
        ("sampled", "evalute", "`sampled`: 'evalute' is no step or variant of that kind. Did you mean evaluate?"),
        ("greedy", "collect", "`greedy`: 'collect'"),
        ("explained", "explain", "`explained`: 'explain'"),
        ("scored", "scores", "`scored`: 'scores' is no step or variant of that kind. Did you mean score?"),
        ("trained", "trian", "`trained`: 'trian' is no step or variant of that kind. Did you mean train?"),
        ("headline", ["rlt", "original"], "`headline`: 'rlt' is no step or variant of that kind. Did you mean"),
        ("headline", ["original"], "`headline`: must be two names, or none"),
        ("task", "math", "`task`: math cannot inspect explanations"),
        ("task", "maths", "did you mean math"),
    ],
)
def test_a_misspelt_name_in_a_report_is_refused(key, value, message):
    with pytest.raises(ConfigError) as caught:
        recipe(**STUDIED, report={**REPORT, key: value})
    assert message in str(caught.value)


def test_a_recipes_numbers_are_read_as_people_write_them(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: r\nwarmup: {model: m, data: d.jsonl, trainer: {learning_rate: 1e-6}}\n")
    assert step(load_recipe(path), "warmup").config.trainer == {"learning_rate": 1e-6}


def test_what_a_run_keeps_has_every_default_and_the_references():
    rank = {"data": "d.jsonl", "scores": "s.jsonl"}
    kept = parse_yaml(
        recipe(defaults={"rank": {"by": "r_ss"}}, rank=rank, distill={"model": "m", "data": "@rank"}).dump()
    )
    assert kept["defaults"]["rank"] == {"by": "r_ss", "bands": 4}
    assert kept["defaults"]["distill"]["token_budget"] is None
    assert kept["distill"] == {"model": "m", "data": "@rank"}
    assert kept["seeds"] == [0]


def test_a_model_of_each_seed_may_lie_beside_the_recipe(tmp_path):
    (tmp_path / "bases").mkdir()
    (tmp_path / "recipe.yaml").write_text("seeds: [0, 1]\nwarmup: {model: './bases/{seed}', data: d.jsonl}\n")
    models = [step.config.model for step in load_recipe(tmp_path / "recipe.yaml").steps]
    assert models == [str(tmp_path / "bases" / "0"), str(tmp_path / "bases" / "1")]


def test_a_missing_recipe_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such recipe"):
        load_recipe(tmp_path / "none.yaml")
