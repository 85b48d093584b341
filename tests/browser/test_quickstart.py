"""The page of the quickstart itself, with two training steps a stage: what its files say is what the page shows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlt.data.rows import read_rows
from rlt.reward.tokens import unpacked

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart" / "recipe.yaml"
SHORT = {
    "heldout.count": 40, "corpus.count": 600, "collect.data.limit": 64, "student.trainer.max_steps": 2,
    "warmup.trainer.max_steps": 2, "train.trainer.max_steps": 2, "train.trainer.per_device_train_batch_size": 32,
    "distill.trainer.max_steps": 2,
}  # fmt: skip
SOLUTION, EXPLANATION = '[aria-label="Solution\'s tokens"] .tok', '[aria-label="Explanation\'s tokens"]'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    command = [
        sys.executable,
        "-m",
        "rlt.cli",
        "run",
        str(RECIPE),
        "--folder",
        str(folder),
        "--seeds",
        "0",
        "--jobs",
        "1",
    ]
    command += [part for key, value in SHORT.items() for part in (f"--{key}", str(value))]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder / "quickstart"


def test_it_begins_with_the_arms_and_shows_the_recipe(show, run):
    page = show(run / "report.html")
    assert page.locator("main h2").first.inner_text() == "Students: share of held-out problems solved"
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results
    page.get_by_role("button", name="Recipe", exact=True).click()
    assert "name: quickstart" in page.locator("main").inner_text()


def test_a_held_out_explanations_tokens_have_the_numbers_of_its_file(show, run):
    _, row = next(iter(read_rows(run / "score-heldout" / "before.jsonl")))  # the first with this id
    page = show(run / "report.html", f"#row={row['id']}")
    page.locator(SOLUTION).nth(0).hover()
    own, rank = unpacked(row["tokens"]["log_probs"])[0], row["tokens"]["solution_ranks"][0]
    tip = page.locator("#tip").inner_text().replace("−", "-").split("\n")
    shown = dict(zip(tip[1::2], tip[2::2], strict=False))
    assert float(shown["with this explanation"]) == pytest.approx(float(own), abs=6e-4)
    assert shown["rank for the student"] == str(rank)
    first = page.locator(EXPLANATION).first  # before RL; after it stands next to it
    assert first.locator(".tok").count() == len(row["tokens"]["explanation"])
