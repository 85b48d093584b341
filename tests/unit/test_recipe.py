"""Recipes: references, variants, seeds, overrides; errors that name the step and the key."""

import pytest

from rlt.config import parse_yaml
from rlt.errors import ConfigError, ProblemsFound
from rlt.recipe import Timing, build_recipe, deep_merge, load_recipe

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
    select = {"data": "d.jsonl", "scores": "s.jsonl", "keep": "bands"}
    r = recipe(select=select, distill={"model": "m", "data": "@select:band-1.jsonl"})
    assert step(r, "distill").config.data.path == "out/r/select/band-1.jsonl"


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
    assert deep_merge({"data": "d"}, {"data": {"on_invalid": "skip"}}) == {"data": {"path": "d", "on_invalid": "skip"}}
    assert deep_merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"warmup": {"modle": "m", "data": "d"}}, "`modle`: unknown key (did you mean model"),
        ({"warm": {"model": "m"}}, "`warm`: neither a key of a recipe nor a stage (did you mean warmup?)"),
        (
            {"warmup": {"model": "@bace", "data": "d"}, "base": {"stage": "pretrain", "task": "arithmetic"}},
            "@bace: no such step (did you mean @base?)",
        ),
        ({"warmup": {"model": "@warmup", "data": "d"}}, "@warmup is this step itself"),
        (
            {"warmup": {"model": "@base", "data": "d"}, "base": {"stage": "pretrain", "task": "arithmetic"}},
            "step `warmup`: @base is a later step. Steps run in order: write `base` before `warmup`.",
        ),
        (
            {"distill": {"model": "m", "each": {"a": {"data": "@distill/b"}, "b": {"data": "d"}}}},
            "step `distill/a`: @distill/b is a later step",
        ),
        ({"report": {}, "warmup": {"model": "@report", "data": "d"}}, "@report is a report; no step can use one"),
        ({"warmup": 3}, "must be a mapping"),
        ({"evaluate": {"each": "@distill", "model": "m"}}, "no earlier step of that name has variants"),
        ({"defaults": {"dstill": {}}, "warmup": {"model": "m", "data": "d"}}, "`defaults.dstill`"),
        ({"train": {"model": "m", "student": "s", "data": "d", "kl_coef": "much"}}, "`kl_coef`"),
        ({}, "has no steps"),
        ({"sedes": [0, 1]}, "`sedes`: neither a key of a recipe nor a stage (did you mean seeds?)"),
        ({"../../x": {"stage": "warmup", "model": "m", "data": "d"}}, "step `../../x`: a name consists of letters"),
        ({"/abs/x": {"stage": "warmup", "model": "m", "data": "d"}}, "step `/abs/x`: a name consists of letters"),
        ({"..": {"stage": "warmup", "model": "m", "data": "d"}}, "step `..`: a name consists of letters"),
        (
            {"warmup": {"each": {"../../x": {}}, "model": "m", "data": "d"}},
            "variant `../../x`: a name consists of letters",
        ),
        ({"logs": {"stage": "warmup", "model": "m", "data": "d"}}, "`logs` is reserved in the run's folder"),
        ({"name": "..", "warmup": {"model": "m", "data": "d"}}, "`name`"),
        ({"name": "a/b", "warmup": {"model": "m", "data": "d"}}, "`name`"),
        ({"seeds": [0, 0]}, "`seeds`: seed 0 is listed twice"),
        ({"seeds": -1}, "`seeds.0`: Input should be greater than or equal to 0"),
        ({"seeds": [10**20]}, "`seeds.0`: Input should be less than 4294967296"),
        ({"seeds": True}, "`seeds`: must be a number, not true or false"),
        ({"seeds": [True]}, "`seeds`: must be a number, not true or false"),
        (
            {"train": {"model": "m", "data": "d", "kl_coef": float("nan")}},
            "`kl_coef`: must be a finite number, not nan",
        ),
        ({"train": {"model": "m", "data": "d", "trainer": {"beta": float("inf")}}}, "`trainer.beta`: must be a finite"),
        ({"collect": {"model": "m", "data": "d", "samples": True}}, "`samples`: must be a number, not true or false"),
        ({"collect": {"model": "m", "data": "d", "output": "x.jsonl"}}, "`output` x.jsonl must be a folder"),
        (
            {
                "warmup": {"model": "m", "data": "d", "output": "o"},
                "distill": {"model": "m", "data": "d", "output": "o"},
            },
            "step `distill`: `output` o is already used by seed 0 warmup",
        ),
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
    assert recipe(**STUDIED, report=REPORT).steps[-1].config.arms == {"original": None, "evaluate/rlt": None}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("arms", ["orignal"], "`arms`: unknown step or variant 'orignal'. Did you mean original?"),
        ("arms", ["collect/before"], "`arms`: unknown step or variant 'collect/before'"),
        ("bands", ["quarter1"], "`bands`: unknown step or variant 'quarter1'. There are: original, rlt."),
        ("teachers", ["before", "aftr"], "`teachers`: unknown step or variant 'aftr'"),
        ("teachers", ["before"], "`teachers`: must be two names, or none"),
        ("sampled", "evalute", "`sampled`: unknown step or variant 'evalute'. Did you mean evaluate?"),
        ("greedy", "collect", "`greedy`: unknown step or variant 'collect'"),
        ("explained", "explain", "`explained`: unknown step or variant 'explain'"),
        ("scored", "scores", "`scored`: unknown step or variant 'scores'. Did you mean score?"),
        ("trained", "trian", "`trained`: unknown step or variant 'trian'. Did you mean train?"),
        ("headline", ["rlt", "original"], "`headline`: unknown step or variant 'rlt'. Did you mean"),
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
    select = {"data": "d.jsonl", "scores": "s.jsonl", "keep": "bands"}
    distill = {"model": "m", "data": "@select"}
    kept = parse_yaml(recipe(defaults={"select": {"by": "r_ss"}}, select=select, distill=distill).dump())
    assert (kept["defaults"]["select"]["by"], kept["defaults"]["select"]["bands"]) == ("r_ss", 4)
    assert kept["defaults"]["distill"]["token_budget"] is None
    assert kept["distill"] == {"model": "m", "data": "@select"}
    assert kept["seeds"] == [0]


