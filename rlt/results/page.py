"""The page of a run, as data for `rlt.results.view`: what its steps left, and the report's numbers, tables and sentences."""

from __future__ import annotations

from statistics import fmean

from rlt.config import ReportConfig
from rlt.recipe import Recipe
from rlt.results.intervals import mean_with_interval
from rlt.results.summary import Arm, BandSeed, Results, Solved, collect_results
from rlt.results.view.run import run_data
from rlt.results.words import sentences, tables
from rlt.types import JsonRow

# Rows of scores, and as many samples of training, on the page of a run.
PAGE_ROWS = 200


def page_data(config: ReportConfig, recipe: Recipe, limit: int = PAGE_ROWS) -> JsonRow:
    """What `rlt.results.view` shows of a run."""
    results = collect_results(config, recipe)
    report: JsonRow = {
        "headline": sentences(config, results), "note": config.note, "incomplete": results.incomplete,
        "tables": [(table.title, table.head, table.rows) for table in tables(config, results)],
        "versions": results.versions, "arms": _arms(config, results), "bands": _bands(results.bands),
    }  # fmt: skip
    data = run_data(recipe, limit)
    names = [source["name"] for source in data["sources"]]
    pair = [f"{config.scored}/{variant}, seed {recipe.head.seeds[0]}" for variant in config.teachers]
    # Before RL and after it: what stands side by side when the page opens.
    side_by_side = [names.index(name) for name in pair] if len(pair) == 2 and set(pair) <= set(names) else None
    return {**data, "title": config.title or results.name, "report": report, "side_by_side": side_by_side}


def _arms(config: ReportConfig, results: Results) -> list[JsonRow]:
    return [
        mark
        for arm in results.arms
        if arm.name not in config.bands
        for mark in (_mark(arm, [one.sampled for one in arm.seeds]), _mark(arm, [one.greedy for one in arm.seeds]))
        if mark is not None
    ]


def _mark(arm: Arm, solved: list[Solved | None]) -> JsonRow | None:
    """One line of the picture of arms: its seeds' rates, their mean and 95 % interval."""
    known = [one for one in solved if one is not None]
    if not known:
        return None
    rates = [one.rate for one in known]
    estimate = mean_with_interval(rates)
    return {
        "arm": arm.name, "label": known[0].decoding, "mean": fmean(rates), "values": rates,
        "low": None if estimate.low is None else max(0.0, estimate.low),
        "high": None if estimate.high is None else min(1.0, estimate.high),
    }  # fmt: skip


def _bands(bands: tuple[BandSeed, ...]) -> JsonRow | None:
    if not bands:
        return None
    label = bands[0].solved[0].decoding
    return {"label": label, "seeds": [{"seed": one.seed, "values": one.rates} for one in bands]}
