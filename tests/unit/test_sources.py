"""Scored rows by their source, in the summary of `rlt score`, in the report and on the page."""

from __future__ import annotations

from rlt.config import ReportConfig
from rlt.outputs import begin
from rlt.recipe import build_recipe
from rlt.results.sources import MOST, by_source, cells, mean_over_seeds
from rlt.results.summary import collect_results
from rlt.results.words import tables

ROWS = [
    ("maths", True, {"reward": -1.0, "lift_over_empty": 2.0}),
    ("code", False, {"reward": -4.0, "lift_over_empty": None}),
    ("maths", False, {"reward": -2.0, "lift_over_empty": 3.0}),
    ("code", True, {"reward": None, "error": "too long"}),
]


def test_each_source_has_its_means_and_its_share_of_unclosed_explanations():
    assert by_source(ROWS) == {
        "maths": {"rows": 2, "unclosed": 0.5, "reward": -1.5, "lift_over_empty": 2.5},
        "code": {"rows": 1, "unclosed": 1.0, "reward": -4.0},
    }


def test_one_source_is_no_mixture_and_a_column_of_addresses_names_no_sources():
    assert by_source(row for row in ROWS if row[0] == "maths") == {}
    assert by_source((f"https://{i}", True, {"reward": 1.0}) for i in range(MOST + 1)) == {}


def test_a_number_that_a_source_has_not_is_a_dash():
    head, rows = cells(by_source(ROWS))
    assert head == ["source", "rows", "unclosed", "reward", "lift_over_empty"]
    assert rows == [["maths", "2", "0.500", "-1.500", "2.500"], ["code", "1", "1.000", "-4.000", "-"]]


def test_rows_of_seeds_are_added_and_their_means_are_averaged():
    seeds = [{"a": {"rows": 2, "reward": 1.0}}, {"a": {"rows": 4, "reward": 3.0}}]
    assert mean_over_seeds(seeds) == {"a": {"rows": 6, "reward": 2.0}}


def test_the_report_has_a_table_of_the_sources_of_each_score_step(tmp_path):
    values = {"name": "r", "folder": str(tmp_path), "score": {"student": "m", "data": "d.jsonl"}, "report": {}}
    recipe = build_recipe(values, "r.yaml")
    begin("score", recipe.steps[0].config).finish({"by_source": by_source(ROWS)})
    (recipe.steps[0].config.output).write_text("")
    config = ReportConfig(output=tmp_path)
    results = collect_results(config, recipe)
    assert results.to_json()["sources"] == {"score": by_source(ROWS)}
    table = tables(config, results)[-1]
    assert table.rows[0] == ["maths", "2", "0.500", "-1.500", "2.500"]
    assert [name for name, _ in table.meanings] == ["unclosed", "reward", "lift over empty"]
