"""Explanations in bands by reward, lowest first: the data of the paper's correlation study (section 4)."""

from __future__ import annotations

from rlt.config import RankConfig
from rlt.data.problems import iter_problems
from rlt.data.rows import read_rows, write_rows
from rlt.errors import DataError
from rlt.outputs import Result, begin


def run(config: RankConfig) -> Result:
    """A folder with `band-1.jsonl` (lowest) to `band-N.jsonl`, of equal size to within one row; rows keep their score.

    Rows that could not be scored are left out and counted. Raises DataError where scores and data do not belong together.
    """
    problems = list(iter_problems(config.data, need=("explanation",)))
    scores = [row for _, row in read_rows(config.scores)]
    if len(problems) != len(scores):
        raise DataError(
            f"{config.scores}: {len(scores)} scores for {len(problems)} rows of {config.data.path}; they must belong together."
        )
    for number, (problem, score) in enumerate(zip(problems, scores, strict=True), 1):
        if "id" in score and str(score["id"]) != problem.id:
            raise DataError(
                f"{config.scores.name} line {number}: `id` is {score['id']!r}, the data's is {problem.id!r}."
            )
        if config.by not in score:
            raise DataError(f"{config.scores.name} line {number}: column `{config.by}` is missing.")
    ranked = sorted(
        ((score[config.by], i) for i, score in enumerate(scores) if score[config.by] is not None), key=lambda pair: pair
    )
    if len(ranked) < config.bands:
        raise DataError(f"{config.scores}: {len(ranked)} scored rows are too few for {config.bands} bands.")
    folder = begin("rank", config)
    if folder.result:
        return folder.result
    metrics: dict[str, float] = {"unscored": len(scores) - len(ranked)}
    for band in range(config.bands):
        part = ranked[band * len(ranked) // config.bands : (band + 1) * len(ranked) // config.bands]
        rows = [{**problems[i].to_row(), config.by: value} for value, i in sorted(part, key=lambda pair: pair[1])]
        write_rows(folder.path / f"band-{band + 1}.jsonl", rows)
        metrics[f"band_{band + 1}_mean"] = sum(value for value, _ in part) / len(part)
    return folder.finish(metrics)
