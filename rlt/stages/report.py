"""Report a run from its files: results.json, report.html, figures, tables and sentences."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rlt.config import ReportConfig
from rlt.data.rows import write_text
from rlt.errors import RunError
from rlt.outputs import Result
from rlt.recipe import Recipe, recipe_of_run
from rlt.results import dots
from rlt.results.page import page_data
from rlt.results.rounds import write_figure
from rlt.results.summary import collect_results
from rlt.results.view.page import write_page
from rlt.results.words import seed_report, terminal_report


def run(config: ReportConfig) -> Result:
    """`results.json`, `report.html` and figures (with `suffix`) in the run's folder; prints the same numbers.

    Always rewritten from the outputs of the steps. Incomplete steps are named and left out.
    """
    started = time.monotonic()
    recipe = _recipe(config)
    results = collect_results(config, recipe)
    folder = Path(config.output)
    numbers, page = folder / f"results{config.suffix}.json", folder / f"report{config.suffix}.html"
    write_text(numbers, json.dumps(results.to_json(), indent=1, ensure_ascii=False) + "\n")
    write_page(page, page_data(config, recipe, results))
    print(f"\n{config.title}\n" if config.suffix and config.title else "")
    print(terminal_report(config, results))
    print(f"\nPage: {page}\nNumbers: {numbers}", flush=True)
    if results.arms or results.rankings:
        drawn = dots.write_figure(folder / f"students{config.suffix}.svg", results.arms, results.rankings)
        print(f"Figure: {drawn}", flush=True)
    if results.rounds:
        print(f"Figure: {write_figure(folder / f'rounds{config.suffix}.svg', results.rounds)}", flush=True)
    if results.sweep:
        print(f"Figure: {results.sweep.write_figure(folder / f'sweep{config.suffix}.svg')}", flush=True)
    return Result(folder, {"report": str(page), "seconds": time.monotonic() - started})


def seed_table(config: ReportConfig, seed: int) -> str:
    """The main table of one seed, printed when the seed is complete."""
    return seed_report(config, collect_results(config, _recipe(config), only=seed))


def _recipe(config: ReportConfig) -> Recipe:
    if not (config.output / "recipe.yaml").is_file():
        raise RunError(f"{config.output}: no recipe.yaml; not the folder of a run. Use `rlt report RECIPE`.")
    return recipe_of_run(config.output)
