"""Running a recipe: what is complete is skipped, what another recipe made is refused, what was made from it goes with it."""

import dataclasses
import re
import time

import pytest

from rlt import pipeline, progress
from rlt.errors import RunError
from rlt.outputs import Result, begin
from rlt.pipeline import run_recipe
from rlt.recipe import Timing, build_recipe
from tests.processes import another_process_writing

STEPS = {
    "heldout": {"stage": "problems", "task": "arithmetic", "count": 2, "seed": 9},
    "corpus": {"stage": "problems", "task": "arithmetic", "count": 3, "exclude": ["@heldout"]},
    "more": {"stage": "problems", "task": "arithmetic", "count": 3, "exclude": ["@corpus"]},
}


def recipe(folder, steps=None, **head):
    return build_recipe({"name": "r", "folder": str(folder), **head, **(steps or STEPS)}, "r.yaml")


def steps_with(name, **keys):
    return {**STEPS, name: {**STEPS[name], **keys}}


@pytest.fixture
def ran(monkeypatch):
    """The outputs, below the run's folder, of the steps that are run from here on."""
    outputs = []

    def recorded(stage, config):
        outputs.append(str(config.output).partition("/r/")[2])
        return run_stage(stage, config)

    run_stage = pipeline.run_stage
    monkeypatch.setattr(pipeline, "run_stage", recorded)
    return outputs


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- again -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_a_second_run_runs_nothing_and_changes_nothing(tmp_path, ran, seeds):
    assert run_recipe(recipe(tmp_path, seeds=seeds)) == 0
    assert len(ran) == 3 * len(seeds)
    before = files(tmp_path)
    assert run_recipe(recipe(tmp_path, seeds=seeds)) == 0
    assert len(ran) == 3 * len(seeds)
    assert files(tmp_path) == before


def pretend(recipe, **metrics):
    """Leave what each step would leave, without running it."""
    recipe.folder.mkdir(parents=True)
    (recipe.folder / "recipe.yaml").write_text(recipe.dump())
    for step in recipe.steps:
        if step.stage != "report":
            folder = begin(step.stage, step.config)
            step.config.output.touch()
            folder.finish(metrics)


def test_a_complete_step_is_not_even_asked(tmp_path, ran):
    """Stages look at models and data before they look whether they are complete: those may be gone, or out of reach."""
    made = recipe(tmp_path, {"warmup": {"model": "gone", "data": "gone.jsonl", "launch": "ddp"}, "report": {}})
    pretend(made)
    assert run_recipe(made) == 0
    assert ran == [""]  # the report alone, in the run's own folder


def test_the_exit_status_of_a_complete_step_is_told_again(tmp_path):
    made = recipe(tmp_path)
    pretend(made, exit_status=1)
    assert run_recipe(made) == 1


def test_a_complete_file_that_is_gone_is_made_again(tmp_path, ran):
    run_recipe(recipe(tmp_path))
    (tmp_path / "r" / "more.jsonl").unlink()
    run_recipe(recipe(tmp_path))
    assert ran == ["heldout.jsonl", "corpus.jsonl", "more.jsonl", "more.jsonl"]


def test_a_step_added_and_a_step_not_yet_run_may_change(tmp_path, ran):
    run_recipe(recipe(tmp_path), only="heldout")
    run_recipe(recipe(tmp_path, steps_with("corpus", count=4) | {"last": STEPS["heldout"] | {"seed": 3}}))
    assert ran == ["heldout.jsonl", "corpus.jsonl", "more.jsonl", "last.jsonl"]


