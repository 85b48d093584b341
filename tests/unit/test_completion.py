"""Completion scripts, run by the shells that are installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from rlt.catalog import shipped_recipes
from rlt.cli import main
from rlt.completion import SHELLS, script, words_of
from rlt.helptext import SUMMARIES


def needs(shell):
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"needs {shell}")


def completed(line: list[str]) -> set[str]:
    """What bash offers for the last word of a command line."""
    words = " ".join(f"'{word}'" for word in line)
    code = f"{script('bash')}\nCOMP_WORDS=({words}); COMP_CWORD={len(line) - 1}; _rlt; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@needs("bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (["rlt", ""], set(SUMMARIES)),
        (["rlt", "col"], {"collect", "coldstart"}),
        (["rlt", "run", "quick"], {"quickstart", "quickstart/bases"}),
        (["rlt", "run", "--rest"], {"--restart"}),
        (["rlt", "run", "r.yaml", "--train.kl"], {"--train.kl-coef"}),
        (["rlt", "train", "--kl"], {"--kl-coef"}),
        (["rlt", "train", "--estimator", ""], {"k1", "k3", "exact"}),
        (["rlt", "completion", ""], set(SHELLS)),
        (["rlt", "recipes", ""], {"copy", "--help"}),
    ],
)
def test_bash_offers(line, offered):
    assert completed(line) - {"--help"} == offered - {"--help"}


@needs("zsh")
def test_zsh_loads_the_script_as_a_function_and_in_a_startup_file(tmp_path):
    (tmp_path / "_rlt").write_text(script("zsh"))
    code = f"fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u -d {tmp_path}/dump; print $_comps[rlt]"
    done = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "_rlt"
    subprocess.run(["zsh", "-f", "-n", str(tmp_path / "_rlt")], check=True)


@needs("zsh")
def test_zsh_offers_commands_keys_and_values(tmp_path):
    """`compadd` prints what it is given, as no terminal is there."""

    def offered(*words: str) -> str:
        code = (
            "compdef() { :; }; _files() { :; }; compadd() { print -- ${@:2}; }; _describe() { print -- $commands; }\n"
            f"{script('zsh')}\nwords=({' '.join(map(repr, words))}); CURRENT={len(words)}; _rlt"
        )
        return subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, check=True).stdout

    assert "collect:Collect the teacher's explanations" in offered("rlt", "")
    assert "--kl-coef" in offered("rlt", "train", "").split()
    assert offered("rlt", "train", "--estimator", "").split() == ["k1", "k3", "exact"]
    assert set(shipped_recipes()) < set(offered("rlt", "run", "").split())


@needs("fish")
def test_fish_offers_commands_keys_and_values(tmp_path):
    def offered(line: str) -> set[str]:
        (tmp_path / "rlt.fish").write_text(script("fish"))
        code = f"source {tmp_path}/rlt.fish; complete -C '{line}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        return {line.split("\t")[0] for line in done.stdout.splitlines()}

    assert offered("rlt col") == {"collect", "coldstart"}
    assert offered("rlt train --kl") == {"--kl-coef"}
    assert {"k1", "k3", "exact"} <= offered("rlt train --estimator ")
    assert "quickstart" in offered("rlt run ")


@pytest.mark.parametrize("command", SUMMARIES)
def test_every_flag_of_the_help_is_completed(command, capsys):
    assert main([command, "--help"]) == 0
    flags = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")}
    assert flags - {"--KEY", "--STEP.KEY"} <= set(words_of(command))


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_prints_the_script(shell, capsys):
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == script(shell) + "\n"


def test_another_shell_is_one_line(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "usage: rlt completion bash|zsh|fish" in capsys.readouterr().err


def test_the_folder_of_recipes_is_what_is_offered():
    assert {path.name for path in (Path(__file__).parents[2] / "recipes").iterdir()} >= {
        name.split("/")[0] for name in words_of("check") if not name.startswith("--")
    }
