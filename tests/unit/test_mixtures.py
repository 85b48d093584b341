"""Several sources of problems: how they are read, labelled and drawn."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlt.config import STAGES, MixtureConfig, validate
from rlt.data.mixtures import Mixture, mixture_of, shares
from rlt.data.overlap import leaks, questions_of
from rlt.data.problems import load_problems
from rlt.errors import ConfigError, DataError
from rlt.recipe import build_recipe
from rlt.types import Problem


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *questions: str, **columns: Any) -> str:
    rows = ({"question": question, "solution": "s", **columns} for question in questions)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def data_of(stage: str, data: Any, **keys: Any) -> Any:
    values = {"model": "m", "output": "o", "data": data, **keys}
    return validate(STAGES[stage], values, "step").data


# -- the configuration -------------------------------------------------------------------------------------------------


def test_a_list_is_several_sources_named_by_their_files() -> None:
    data = data_of("warmup", [{"path": "a/x.jsonl", "weight": 2}, "runs/y", {"path": "z.jsonl", "source": "three"}])
    assert [(s.label, s.weight) for s in data.sources] == [("x", 2.0), ("y", 1.0), ("three", 1.0)]


def test_what_is_dumped_is_read_again() -> None:
    config = validate(
        STAGES["warmup"], {"model": "m", "output": "o", "data": {"sources": ["a", "b"], "temperature": 2}}, "s"
    )
    assert validate(STAGES["warmup"], json.loads(config.model_dump_json()), "s") == config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"path": "a", "wieght": 2}], r"`data.sources.0.wieght`: unknown key"),
        (["x/a.jsonl", "y/a.jsonl"], "two sources are named 'a'"),
        ([{"path": "a", "weight": 0}], "greater than 0"),
        ([], "at least 1 item"),
    ],
)
def test_a_wrong_list_is_refused_with_its_key(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_of("warmup", data)


@pytest.mark.parametrize(("stage", "keys"), [("collect", {}), ("select", {"keep": "all"}), ("problems", {})])
def test_weights_are_refused_where_every_row_is_read_once(stage: str, keys: dict[str, Any]) -> None:
    values = {"output": "o.jsonl" if stage == "problems" else "o", "data": [{"path": "a", "weight": 2}], **keys}
    values |= {"model": "m"} if stage == "collect" else {}
    with pytest.raises(ConfigError, match="`weight` and `temperature` are for training"):
        validate(STAGES[stage], values, "step")


def test_a_recipes_list_may_name_steps() -> None:
    recipe = build_recipe(
        {
            "name": "r",
            "problems": {"task": "arithmetic", "count": 3},
            "warmup": {"model": "m", "data": ["@problems", {"path": "b.jsonl", "weight": 3}]},
        },
        "r/recipe.yaml",
    )
    warmup = recipe.steps[1]
    assert warmup.after == ("problems",)
    assert warmup.config.data.sources[0].path == str(recipe.steps[0].config.output)  # type: ignore[attr-defined]


# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_carry_source_and_task_and_ids_stay_different() -> None:
    one, two = write("one.jsonl", "a", task="countdown"), write("two.jsonl", "b", "c", task="countdown")
    data = data_of("warmup", [one, {"path": two, "task": "arithmetic"}])
    assert [(p.id, p.source, p.task) for p in load_problems(data)] == [
        ("one/0", "one", "countdown"), ("two/0", "two", "arithmetic"), ("two/1", "two", "arithmetic"),
    ]  # fmt: skip


def test_skip_and_limit_are_each_sources_own() -> None:
    data = data_of(
        "warmup", [{"path": write("one.jsonl", *"abc"), "skip": 2}, {"path": write("two.jsonl", *"de"), "limit": 1}]
    )
    assert [p.question for p in load_problems(data)] == ["c", "d"]
    assert [question for _, question in questions_of(data)] == ["c", "d"]


def test_a_source_may_skip_its_invalid_rows_and_another_not() -> None:
    Path("bad.jsonl").write_text('{"question": "q"}\n{"question": "q", "solution": "s"}\n')
    data = data_of("warmup", [{"path": "bad.jsonl", "on_invalid": "skip"}])
    problems = load_problems(data)
    assert len(problems) == len(problems.dropped) == 1
    with pytest.raises(DataError, match=r"bad.jsonl line 1: column `solution` is missing"):
        load_problems(data_of("warmup", ["bad.jsonl"]))


def test_columns_called_task_or_source_that_are_no_text_are_not_ours() -> None:
    (problem,) = load_problems(data_of("warmup", write("one.jsonl", "a", task=3, source={"url": "u"})))
    assert (problem.task, problem.source) == (None, None)


def test_rows_of_programs_give_question_program_and_tests() -> None:
    apps = {
        "question": "Double it.",
        "input_output": '{"inputs": ["1"], "outputs": ["2"]}',
        "solutions": '["print(2)", "x"]',
    }
    mbpp = {"text": "Double it.", "code": "def f(x):\n    return 2 * x", "test_list": ["assert f(1) == 2"]}
    human = {
        "prompt": "def f(x):\n", "canonical_solution": "    return 2 * x\n", "test": "def check(f): assert f(1) == 2",
        "entry_point": "f",
    }  # fmt: skip
    Path("code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (apps, mbpp, human)))
    problems = load_problems(data_of("warmup", {"path": "code.jsonl", "task": "code"}))
    doubled = "```python\ndef f(x):\n    return 2 * x\n```"
    assert [p.solution for p in problems] == ["```python\nprint(2)\n```", doubled, doubled]
    assert problems[0].answer == apps["input_output"]
    assert "assert f(1) == 2" in problems[1].question
    assert "def f(x):" in problems[2].question
    assert all(p.task == "code" for p in problems)


def test_a_leak_in_one_of_several_sources_is_found() -> None:
    one, two, test = write("one.jsonl", "a"), write("two.jsonl", "b"), write("test.jsonl", "b", "c")
    recipe = build_recipe(
        {
            "name": "r",
            "warmup": {"model": "m", "data": [one, two]},
            "evaluate": {"model": "@warmup", "benchmark": test},
        },
        "r/recipe.yaml",
    )
    (line,) = leaks([step.config for step in recipe.steps])
    assert "1 of its questions are in the training data two.jsonl" in line


# -- the order of training ---------------------------------------------------------------------------------------------


def test_shares_follow_weights_and_sizes_to_the_power_of_one_over_the_temperature() -> None:
    assert shares([30, 10], [1, 1], 1) == [0.75, 0.25]
    assert shares([9, 1], [1, 1], 2) == [0.75, 0.25]  # 3 to 1
    assert shares([30, 10], [1, 3], 1) == [0.5, 0.5]
    assert shares([1000, 10], [1, 1], 1e9) == pytest.approx([0.5, 0.5])


def test_an_epoch_has_as_many_draws_as_rows_in_the_sources_shares() -> None:
    mixture = Mixture([range(6), range(6, 8)], [0.5, 0.5], seed=0)
    order = mixture.order(0)
    assert len(order) == 8
    assert sum(place >= 6 for place in order) == 4


def test_a_source_goes_through_all_its_rows_before_one_comes_again() -> None:
    mixture = Mixture([range(6), range(6, 8)], [0.5, 0.5], seed=0)  # four draws of each
    small = [place for place in mixture.order(0) if place >= 6]
    assert sorted(small) == [6, 6, 7, 7]
    three = [place for epoch in range(3) for place in mixture.order(epoch) if place < 6]  # twelve draws of six rows
    assert sorted(three) == sorted([*range(6)] * 2)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    places = [range(20), range(20, 30)]
    first, again, other = (Mixture(places, [0.5, 0.5], seed) for seed in (0, 0, 1))
    assert first.order(1) == again.order(1) != first.order(0)
    assert other.order(0) != again.order(0)


def test_rounding_never_loses_a_draw() -> None:
    assert Mixture([range(4), range(4, 7), range(7, 10)], [1 / 3, 1 / 3, 1 / 3], 0).draws == [4, 3, 3]


def test_one_data_set_has_the_trainers_own_order() -> None:
    problems = [Problem("0", "q", "s")]
    assert mixture_of(data_of("warmup", "a.jsonl"), problems, 0) is None


def test_a_source_of_which_nothing_is_left_is_not_drawn_from() -> None:
    data = MixtureConfig.model_validate({"sources": [{"path": "a"}, {"path": "b"}]})
    mixture = mixture_of(data, [Problem("0", "q", "s", source="b"), Problem("1", "r", "s", source="b")], 0)
    assert mixture is not None
    assert sorted(mixture.order(0)) == [0, 1]
