"""The command: flags, help without torch, one-line errors."""

import json
import resource
import subprocess
import sys

import pytest

from rlt.cli import main, parse_flags
from rlt.config import parse_yaml
from rlt.recipe import load_recipe


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
