"""Checks that every name in a report is a step, variant or arm of its recipe."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from rlt.config import ReportConfig
from rlt.errors import ConfigError
from rlt.tasks import load_task
from rlt.types import JsonRow


def check_report(config: ReportConfig, expanded: Mapping[str, JsonRow], where: str) -> None:
    """Raises ConfigError for an unknown step, variant or arm in a report, which would silently be left out."""

    def check(key: str, name: str, known: Collection[str]) -> None:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]}?" if near else f" There are: {', '.join(known) or 'none'}."
            raise ConfigError(f"{where}: `{key}`: unknown step or variant {name!r}.{hint}")

    def of_stage(stage: str) -> dict[str, None]:
        return dict.fromkeys(name for name, raw in expanded.items() if raw["stage"] == stage)

    def heads(stage: str) -> dict[str, None]:
        return dict.fromkeys(name.split("/")[0] for name in of_stage(stage))

    def variants(step: str) -> dict[str, None]:
        return dict.fromkeys(name.removeprefix(f"{step}/") for name in expanded if name.startswith(f"{step}/"))

    evaluated = of_stage("evaluate")
    arms = {**variants(config.sampled), **evaluated}
    if config.bands or not set(config.arms) <= set(evaluated):
        check("sampled", config.sampled, heads("evaluate"))
    for key, stage in (("greedy", "evaluate"), ("explained", "collect"), ("scored", "score")):
        step = getattr(config, key)
        if step is not None:
            check(key, step, heads(stage))
            for teacher in config.teachers if key != "greedy" else ():
                check("teachers", teacher, variants(step))
    for step in config.scores:
        check("scores", step, heads("score"))
    if config.trained is not None:
        check("trained", config.trained, expanded)
    for arm in config.arms:
        check("arms", arm, arms)
    for band in config.bands:
        check("bands", band, variants(config.sampled))
    for arm in config.headline:
        check("headline", arm, config.arms or evaluated)
    for bands in config.rankings.values():
        for band in bands:
            check("rankings", band, variants(config.sampled))
    if config.sweep is not None:
        for arm in config.sweep.arms:
            check("sweep.arms", arm, variants(config.sampled))
        if config.sweep.explained is not None:
            check("sweep.explained", config.sweep.explained, heads("collect"))
    if config.reaches is not None:
        check("reaches.step", config.reaches.step, [*heads("coldstart"), *heads("train")])
    for key in ("teachers", "headline"):
        if len(getattr(config, key)) not in (0, 2):
            raise ConfigError(f"{where}: `{key}`: must be two names, or none.")
    if config.task is not None and not hasattr(load_task(config.task), "inspect"):
        raise ConfigError(f"{where}: `task`: {config.task} cannot inspect explanations; leave the key out.")
