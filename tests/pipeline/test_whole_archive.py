"""An archive of two teachers from end to end: made, trained on from the parent's weights, measured, reported."""

import json

import pytest

from rlt.cli import main
from rlt.evolve.run import _claim
from rlt.evolve.worker import chains_of, work
from rlt.outputs import read_state
from rlt.recipe import load_recipe
from tests.pipeline.test_whole_rounds import GRPO, SFT


def written(folder, world):
    model, warm = world["model"], {"format": "words", "data": world["data"]}
    values = {
        "name": "a", "folder": str(folder),
        "defaults": {"evaluate": {"task": "arithmetic", "max_tokens": 8, "benchmark": "@heldout"}},
        "heldout": {"stage": "problems", "task": "arithmetic", "count": 4, "seed": 8},
        "warmup": {"model": model, **warm, "trainer": SFT},
        "train": {"model": "@warmup", "student": model, **warm, "trainer": GRPO, "placebos": 0},
        "screen": {"stage": "evaluate", "model": "@train", "limit": 2},
        "evaluate": {"model": "@train"},
        "evolve": {
            "children": 1, "arms": ["archive", "best"], "screen": "screen", "screen_quantile": 0,
            "search": {"train.kl_coef": {"low": 1.0, "high": 4.0}},
        },
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.slow
def test_an_archive_runs_from_end_to_end_and_is_reported(world, tmp_path, capsys):
    path = written(tmp_path, world)
    recipe = load_recipe(path)
    _claim(recipe)
    work(chains_of(recipe))
    child = chains_of(recipe)[0].archive.teachers()[1].draft
    teachers = tmp_path / "a" / "seed-0" / "teachers"
    # Both arms' first child has the first teacher for a parent, so it is one folder.
    assert sorted(path.name for path in teachers.iterdir() if path.name[0] != ".") == [child.id, "first"]
    trained = read_state(teachers / child.id / "train")["config"]
    assert trained["model"] == str(tmp_path / "a" / "seed-0" / "shared" / "warmup")
    assert trained["kl_coef"] == child.settings["train.kl_coef"] != 3.0
    assert main(["evolve", str(path)]) == 0  # complete: nothing is started
    assert "4 made before" in capsys.readouterr().out
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert [(row["arm"], row["number"], row["stage"]) for row in results["teachers"]] == [
        ("archive", 0, "full"), ("archive", 1, "full"), ("best", 0, "full"), ("best", 1, "full")]  # fmt: skip
    assert results["arms"]["archive"]["best_so_far"] == results["arms"]["best"]["best_so_far"]
    assert (tmp_path / "a" / "archive.svg").read_text().rstrip().endswith("</svg>")
    assert "best, seed 0: score of each teacher's students" in (tmp_path / "a" / "report.txt").read_text()
    assert main(["evolve", str(path), "--train.unclosed-penalty", "-2"]) == 2
    assert "`train.unclosed_penalty`" in capsys.readouterr().err
