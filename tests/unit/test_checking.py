"""What is wrong with a recipe is said before its first step, all of it, without importing torch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from rlt import checking
from rlt.checking import check_steps
from rlt.cli import main
from rlt.models import hub
from rlt.recipe import build_recipe, load_recipe

RECIPES = sorted([*(ROOT := Path(__file__).parents[2] / "recipes").glob("*/recipe.yaml"), *ROOT.glob("claims/*.yaml")])


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch, tmp_path):
    """Nothing is in the hub's cache, and the hub cannot be reached."""
    monkeypatch.setattr(hub, "_cached", lambda model: None)
    monkeypatch.setattr(checking, "is_cached", lambda dataset: False)
    for name in ("unreachable",):
        monkeypatch.setattr(hub, name, lambda: "the hub cannot be reached")
        monkeypatch.setattr(checking, name, lambda: "the hub cannot be reached")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def everything_installed(monkeypatch):
    monkeypatch.setattr(checking, "_is_installed", lambda package: True)


def make_folder(path: Path, context: int = 2048) -> str:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": context}))
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "model.safetensors").write_text("{}")
    return str(path)


@pytest.fixture
def model(tmp_path):
    return make_folder(tmp_path / "model")


@pytest.fixture
def data(tmp_path):
    row = {"question": "1 + 1?", "solution": "2", "answer": "2", "explanation": "one more"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    return str(tmp_path / "data.jsonl")


def problems(connect=False, **steps):
    recipe = build_recipe({"name": "r", **steps}, "r.yaml")
    return check_steps(recipe, recipe.steps, connect=connect).problems


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_recipe_is_fine_and_checked_in_two_seconds(path, everything_installed):
    begun = time.process_time()
    recipe = load_recipe(path)
    checked = check_steps(recipe, recipe.steps)
    # What `make laptop` makes before the run is not here.
    real = path.parent.name == "laptop" or path.stem == "smollm2"
    assert [one for one in checked.problems if not real or "models/" not in one] == []
    assert time.process_time() - begun < 2
    offline = ("quickstart", "miniature", "mixed", "rounds", "self-teach", "archive", "claims")
    assert bool(checked.unverified) == (real or path.parent.name not in offline)


def test_a_fine_recipe_has_no_problems(model, data):
    assert problems(
        warmup={"model": model, "data": data, "max_length": 2048},
        train={"model": "@warmup", "student": model, "data": data,
               "trainer": {"max_completion_length": 1000, "num_generations": 8}},
        collect={"model": "@train", "data": data},
        distill={"model": model, "data": "@collect", "token_budget": "@collect"},
        evaluate={"model": "@distill", "benchmark": data, "task": "arithmetic", "allow_overlap": True},
        score={"data": data, "student": model, "teacher": "@warmup"},
        grade={"data": "@score"},
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"trainer": {"lerning_rate": 1}}, "`trainer.lerning_rate`: unknown option of SFTConfig (did you mean"),
        ({"trainer": {"max_steps": "3"}}, "`trainer.max_steps`: expected int, got '3'."),
        ({"peft": {"rnk": 8}}, "`peft.rnk`: unknown option of LoraConfig."),
        ({"data": "none.jsonl"}, "none.jsonl: no such file."),
        ({"data": "bare.jsonl"}, "bare.jsonl line 1: column `explanation` is missing, and this stage needs it."),
        ({"data": "empty.jsonl"}, "empty.jsonl: has no rows."),
        ({"data": {"path": "bare.jsonl", "columns": {"explanation": "why"}}}, "column `why` (mapped to `explanation`)"),
        ({"max_length": 4096}, "`max_length` 4096 does not fit into the context of 2048 tokens"),
        ({"model": "nowhere/at/all"}, "`model`: nowhere/at/all: not a model folder (no such folder)."),
        ({"format": "strats"}, "format 'strats': neither a shipped format"),
        ({"launch": "dpp"}, "`launch`: 'dpp' is neither a shipped"),
    ],
)
def test_what_is_wrong_with_a_step_is_told(model, data, tmp_path, step, message):
    (tmp_path / "bare.jsonl").write_text('{"question": "1 + 1?", "solution": "2"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (line,) = problems(warmup={"model": model, "data": data, **step})
    assert line.startswith("step `warmup`: ")
    assert message in line


@pytest.mark.parametrize(
    ("stage", "step", "message"),
    [
        (
            "train",
            {"student": "@warmup", "trainer": {"num_generations": 8}},
            "`trainer.max_completion_length` 16384 does not fit into the context of 2048",
        ),
        ("train", {"trainer": {"max_completion_length": 9, "num_generations": 8}}, "`student` is missing"),
        (
            "train",
            {
                "student": "@warmup",
                "sampler": "engine",
                "trainer": {"max_completion_length": 9, "num_generations": 8, "min_p": 0.1},
            },
            "`sampler: engine` cannot do `trainer.min_p: 0.1`",
        ),
        (
            "coldstart",
            {"task": "arithmetic", "trainer": {"max_completion_length": 9, "num_generations": 3}},
            "`trainer.num_generations` 3 must divide the 8 completions of a generation (8 rows x 1 process x 1 steps",
        ),
        ("coldstart", {"task": "maths"}, "task 'maths'"),
        ("collect", {"engine": "openai"}, "engine `openai` needs `url`"),
        ("collect", {"url": "http://h"}, "`url` is for engine `openai`"),
        ("collect", {"engine_options": {"atn_implementation": 1}}, "`engine_options.atn_implementation`: unknown"),
        ("collect", {"engine": "openai", "url": "http://h", "api_key_env": "NO_SUCH"}, "variable NO_SUCH is not set"),
        ("evaluate", {"benchmark": "math5"}, "benchmark 'math5': neither"),
        ("evaluate", {"benchmark": "none.jsonl"}, "none.jsonl: no such file."),
        ("evaluate", {"benchmark": "math500", "max_tokens": 4096}, "`max_tokens` 4096 does not fit into the context"),
        ("score", {"student": "@warmup"}, "line 1: has neither `explanation` nor `completion`"),
        ("grade", {}, "line 1: column `response` is missing"),
        ("problems", {"task": "math"}, "has no generator"),
        ("problems", {"task": "arithmetic", "experts": "loud"}, "`experts`: unknown mixture 'loud'"),
        ("problems", {"task": "arithmetic", "exclude": ["none.jsonl"]}, "none.jsonl: no such file."),
    ],
)
def test_what_is_wrong_with_a_stage_is_told(model, data, tmp_path, stage, step, message):
    (tmp_path / "plain.jsonl").write_text('{"question": "1 + 1?", "solution": "2", "answer": "2"}\n')
    values = {"problems": {}, "evaluate": {"model": "@warmup"}, "score": {"data": "plain.jsonl"},
              "grade": {"data": "plain.jsonl"}}.get(stage, {"model": "@warmup", "data": "plain.jsonl"})  # fmt: skip
    lines = problems(warmup={"model": model, "data": data}, **{stage: {**values, **step}})
    assert any(line.startswith(f"step `{stage}`: ") and message in line for line in lines), lines


def test_a_pretrained_models_phases_are_checked():
    stage = "pretrain"
    lines = problems(tiny={"stage": stage, "task": "arithmetic", "phases": [{"until_los": 0.1, "experts": "loud"}]})
    assert lines == [
        "step `tiny`: `phases[0].until_los`: unknown option of Phase (did you mean until_loss?).",
        "step `tiny`: `experts`: unknown mixture 'loud'; expected one of "
        + ", ".join(checking.load_generated_task("arithmetic").MIXTURES)
        + ".",
    ]


@pytest.mark.parametrize(
    ("step", "package"),
    [
        ({"peft": {}}, "peft"),
        ({"launch": "deepspeed-zero3"}, "deepspeed"),
        ({"trainer": {"use_vllm": True, "max_completion_length": 9, "num_generations": 8}}, "vllm"),
        ({"stage": "collect", "engine": "vllm"}, "vllm"),
        ({"stage": "collect", "ray": "local"}, "ray"),
    ],
)
def test_a_missing_extra_is_told_with_its_install_line(model, data, monkeypatch, step, package):
    monkeypatch.setattr(checking, "_is_installed", lambda name: name != package)
    base = {"model": model, "data": data}
    if step.get("stage") != "collect":
        base |= {"student": model, "trainer": {"max_completion_length": 9, "num_generations": 8}}
    (line,) = problems(train={**base, **step})
    assert line.endswith(f"needs {package}: pip install 'rlt[{package}]'")


def test_a_folder_without_tokenizer_or_weights_is_no_model(model, data):
    (Path(model) / "model.safetensors").unlink()
    assert "no weights" in problems(collect={"model": model, "data": data})[0]
    (Path(model) / "tokenizer.json").unlink()
    assert "no tokenizer" in problems(collect={"model": model, "data": data})[0]


def test_rows_that_are_skipped_may_be_wrong_if_one_is_right(model, tmp_path):
    good = {"question": "1 + 1?", "solution": "2"}
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in ({"question": ""}, good)))
    assert len(problems(collect={"model": model, "data": "d.jsonl"})) == 1
    assert problems(collect={"model": model, "data": {"path": "d.jsonl", "on_invalid": "skip"}}) == []
    assert problems(collect={"model": model, "data": {"path": "d.jsonl", "skip": 1}}) == []


