"""The command: flags, help without torch, one-line errors."""

import subprocess
import sys
import time

import pytest

from rlt.cli import main, parse_flags


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--kl-coef", "2"], {"kl_coef": 2}),
        (["--kl-coef=2.5"], {"kl_coef": 2.5}),
        (["--learning-rate", "1e-6"], {"learning_rate": 1e-6}),
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


def test_help_answers_quickly_and_imports_no_torch():
    code = "import sys; from rlt.cli import main; main(['--help']); main(['train', '--help']); sys.exit('torch' in sys.modules)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--kl-coef" in done.stdout
    assert time.monotonic() - started < 5  # a second on an idle machine; torch alone takes longer than that
