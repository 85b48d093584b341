"""Feedback rounds: the key `rounds` of a recipe, unrolled into ordinary steps. See docs/rounds.md.

    rounds:
      count: 4
      initial: {distill: {...}, evaluate: {...}}             # round 0, the first baseline: steps `round0/distill`, ...
      steps:                                                 # round k: `round1/train`, ...
        train: {student: "@round{previous}/distill", ...}    # "{round}" and "{previous}" are numbers of rounds
        distill: {data: "@round{round}/collect", ...}
      accept: {by: evaluate}                                 # then `round1/accept` decides

Resuming, `--restart`, `rlt check`, `rlt plan` and parallel jobs treat the unrolled steps like any others. Imports no torch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TypedDict, cast

from pydantic import Field

from rlt.config import STAGES, AcceptanceOptions, Config, validate
from rlt.errors import ConfigError
from rlt.outputs import complete_state
from rlt.types import JsonRow

KEY = "rounds"
GATES, ROUND = ".gates", ".round"  # no key of a stage can have such a name
BEST = "best"


class Decision(TypedDict):
    """The metrics of `rlt accept`. `rlt.stages.accept` says what they mean."""

    accepted: bool
    round: int
    gain: float
    low: float
    solved: float
    compared_with: int
    best: int
    look_error_rate: float
    benchmark: str
    questions: int
    rejections: int
    ended: bool


def decision_of(output: Path) -> Decision | None:
    """The decision in an output of `rlt accept`; None if it is not complete."""
    state = complete_state(output)
    return cast(Decision, state["metrics"]) if state else None


class Acceptance(AcceptanceOptions):
    """How rounds are accepted."""

    by: str = "evaluate"
    """Evaluate step whose responses decide; `initial` needs one of the same name."""


class Rounds(Config):
    """The key `rounds` of a recipe."""

    count: int = Field(ge=1)
    """Maximum number of rounds."""
    initial: dict[str, JsonRow]
    """Steps of round 0, the baseline of round 1."""
    steps: dict[str, JsonRow]
    """Steps of every round."""
    accept: Acceptance = Acceptance()
    """How a round is accepted."""
    result: str = "distill"
    """Step whose model is the result. After the rounds, the step `best` copies the best round's to `@best:model`."""


def unrolled(raw: object) -> dict[str, JsonRow]:
    """Step name -> its keys with `stage`: every step of every round, in order, then `best`.

    ROUND holds a step's round, GATES the decisions of earlier rounds. Raises ConfigError for a mistake.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"`{KEY}`: must be a mapping with `count`, `initial` and `steps`.")
    rounds: Rounds = validate(Rounds, raw, f"`{KEY}`")
    _check(rounds)
    by, steps = rounds.accept.by, {}
    for number in range(rounds.count + 1):
        decided = [f"@round{k}/accept" for k in range(1, number)]
        for name, keys in (rounds.steps if number else rounds.initial).items():
            steps[f"round{number}/{name}"] = {**_filled(keys, number), "stage": _stage(name, keys)}
            steps[f"round{number}/{name}"] |= {GATES: decided, ROUND: number}
        if number:
            steps[f"round{number}/accept"] = {
                "stage": "accept",
                "evaluations": [f"@round{k}/{by}" for k in range(number + 1)],
                "decisions": decided,
                "looks": rounds.count,
                **rounds.accept.model_dump(exclude={"by"}, exclude_unset=True),
                GATES: decided,
                ROUND: number,
            }
    steps[BEST] = {
        "stage": "best",
        "models": [f"@round{k}/{rounds.result}" for k in range(rounds.count + 1)],
        "decisions": [f"@round{k}/accept" for k in range(1, rounds.count + 1)],
    }
    return steps


def _check(rounds: Rounds) -> None:
    for part, steps in (("initial", rounds.initial), ("steps", rounds.steps)):
        for name, keys in steps.items():
            where = f"`{KEY}.{part}.{name}`"
            if not re.fullmatch(r"\w[\w.-]*", name) or name == "accept":
                raise ConfigError(
                    f"{where}: choose another name (letters, digits, `_`, `-` and `.`; `accept` is taken)."
                )
            if _stage(name, keys) not in STAGES:
                raise ConfigError(f"{where}: unknown stage {_stage(name, keys)!r}; stages are {', '.join(STAGES)}.")
            if "each" in keys:
                raise ConfigError(f"{where}: steps of a round cannot have variants; write one step per variant.")
            if part == "initial" and "{previous}" in json.dumps(keys):
                raise ConfigError(f"{where}: round 0 has no previous round; name a step before the rounds.")
        for key, name, stages in (("accept.by", rounds.accept.by, ("evaluate",)), ("result", rounds.result, None)):
            if name not in steps or (stages is not None and _stage(name, steps[name]) not in stages):
                kind = f"{stages[0]} " if stages else ""
                raise ConfigError(f"`{KEY}.{key}`: `{KEY}.{part}` has no {kind}step {name!r}.")


def _stage(name: str, keys: JsonRow) -> str:
    return str(keys.get("stage", name))


def _filled(value: JsonRow, number: int) -> JsonRow:
    text = json.dumps({key: item for key, item in value.items() if key != "stage"})
    filled: JsonRow = json.loads(text.replace("{round}", str(number)).replace("{previous}", str(number - 1)))
    return filled