def test_a_file_to_score_needs_one_row_that_can_be_scored(model, tmp_path):
    good = {"question": "1 + 1?", "solution": "2", "explanation": "one more"}
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in ({"question": "?"}, good)))
    assert problems(score={"data": "d.jsonl", "student": model}) == []


def test_the_same_problem_of_several_steps_is_one_line(model, monkeypatch, data):
    monkeypatch.setattr(checking, "_is_installed", lambda name: False)
    step = {"stage": "collect", "model": model, "data": data, "engine": "vllm"}
    assert problems(a=step, b=step) == ["steps `a`, `b`: engine `vllm` needs vllm: pip install 'rlt[vllm]'"]


def test_what_only_the_hub_has_is_not_verified_offline_and_refused_by_a_run(data):
    step = {"model": "org/name", "data": "org/set"}
    recipe = build_recipe({"name": "r", "collect": step}, "r.yaml")
    checked = check_steps(recipe, recipe.steps)
    assert checked.problems == []
    assert checked.unverified == ["model org/name (not in the hub's cache)", "dataset org/set (on the hub)"]
    assert problems(connect=True, collect=step) == [
        "step `collect`: org/name: no such folder, not in the hub's cache, and the hub cannot be reached.",
        "step `collect`: `data`: org/set: no such file, not in the hub's cache, and the hub cannot be reached.",
    ]


