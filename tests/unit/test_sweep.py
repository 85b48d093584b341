"""A report over several arms: one setting swept, and the steps of RL until a level is reached."""

import pytest

from rlt.config import ReachesConfig, ReportConfig, SweepConfig
from rlt.data.rows import write_rows
from rlt.errors import ConfigError
from rlt.outputs import begin
from rlt.recipe import build_recipe
from rlt.recipe.reports import check_report
from rlt.results.rounds import Round
from rlt.results.summary import collect_results
from rlt.results.sweep import Sweep, reached_of, reaches
from rlt.results.words import terminal_report
from rlt.stages import report


def curve(*values: float) -> list[dict[str, float]]:
    return [{"step": step, "correct": value} for step, value in enumerate(values, 1)]


def test_a_level_is_reached_by_the_mean_of_five_steps() -> None:
    # The mean of steps 2 to 6 is (0.6 + 4 * 0.9) / 5 = 0.84; that of 1 to 5 is 0.66.
    assert reaches(curve(0.0, 0.6, 0.9, 0.9, 0.9, 0.9), "correct", 0.8) == (6, pytest.approx(0.84))


def test_one_easy_batch_does_not_reach_it() -> None:
    assert reaches(curve(1.0, 0.1, 0.1, 0.1, 0.1, 0.1), "correct", 0.8) == (None, pytest.approx(0.1))


def test_steps_that_log_something_else_do_not_count() -> None:
    assert reaches([{"step": 1, "loss": 0.1}], "correct", 0.8) is None
    assert reaches([*curve(*5 * [1.0]), {"step": 6, "train_runtime": 2.0}], "correct", 0.8) == (5, 1.0)


RECIPE = {
    "name": "r", "seeds": [0, 1],
    "evaluate": {"each": {"none": {"model": "m"}, "some": {"model": "m"}}, "benchmark": "f.jsonl"},
    "collect": {"each": {"none": {"model": "m"}, "some": {"model": "m"}}, "data": "f.jsonl"},
    "coldstart": {"each": {"base": {"model": "m"}, "rlt": {"model": "m"}}, "data": "f.jsonl"},
}  # fmt: skip
SWEEP = SweepConfig(setting="kl_coef", arms={"none": 0.0, "some": "some KL"}, explained="collect")


def complete(tmp_path):
    """Two seeds of evaluate, collect and coldstart as the stages leave them."""
    recipe = build_recipe(RECIPE | {"folder": str(tmp_path)}, "r.yaml")
    for step in recipe.steps:
        folder = begin(step.stage, step.config)
        if folder.result:
            continue
        rate = {"none": 0.25, "some": 0.75}.get(step.name.split("/")[1], 0.0) + 0.05 * step.seed
        if step.stage == "evaluate":
            row = {"questions": 4, "samples": 1, "pass@1": rate, "standard_error": None, "interval": None}
            folder.finish({"benchmarks": {"f": row}, "temperature": 0.7, "top_p": 1.0})
        elif step.stage == "collect":
            write_rows(
                folder.path / "shard-00000.jsonl",
                [{"question": "1 a + 2 ?", "solution": "3", "explanation": "so 3 a + 2 3"}],
            )
            folder.finish({})
        else:
            write_rows(folder.path / "metrics.jsonl", curve(*6 * [0.9 if step.name.endswith("rlt") else 0.1]))
            folder.finish({})
    return recipe


@pytest.mark.parametrize("change", [{"arms": {"none": 0, "sone": 1}}, {"explained": "colect"}])
def test_an_arm_or_step_that_is_not_there_is_named(change) -> None:
    config = ReportConfig(output="r", sweep=SWEEP.model_copy(update=change))
    expanded = {f"{stage}/{arm}": {"stage": stage} for stage in ("evaluate", "collect") for arm in ("none", "some")}
    with pytest.raises(ConfigError, match=r"sone|colect"):
        check_report(config, expanded, "report")


def test_points_are_in_the_order_of_the_recipe(tmp_path) -> None:
    recipe = complete(tmp_path)
    config = ReportConfig(output=tmp_path, sweep=SWEEP, task="arithmetic")
    sweep = collect_results(config, recipe).sweep
    assert sweep is not None
    assert sweep.values == (0.0, "some KL")
    assert [(one.seed, one.number, one.measures["solved"]) for one in sweep.points] == [
        (0, 0, 0.25), (0, 1, 0.75), (1, 0, pytest.approx(0.3)), (1, 1, pytest.approx(0.8)),
    ]  # fmt: skip
    assert all(one.measures["leak_rate"] == 1.0 for one in sweep.points)
    said = terminal_report(config, collect_results(config, recipe))
    assert "Students and explanations by kl_coef" in said


def test_a_report_draws_its_students_and_its_sweep(tmp_path, capsys) -> None:
    recipe = complete(tmp_path)
    (tmp_path / "r" / "recipe.yaml").write_text(recipe.dump())
    report.run(ReportConfig(output=tmp_path / "r", arms=["evaluate/none", "evaluate/some"], sweep=SWEEP, suffix="-b"))
    said = capsys.readouterr().out.split()
    for name in ("students-b.svg", "sweep-b.svg"):
        assert (tmp_path / "r" / name).read_text().startswith("<svg")
        assert str(tmp_path / "r" / name) in said


def test_the_figure_names_the_values_under_its_points(tmp_path) -> None:
    points = tuple(Round(0, number, {"solved": number / 2}) for number in range(3))
    drawn = Sweep("kl_coef", (0.0, 0.3, "ten"), points).write_figure(tmp_path / "sweep.svg").read_text()
    assert all(f'text-anchor="middle">{value}</text>' in drawn for value in ("0", "0.3", "ten"))


def test_each_variant_has_the_step_of_each_seed(tmp_path) -> None:
    recipe = complete(tmp_path)
    config = ReachesConfig(step="coldstart", level=0.8)
    base, rlt = reached_of(config, recipe, [0, 1])
    assert (base.variant, base.steps, rlt.steps) == ("base", {0: None, 1: None}, {0: 5, 1: 5})
    report = ReportConfig(output=tmp_path, reaches=config)
    lines = [line.split() for line in terminal_report(report, collect_results(report, recipe)).splitlines()]
    assert ["base", "(0.10)", "(0.10)", "0"] in lines
    assert ["rlt", "5", "5", "2"] in lines