def test_seeds_may_be_added_to_several(tmp_path, ran):
    run_recipe(recipe(tmp_path, {"heldout": STEPS["heldout"]}, seeds=[0, 1]))
    run_recipe(recipe(tmp_path, {"heldout": STEPS["heldout"]}, seeds=[0, 1, 2]))
    assert ran == ["seed-0/heldout.jsonl", "seed-1/heldout.jsonl", "seed-2/heldout.jsonl"]


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_a_run_whose_folder_was_renamed_and_moved_resumes(tmp_path, ran, seeds):
    run_recipe(recipe(tmp_path, seeds=seeds))
    (tmp_path / "r" / ("more.jsonl" if len(seeds) == 1 else "seed-0/more.jsonl")).unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "r").rename(tmp_path / "elsewhere" / "s")
    before = len(ran)
    again = recipe(tmp_path / "elsewhere", seeds=seeds, name="s")
    assert run_recipe(again) == 0
    assert len(ran) == before + 1  # the step whose output was gone
    changed = recipe(tmp_path / "elsewhere", steps_with("more", count=9), seeds=seeds, name="s")
    with pytest.raises(RunError, match="more `count`: 3 there, 9 now"):
        run_recipe(changed)


def test_the_numbers_of_complete_steps_are_told_again(tmp_path, capsys):
    run_recipe(recipe(tmp_path))
    capsys.readouterr()
    run_recipe(recipe(tmp_path))
    assert re.search(r"already complete: seed 0 corpus: done in \d+\.\d s \(problems 3\)", capsys.readouterr().out)


# -- another recipe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "other", "message"),
    [
        ([0, 1, 2], {"seeds": [0]}, "made with a different recipe: `seeds`: [0, 1, 2] there, [0] now. Keep it"),
        ([0, 1, 2], {"seeds": [0, 1]}, "`seeds`: [0, 1, 2] there, [0, 1] now"),
        ([0], {"seeds": [0, 1]}, "`seeds`: [0] there, [0, 1] now"),
        ([0], {"steps": {"heldout": STEPS["heldout"]}}, "steps that are not in this recipe: corpus, more"),
        ([0], {"steps": steps_with("corpus", count=4)}, "corpus `count`: 3 there, 4 now"),
        ([0], {"steps": steps_with("corpus", options={"steps": [2, 3]})}, "corpus `options.steps`: None there, [2, 3]"),
    ],
)
@pytest.mark.parametrize("only", [None, "heldout"])
def test_a_run_is_not_taken_over_by_another_recipe(tmp_path, seeds, other, message, only):
    run_recipe(recipe(tmp_path, seeds=seeds))
    before = files(tmp_path)
    with pytest.raises(RunError) as caught:
        run_recipe(recipe(tmp_path, **{"seeds": seeds, **other}), only=only)
    assert message in str(caught.value)
    assert "--name r-2" in str(caught.value)
    assert "--restart" in str(caught.value)
    assert files(tmp_path) == before


def test_one_seed_of_three_is_a_fresh_run_elsewhere(tmp_path, ran):
    run_recipe(recipe(tmp_path, seeds=[0, 1, 2]), only="heldout")
    run_recipe(recipe(tmp_path, seeds=[0], name="s"), only="heldout")
    assert (tmp_path / "s" / "heldout.jsonl").is_file()


def test_starting_over_removes_what_the_other_recipe_made(tmp_path):
    run_recipe(recipe(tmp_path, seeds=[0, 1]))
    run_recipe(recipe(tmp_path, {"heldout": STEPS["heldout"]}), restart=True)
    left = {str(path.relative_to(tmp_path / "r")) for path in files(tmp_path / "r")}
    assert left == {"recipe.yaml", "heldout.jsonl", "heldout.jsonl.stage.json"}


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="not a run of rlt"):
        run_recipe(recipe(tmp_path), restart=True)
    assert [path.name for path in files(tmp_path)] == ["mine.txt"]


# -- one step anew -----------------------------------------------------------------------------------------------------


def test_what_was_made_from_a_step_that_starts_over_goes_with_it(tmp_path, ran, capsys):
    run_recipe(recipe(tmp_path))
    run_recipe(recipe(tmp_path, steps_with("corpus", count=5)), restart=True, only="corpus")
    assert ran[3:] == ["corpus.jsonl"]
    assert not (tmp_path / "r" / "more.jsonl").exists()
    assert not (tmp_path / "r" / "more.jsonl.stage.json").exists()
    said = capsys.readouterr().out
    assert "removed: corpus, more" in said
    assert "the next `rlt run` runs it again: more" in said
    run_recipe(recipe(tmp_path, steps_with("corpus", count=5)))
    assert ran[3:] == ["corpus.jsonl", "more.jsonl"]


