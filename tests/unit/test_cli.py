"""The command: flags, help without torch, one-line errors."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rlt.cli import main, parse_flags
from rlt.config import STAGES, parse_yaml
from rlt.data.rows import read_rows
from rlt.helptext import SUMMARIES
from rlt.planning import PlanConfig
from rlt.recipe import RecipeHead, load_recipe
from rlt.text.formats import shipped_formats


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--kl-coef", "2"], {"kl_coef": 2}),
        (["--kl-coef=2.5"], {"kl_coef": 2.5}),
        (["--learning-rate", "1e-6"], {"learning_rate": 1e-6}),
        (["--model", "nan"], {"model": "nan"}),
        (["--student", "a", "--student", "b"], {"student": ["a", "b"]}),
        (["--model", '"a b"'], {"model": "a b"}),
        (["--placebos"], {"placebos": True}),
        (["--top-k", "null"], {"top_k": None}),
        (["--trainer.max-steps", "3"], {"trainer": {"max_steps": 3}}),
        (["--data", "F", "--data.on-invalid", "skip"], {"data": {"path": "F", "on_invalid": "skip"}}),
        (["--data.on-invalid", "skip", "--data", "F"], {"data": {"path": "F", "on_invalid": "skip"}}),
    ],
)
def test_flags_become_keys(words, flags):
    assert parse_flags(words) == ([], flags)


def test_the_name_of_a_step_keeps_its_dashes():
    assert parse_flags(["--distill-7b.trainer.max-steps", "3"], recipe=True)[1] == {
        "distill-7b": {"trainer": {"max_steps": 3}}
    }


def test_a_switch_does_not_swallow_the_recipe():
    assert parse_flags(["--restart", "recipe.yaml"]) == (["recipe.yaml"], {"restart": True})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scor"], "Did you mean `rlt score`?"),
        (["run", "nowhere.yaml"], "nowhere.yaml: no such recipe"),
        (["run"], "usage: rlt run RECIPE"),
        (["score", "--studnet", "x", "--data", "d", "--output", "o"], "did you mean student"),
        (["collect", "thing"], "neither a flag nor a recipe"),
        (["grade", "--data", "none.jsonl", "--output", "graded.jsonl"], "none.jsonl"),
        (["collect", "--model", "m", "--data", "d", "--output", "x.jsonl"], "`output` x.jsonl must be a folder"),
        (
            ["score", "--data", "d.jsonl", "--output", "o.jsonl", "--temperature", ".inf"],
            "`temperature`: must be a finite",
        ),
        (["train", "--model", "m", "--data", "d", "--output", "o", "--kl-coef", ".nan"], "`kl_coef`: must be a finite"),
        (
            ["problems", "--task", "arithmetic", "--output", "o.jsonl", "--seed", "-1"],
            "`seed`: Input should be greater",
        ),
        (["grade", "--data", "d", "--output", "o.jsonl", "--workers", "true"], "`workers`: must be a number"),
        (["score", "--model", "a", "--model.x", "1"], "--model.x: `model` already has a plain value"),
        (["timings", "nowhere"], "nowhere: not the folder of a run"),
        (["check"], "usage: rlt check RECIPE"),
    ],
)
def test_mistakes_are_one_line_and_status_2(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("rlt: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_help_answers_within_a_second_and_imports_no_torch():
    code = "import sys; from rlt.cli import main; main(['--help']); main(['train', '--help']); sys.exit('torch' in sys.modules)"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert "--kl-coef" in done.stdout
        # Of the processor, so that what else this machine does is not counted.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("command", ["", *SUMMARIES])
def test_help_fits_the_terminal(command, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([*command.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("command", [*STAGES, "run", "plan"])
def test_help_has_every_key_the_required_first_and_what_they_may_be(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "2000")
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    keys = re.findall(r"^  --([\w.-]+)\n +(.*)$", said, re.MULTILINE)
    top = [(key, text) for key, text in keys if "." not in key and text.endswith("]")]
    required = [text.endswith("[required]") for _, text in top]
    assert required == sorted(required, reverse=True)
    model = {"run": RecipeHead, "plan": PlanConfig}.get(command) or STAGES[command]
    assert sorted(key for key, _ in top) == sorted(name.replace("_", "-") for name in model.model_fields)
    if "format" in model.model_fields:
        for name in shipped_formats():
            assert f"`{name}`" in dict(keys)["format"]
    if command == "train":
        assert "One of k1, k3, exact. [default: null]" in dict(keys)["estimator"]


def test_help_has_topics_and_what_every_stage_has_comes_last(capsys):
    assert main(["train", "--help"]) == 0
    titles = re.findall(r"^(\S.*):$", capsys.readouterr().out, re.MULTILINE)
    assert titles[:2] == ["Required", "Options"]
    assert "The student in the reward, and where it runs" in titles
    assert titles[-1] == "Options of every stage"


def test_help_is_80_columns_wide_where_there_is_no_terminal():
    done = subprocess.run(
        [sys.executable, "-m", "rlt", "train", "--help"], capture_output=True, text=True, check=True, env={"PATH": ""}
    )
    assert 70 < max(map(len, done.stdout.splitlines())) <= 80


def test_a_locale_of_ascii_is_no_reason_to_fail(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "name: r\ndescription: caf\u00e9 \u2192 \u0394\nproblems: {task: arithmetic, count: 2}\n", encoding="utf-8"
    )
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "rlt", "run", "r.yaml"], cwd=tmp_path, capture_output=True, check=False,
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"caf\\xe9 \\u2192" in done.stdout


def test_a_complete_stage_tells_its_numbers_again(tmp_path, capsys):
    command = ["problems", "--task", "arithmetic", "--count", "3", "--output", str(tmp_path / "p.jsonl")]
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 0
    assert "problems: already complete: done in " in capsys.readouterr().out


def test_timings_prints_the_table_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_of_two_reports(tmp_path)
    capsys.readouterr()
    assert main(["timings", "runs/r"]) == 0
    table = capsys.readouterr().out
    assert json.loads(table).keys() == {"problems"}
    (tmp_path / "r.seconds.json").write_text(table)
    assert load_recipe("r.yaml").timings.keys() == {"problems"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("1.5e3", 1500.0), ("-.5E2", -50.0), ("1", 1), ("e5", "e5"), ("12e", "12e"), ("'1e-6'", "1e-6")],
)
def test_numbers_of_yaml_are_read_as_people_write_them(text, value):
    assert parse_yaml(text) == value
    assert parse_yaml(f"trainer: {{learning_rate: {text}}}") == {"trainer": {"learning_rate": value}}


def test_a_run_may_be_called_by_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("name: 1\nproblems: {task: arithmetic, count: 2}\n")
    assert load_recipe("r.yaml").head.name == "1"
    assert main(["run", "r.yaml", "--name", "2"]) == 0
    assert (tmp_path / "runs" / "2" / "problems.jsonl").is_file()


def run_of_two_reports(tmp_path):
    report = "{stage: report, title: Mine}"
    (tmp_path / "r.yaml").write_text(
        f"name: r\nproblems: {{task: arithmetic, count: 2}}\nreport: {report}\nextra: {{stage: report, suffix: -b}}\n"
    )
    assert main(["run", "r.yaml"]) == 0


def test_the_reports_of_a_folder_are_those_of_its_recipe_wherever_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_of_two_reports(tmp_path)
    (tmp_path / "runs" / "r").rename(tmp_path / "moved")
    for name in ("report.html", "results-b.json"):
        (tmp_path / "moved" / name).unlink()
    assert main(["report", "--output", "moved"]) == 0
    assert '"title":"Mine"' in (tmp_path / "moved" / "report.html").read_text()
    assert json.loads((tmp_path / "moved" / "results-b.json").read_text())["seconds"].keys() == {"problems"}


def test_a_run_with_reports_of_its_own_is_not_overwritten_by_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_of_two_reports(tmp_path)
    before = (tmp_path / "runs" / "r" / "results.json").read_bytes()
    assert main(["report", "--output", "runs/r", "--sampled", "other"]) == 2
    assert "rlt report runs/r/recipe.yaml --report.sampled" in capsys.readouterr().err
    assert (tmp_path / "runs" / "r" / "results.json").read_bytes() == before


def test_a_list_of_files_may_be_a_single_one(tmp_path):
    heldout, corpus = tmp_path / "heldout.jsonl", tmp_path / "corpus.jsonl"
    assert main(["problems", "--task", "swaps", "--count", "3", "--output", str(heldout)]) == 0
    problems = ["problems", "--task", "swaps", "--count", "3", "--exclude", str(heldout), "--output", str(corpus)]
    assert main(problems) == 0
    questions = {row["question"] for path in (heldout, corpus) for _, row in read_rows(path)}
    assert len(questions) == 6