def test_every_mistake_is_told_not_only_the_first():
    with pytest.raises(ProblemsFound) as caught:
        recipe(warmup={"modle": "m", "data": "d"}, trian={"model": "m"}, distill={"model": "@collect", "data": "d"})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "`trian`",
        "step `warmup`",
        "step `distill`",
    ]
    assert str(caught.value).startswith("r.yaml: 3 problems:\n  `trian`: ")


def test_a_mistake_is_told_once_for_all_seeds():
    with pytest.raises(ProblemsFound) as caught:
        build_recipe({**HEAD, "seeds": [0, 1, 2], "warmup": {"modle": "m", "data": "d"}}, "r.yaml")
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("key", ["sk-proj-abc123", "hf_abcdefgh", "AKIA 12"])
@pytest.mark.parametrize("name", ["api_key_env", "student_api_key_env"])
def test_a_key_in_place_of_its_variables_name_is_refused_and_not_repeated(key, name):
    step = {"evaluate": {"model": "m", name: key}} if name == "api_key_env" else {"score": {"data": "d", name: key}}
    with pytest.raises(ConfigError, match="must be the name of an environment variable") as caught:
        recipe(**step)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [0]\nseeds: [1]\n", "line 2: the key `seeds` is already in line 1"),
        ("warmup: {}\ntrain: {}\nwarmup: {}\n", "line 3: the key `warmup` is already in line 1"),
        ("train:\n  trainer: {beta: 1, beta: 2}\n", "line 2: the key `beta` is already in line 2"),
        ("warmup: &w {model: *w}\n", "line 1: an anchor contains itself"),
        (
            "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
            "line 6: more than 100000 values once its anchors are expanded",
        ),
        ("[" * 100_000, "nested too deeply"),
        ("a: [1\n", "line 2: expected ',' or ']'"),
    ],
)
def test_yaml_that_misleads_or_explodes_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_anchors_merge_and_may_be_overridden():
    read = parse_yaml("d: &l {a: 1, b: 2}\ne: {<<: *l, a: 3}\nf: *l")
    assert read == {"d": {"a": 1, "b": 2}, "e": {"a": 3, "b": 2}, "f": {"a": 1, "b": 2}}


