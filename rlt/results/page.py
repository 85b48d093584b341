"""report.html: the report's tables, sentences and pictures, and the same questions explained before and after RL."""

from __future__ import annotations

from importlib import resources

from rlt.config import ReportConfig
from rlt.data.rows import read_rows
from rlt.outputs import read_state
from rlt.recipe import Recipe
from rlt.results.figures import pictures
from rlt.results.summary import Results
from rlt.results.words import sentences, tables

SHOWN = 5
"""Questions whose explanations before and after RL are shown."""


def report_page(config: ReportConfig, recipe: Recipe, results: Results) -> str:
    """The page as HTML. Everything is escaped but our own pictures."""
    import jinja2
    import markupsafe

    template = (resources.files("rlt") / "shipped" / "report.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    return page.render(
        title=config.title or results.name, description=results.description, note=config.note,
        sentences=sentences(config, results), tables=tables(config, results),
        pictures=[(caption, markupsafe.Markup(svg)) for caption, svg in pictures(config, recipe, results)],
        explained=_explained_twice(config, recipe), seconds=results.seconds, versions=results.versions,
        incomplete=results.incomplete, recipe=recipe.dump(),
    )  # fmt: skip


def _explained_twice(config: ReportConfig, recipe: Recipe) -> list[dict[str, str]]:
    """The first held-out questions with the explanations of the first seed's teacher before and after RL."""
    if len(config.teachers) != 2 or config.explained is None:
        return []
    steps = {step.name: step for step in recipe.of_seed(recipe.head.seeds[0])}
    sides = []
    for variant in config.teachers:
        step = steps.get(f"{config.explained}/{variant}")
        if step is None or not (read_state(step.config.output) or {}).get("complete"):
            return []
        sides.append({row["question"]: row for _, row in read_rows(step.config.output)})
    before, after = sides
    return [
        {"question": question, "solution": row["solution"], "before": row["explanation"],
         "after": after[question]["explanation"]}
        for question, row in before.items() if question in after
    ][:SHOWN]  # fmt: skip