def test_what_was_made_from_a_folder_deleted_by_hand_is_refused_before_it_is_made_again(tmp_path, ran):
    run_recipe(recipe(tmp_path))
    (tmp_path / "r" / "corpus.jsonl").unlink()
    with pytest.raises(
        RunError, match=r"more its input .*corpus\.jsonl has been regenerated or removed since.*--only STEP"
    ):
        run_recipe(recipe(tmp_path))
    run_recipe(recipe(tmp_path), restart=True, only="corpus")
    run_recipe(recipe(tmp_path))
    assert ran[3:] == ["corpus.jsonl", "more.jsonl"]


def test_a_step_alone_needs_its_inputs(tmp_path):
    with pytest.raises(RunError, match=r"more: its input `corpus` is not complete.*--only corpus"):
        run_recipe(recipe(tmp_path), only="more")
    assert not (tmp_path / "r").exists()


def test_several_steps_alone(tmp_path, ran):
    run_recipe(recipe(tmp_path), only="more, heldout, corpus")  # in the recipe's order
    assert ran == ["heldout.jsonl", "corpus.jsonl", "more.jsonl"]
    with pytest.raises(RunError, match="unknown step `mroe`; steps are"):
        run_recipe(recipe(tmp_path), only="corpus,mroe")


def test_a_step_that_another_process_writes_is_not_removed(tmp_path):
    run_recipe(recipe(tmp_path), only="heldout")
    before = files(tmp_path)
    with another_process_writing(tmp_path / "r" / "heldout.jsonl") as pid:
        for again in ({"restart": True}, {"restart": True, "only": "heldout"}):
            with pytest.raises(RunError, match=f"heldout.jsonl: process {pid} on .* is writing it"):
                run_recipe(recipe(tmp_path), **again)
    assert files(tmp_path).items() >= before.items()
    run_recipe(recipe(tmp_path), restart=True)  # what a killed process leaves is no lock


# -- words -------------------------------------------------------------------------------------------------------------


def test_every_step_says_when_it_begins_and_ends_reports_too(tmp_path, capsys):
    run_recipe(recipe(tmp_path, {"heldout": STEPS["heldout"], "report": {}}))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.partition(" in ")[0] for line in lines] == [
        "[0:00 0/2] seed 0 heldout ...",
        "[0:00 1/2] seed 0 heldout: done",
        "[0:00 1/2] report ...",
        "[0:00 2/2] report: done",
    ]


def test_a_silent_step_says_that_it_still_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "HEARTBEAT", 0.01)
    monkeypatch.setattr(pipeline, "run_stage", lambda stage, config: time.sleep(0.2) or Result(config.output, {}))
    run_recipe(recipe(tmp_path, {"heldout": STEPS["heldout"]}))
    assert "] running: seed 0 heldout (0 s)" in capsys.readouterr().out


def test_the_time_left_is_said_with_a_table_and_not_without(tmp_path, capsys, monkeypatch):
    times = iter(range(0, 1000, 10))
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: float(next(times)))
    made = recipe(tmp_path, {"heldout": STEPS["heldout"], "last": {**STEPS["heldout"], "seed": 8}})
    timings = {"heldout": Timing(seconds=100), "last": Timing(seconds=60)}
    said = []
    for table in ({}, timings):
        shown = progress.Progress(made.steps, dataclasses.replace(made, timings=table))
        shown.begin(made.steps[0])
        said.append(capsys.readouterr().out)
    assert said == ["[0:20 0/2] seed 0 heldout ...\n", "[0:20 0/2, about 2:30 left] seed 0 heldout ...\n"]


def test_the_recipe_that_a_run_keeps_has_every_default(tmp_path):
    run_recipe(recipe(tmp_path), only="heldout")
    kept = (tmp_path / "r" / "recipe.yaml").read_text()
    assert "experts: null" in kept
    assert "- '@heldout'" in kept