def test_the_home_folder_is_expanded_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    r = recipe(train={"model": "~/m", "student": "~/s", "data": "~/d.jsonl", "trainer": {"chat_template_path": "~/t"}})
    config = step(r, "train").config
    assert (config.model, config.student, config.data.path) == ("/home/me/m", ["/home/me/s"], "/home/me/d.jsonl")
    assert config.trainer == {"chat_template_path": "/home/me/t"}


def test_the_table_of_timings_is_read_from_the_file_named_like_the_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("problems: {task: arithmetic}\n")
    (tmp_path / "other.seconds.json").write_text("{}")
    assert load_recipe(path).timings == {}
    (tmp_path / "recipe.seconds.json").write_text('{"problems": {"seconds": 2, "rows": 3}}')
    assert load_recipe(path).timings == {"problems": Timing(seconds=2.0, rows=3)}
    for wrong in ('{"problems": 2}', '{"problems": {"seconds": -1}}', "[]", "{"):
        (tmp_path / "recipe.seconds.json").write_text(wrong)
        with pytest.raises(
            ConfigError, match=r"recipe.seconds.json: cannot be read .*`rlt timings RUN` prints such a table"
        ):
            load_recipe(path)


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        ({"rank": {"data": "d.jsonl", "scores": "s.jsonl"}}, "step `rank`: `rank` is part of `select`: write"),
        ({"quarters": {"stage": "rank", "data": "d.jsonl"}}, "step `quarters`: `rank` is part of `select`: write"),
        ({"defaults": {"rank": {"by": "r_ss"}}}, "`defaults.rank`: `rank` is part of `select`: write"),
        ({"base": {"task": "arithmetic"}}, "step `base`: stage `base` is now `pretrain`: write `stage: pretrain`"),
        ({"defaults": {"base": {}}}, "`defaults.base`: stage `base` is now `pretrain`"),
        *(
            (
                {"collect": {"model": "m", "data": "d.jsonl", key: value}},
                f"step `collect`: `{key}`: selection is a stage",
            )
            for key, value in {"select": "reward", "student": "s", "student_context": 9, "reward": {}}.items()
        ),
    ],
)
def test_what_select_took_over_is_refused_with_what_to_write_now(steps, line):
    with pytest.raises(ConfigError, match=line):
        recipe(**steps)


def test_a_model_of_each_seed_may_lie_beside_the_recipe(tmp_path):
    (tmp_path / "bases").mkdir()
    (tmp_path / "recipe.yaml").write_text("seeds: [0, 1]\nwarmup: {model: './bases/{seed}', data: d.jsonl}\n")
    models = [step.config.model for step in load_recipe(tmp_path / "recipe.yaml").steps]
    assert models == [str(tmp_path / "bases" / "0"), str(tmp_path / "bases" / "1")]


def test_a_missing_recipe_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_no_is_a_word_and_only_true_and_false_are_truth_values() -> None:
    text = "save_strategy: no\nlogging: on\nbf16: true\nfp16: False\nlearning_rate: 1e-6"
    expected = {"save_strategy": "no", "logging": "on", "bf16": True, "fp16": False, "learning_rate": 1e-6}
    assert parse_yaml(text) == expected
