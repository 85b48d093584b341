"""The page of a run: `rlt view RUN` and the report's report.html."""

from __future__ import annotations

from collections.abc import Sequence

from rlt.config import ReportConfig, ViewConfig
from rlt.errors import ConfigError
from rlt.recipe import Recipe, recipe_of_run
from rlt.results.students import Arm, solve_rate
from rlt.results.summary import BandSeed, Results, collect_results
from rlt.results.view.live import serve_page
from rlt.results.view.page import scores_data, write_page
from rlt.results.view.run import run_data
from rlt.results.words import sentences, tables
from rlt.types import JsonRow

REPORT_ROWS = 200
"""Maximum number of scored rows, and of training samples, in report.html."""


def page_data(config: ReportConfig, recipe: Recipe, results: Results, limit: int = REPORT_ROWS) -> JsonRow:
    """The data that the page shows of a run."""
    data = run_data(recipe, limit)
    names = [source["name"] for source in data["sources"]]
    pair = [f"{config.scored}/{variant}, seed {recipe.head.seeds[0]}" for variant in config.teachers]
    report = {
        "headline": sentences(config, results), "note": config.note, "incomplete": results.incomplete,
        "tables": [(one.title, one.head, one.rows, one.meanings) for one in tables(config, results)],
        "versions": dict(results.versions), "arms": _marks(results.arms), "bands": _bands(results.bands),
    }  # fmt: skip
    # Shown side by side when the page opens: before RL and after.
    side_by_side = [names.index(name) for name in pair] if len(pair) == 2 and set(pair) <= set(names) else None
    return {**data, "title": config.title or results.name, "report": report, "side_by_side": side_by_side}


def _marks(arms: Sequence[Arm]) -> list[JsonRow]:
    marks = []
    for arm in arms:
        for solved in ([one.sampled for one in arm.seeds], [one.greedy for one in arm.seeds if one.greedy is not None]):
            if not solved:
                continue
            mean, bounds = solve_rate(solved)
            low, high = bounds or (None, None)
            marks.append({
                "arm": arm.name, "label": solved[0].decoding, "mean": mean, "values": [one.rate for one in solved],
                "low": low, "high": high,
            })  # fmt: skip
    return marks


def _bands(bands: Sequence[BandSeed]) -> JsonRow | None:
    return {"seeds": [{"seed": one.seed, "values": list(one.rates)} for one in bands]} if bands else None


def view(config: ViewConfig) -> int:
    """`rlt view`: write or serve the page of score files or of a run. Returns the exit status."""
    folders = [path for path in config.paths if (path / "recipe.yaml").is_file()]
    if folders and len(config.paths) > 1:
        raise ConfigError(f"rlt view: {folders[0]} is a run; give it alone, or score files without it.")

    def data() -> JsonRow:
        if not folders:
            return scores_data(config.paths, config.limit, config.id, config.seed)
        recipe = recipe_of_run(folders[0])
        reports = [step.config for step in recipe.steps if isinstance(step.config, ReportConfig)]
        report = reports[0] if reports else ReportConfig(output=folders[0])
        return page_data(report, recipe, collect_results(report, recipe), config.limit)

    if config.live:
        return serve_page(data, config.paths, config.port)
    write_page(config.output, data())
    print(f"view: {config.output}")
    return 0
