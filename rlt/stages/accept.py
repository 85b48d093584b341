"""Accept or reject a feedback round by a paired test with an error rate over all looks.

Look k accepts where the one-sided lower bound of the gain over the best round so far, at an error rate of
`error_rate / looks`, is above 0. By the union bound over the looks (Bonferroni's alpha spending) the chance of any false
acceptance is at most `error_rate`. docs/rounds.md says what that does and does not promise.
"""

from __future__ import annotations

from pathlib import Path

from rlt.config import AcceptConfig
from rlt.errors import RunError
from rlt.outputs import Result, begin
from rlt.results.comparison import compare
from rlt.rounds import Decision, decision_of


def run(config: AcceptConfig) -> Result:
    """The decision, as the stage's metrics: `accepted`; `best`, the best round so far; `gain` over the previous best, with
    its lower bound `low` at `look_error_rate`; `rejections` in a row, and whether they `ended` the loop.

    Raises RunError if an evaluation or an earlier decision is not complete.
    """
    folder = begin("accept", config)
    if folder.result:
        return folder.result
    number = len(config.evaluations) - 1
    best, rejections = _before(config.decisions)
    spent = config.error_rate / config.looks
    # The lower end of a two-sided interval of level 1 - 2a is a one-sided bound of error rate a.
    compared = compare(config.evaluations[best], config.evaluations[number], level=1 - 2 * spent)
    if len(compared.differences) > 1:
        raise RunError(f"{config.evaluations[number]}: has several benchmarks; a round is accepted on exactly one.")
    (name, difference), rates = next(iter(compared.differences.items())), next(iter(compared.rates.values()))
    accepted = difference.low > 0
    rejections = 0 if accepted else rejections + 1
    decision: Decision = {
        "accepted": accepted, "round": number, "gain": difference.mean, "low": difference.low, "solved": rates[1],
        "compared_with": best, "best": number if accepted else best, "look_error_rate": spent, "benchmark": name,
        "questions": difference.questions, "rejections": rejections, "ended": rejections >= config.patience,
    }  # fmt: skip
    print(
        f"accept: round {number} is {'accepted' if accepted else 'rejected'}: {difference.mean:+.3f} against round {best}, "
        f"lower bound {difference.low:+.3f} at an error rate of {spent:.3g}", flush=True,
    )  # fmt: skip
    return folder.finish(dict(decision))


def _before(decisions: list[Path]) -> tuple[int, int]:
    """`(best round, rejections in a row)` after the decisions so far."""
    if not decisions:
        return 0, 0
    last = decision_of(decisions[-1])
    if last is None:
        raise RunError(f"{decisions[-1]}: not complete; run its `rlt accept` first.")
    return last["best"], last["rejections"]
