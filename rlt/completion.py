"""Completion scripts for bash, zsh and fish, generated from the same source as `--help`.

The scripts call no Python.
"""

from __future__ import annotations

from collections.abc import Callable

from rlt.catalog import shipped_recipes
from rlt.config import STAGES
from rlt.helptext import SUMMARIES, describe, keys

TAKE_RECIPES = ("run", "evolve", "check", "plan")


def script(shell: str) -> str:
    """The completion script of a shell in SHELLS."""
    return SHELLS[shell]()


def words_of(command: str) -> dict[str, tuple[str, ...]]:
    """Words that may follow a command, each with the values of a flag (empty: any)."""
    described = describe(command)
    words: dict[str, tuple[str, ...]] = {}
    if command in TAKE_RECIPES:
        words |= dict.fromkeys(shipped_recipes(), ())
    words |= {"recipes": {"copy": ()}, "completion": dict.fromkeys(SHELLS, ()), "evaluate": {"compare": ()}}.get(
        command, {}
    )
    words |= {flag.split()[0]: () for flag in described.switches if "KEY" not in flag}
    if described.model is not None:
        words |= {key.flag: tuple(map(str, key.choices)) for key in keys(described.model)}
    if command in TAKE_RECIPES:  # a step mostly has the name of its stage
        for stage, config in STAGES.items():
            words |= {f"--{stage}.{key.flag[2:]}": tuple(map(str, key.choices)) for key in keys(config)}
    return words | {"--help": ()}


def _bash() -> str:
    cases = []
    for command in SUMMARIES:
        words = words_of(command)
        values = [f"      {flag}) words={_quoted(choices)} ;;" for flag, choices in words.items() if choices]
        inner = ['    case "$previous" in', *values, f"      *) words={_quoted(words)} ;;", "    esac"]
        cases.append("\n".join([f"  {command})", *(inner if values else [f"    words={_quoted(words)}"]), "    ;;"]))
    return f"""_rlt() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words={_quoted(SUMMARIES)}
  else
  case "${{COMP_WORDS[1]}}" in
{chr(10).join(cases)}
  esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _rlt rlt"""


def _zsh() -> str:
    commands = "\n".join(f"    {_single(name + ':' + text)}" for name, text in SUMMARIES.items())
    cases = []
    for command in SUMMARIES:
        words = words_of(command)
        values = [
            f"      {flag}) compadd -- {' '.join(choices)}; return ;;" for flag, choices in words.items() if choices
        ]
        inner = ["    case $words[CURRENT-1] in", *values, "    esac"] if values else []
        cases.append("\n".join([f"  {command})", *inner, f"    compadd -- {' '.join(words)}", "    ;;"]))
    return f"""#compdef rlt
_rlt() {{
  if (( CURRENT == 2 )); then
    local -a commands=(
{commands}
    )
    _describe command commands
    return
  fi
  case $words[2] in
{chr(10).join(cases)}
  esac
  _files
}}
if [ "$funcstack[1]" = "_rlt" ]; then _rlt "$@"; else compdef _rlt rlt; fi"""


def _fish() -> str:
    lines = [
        f"complete -c rlt -n __fish_use_subcommand -f -a {name} -d {_single(text)}" for name, text in SUMMARIES.items()
    ]
    for command in SUMMARIES:
        seen = f"-n '__fish_seen_subcommand_from {command}'"
        words = words_of(command)
        plain = " ".join(word for word in words if not word.startswith("--"))
        lines += [f"complete -c rlt {seen} -a {_single(plain)}"] if plain else []
        for flag, choices in words.items():
            if flag.startswith("--"):
                lines.append(
                    f"complete -c rlt {seen} -l {flag[2:]}"
                    + (f" -x -a {_single(' '.join(choices))}" if choices else "")
                )
    return "\n".join(lines)


def _quoted(words: object) -> str:
    return f'"{" ".join(map(str, words))}"'  # type: ignore[call-overload]


def _single(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


SHELLS: dict[str, Callable[[], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