# -- the commands ------------------------------------------------------------------------------------------------------


def test_the_command_lists_every_problem_of_a_recipe_and_fails(tmp_path, model, data, capsys):
    (tmp_path / "r.yaml").write_text(
        f"warmup: {{model: {model}, data: none.jsonl, trainer: {{lerning_rate: 1}}}}\n"
        f"train: {{modle: {model}, data: {data}}}\ngrade: {{data: none.jsonl}}\n"
    )
    assert main(["check", "r.yaml"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "rlt: error: r.yaml: 3 problems:",
        "  step `train`: `model`: Field required; `modle`: unknown key (did you mean model?)",
        "  step `warmup`: `trainer.lerning_rate`: unknown option of SFTConfig "
        "(did you mean learning_rate or logging_strategy?).",
        "  steps `warmup`, `grade`: none.jsonl: no such file.",
    ]


def test_the_command_says_that_a_recipe_is_fine(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("problems: {task: arithmetic}\n")
    assert main(["check", "r.yaml", "--seeds", "0,1"]) == 0
    assert "2 steps, 2 seeds: no problems found\n  problems  ok (problems)" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_run_begins_nothing_when_a_later_step_is_wrong(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("name: r\nproblems: {task: arithmetic, count: 2}\ngrade: {data: none.jsonl}\n")
    assert main(["run", "r.yaml"]) == 2
    said = capsys.readouterr()
    assert said.err == "rlt: error: r: step `grade`: none.jsonl: no such file.\n"
    assert said.out == ""
    assert not (tmp_path / "runs").exists()


def test_a_stage_alone_is_checked_too(data, capsys):
    assert main(["collect", "--model", "notamodel", "--data", data, "--output", "o"]) == 2
    error = capsys.readouterr().err
    assert (
        error
        == "rlt: error: rlt collect: notamodel: no such folder, not in the hub's cache, and the hub cannot be reached.\n"
    )


def test_checking_imports_no_torch():
    code = (
        "import sys; from rlt.cli import main\n"
        f"for path in {[str(path) for path in RECIPES]}: main(['check', path])\n"
        "sys.exit(bool({'torch', 'transformers', 'trl', 'peft'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_held_out_questions_that_a_model_is_trained_on_are_told(model, data):
    steps = {
        "distill": {"model": model, "data": data, "format": "words"},
        "evaluate": {"model": "@distill", "benchmark": [data], "task": "math", "format": "words"},
    }
    (line,) = problems(**steps)
    assert "1 of its questions are in the training data" in line
    assert not problems(**{**steps, "evaluate": {**steps["evaluate"], "allow_overlap": True}})


def test_a_prompt_that_cannot_fit_is_told_with_its_row(tmp_path, model):
    rows = [{"question": "one two", "solution": "three"}, {"question": "one two", "solution": "three " * 2000}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"model": model, "student": model, "trainer": {"max_completion_length": 100, "num_generations": 8}}
    (line,) = problems(train={**step, "data": "long.jsonl"})
    assert (
        "long.jsonl line 2: question and solution alone have 2002 tokens, but `trainer.max_completion_length` leaves only 1948"
        in line
    )
    assert problems(train={**step, "data": {"path": "long.jsonl", "on_invalid": "skip"}}) == []


def test_a_file_that_is_no_tokenizer_is_told(model, data):
    Path(model, "tokenizer.json").write_text("{}")
    (line,) = problems(
        coldstart={
            "model": model,
            "data": data,
            "task": "arithmetic",
            "trainer": {"max_completion_length": 9, "num_generations": 8},
        }
    )
    assert "tokenizer.json: not a tokenizer" in line


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("reasoning_gym/knight_knaves", {}, "did you mean reasoning_gym/knights_knaves"),
        ("reasoning_gym/knights_knaves", {"n_peple": 2}, "unknown option 'n_peple'; did you mean n_people"),
        ("reasoning_gym/knights_knaves", {"n_people": 0}, "options {'n_people': 0}"),
    ],
)
def test_a_wrong_generator_or_option_of_reasoning_gym_is_one_line(task, options, message):
    recipe = build_recipe({"name": "r", "problems": {"task": task, "options": options}}, "r/recipe.yaml")
    (line,) = check_steps(recipe, recipe.steps).problems
    assert message in line
    assert "\n" not in line


def test_every_source_of_a_list_is_looked_at(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"question": "q", "solution": "s", "explanation": "e"}\n')
    (tmp_path / "two.jsonl").write_text('{"question": "q", "solution": "s"}\n')
    data = [str(tmp_path / "one.jsonl"), {"path": str(tmp_path / "two.jsonl"), "task": "maths"}]
    recipe = build_recipe({"name": "r", "warmup": {"model": "org/model", "data": data}}, "r/recipe.yaml")
    problems = check_steps(recipe, recipe.steps).problems
    assert any("two.jsonl line 1: column `explanation` is missing" in line for line in problems)
    assert any("unknown task 'maths'" in line for line in problems)
    assert not any("one.jsonl" in line for line in problems)
