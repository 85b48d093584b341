"""A recipe with feedback rounds from end to end: every step runs, a round is decided, and the report has its numbers."""

import json

import pytest

from rlt.pipeline import run_recipe
from rlt.recipe import build_recipe

SFT = {"max_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no"}
GRPO = {
    "max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 8, "temperature": 1.0,
    "save_strategy": "no", "sync_ref_model": False,
}  # fmt: skip


@pytest.mark.slow
def test_rounds_run_from_end_to_end_and_resume_after_a_cut(world, tmp_path):
    model, scored = world["model"], {"data": "@round{round}/explain", "student": "@round0/distill"}
    values = {
        "name": "r", "folder": str(tmp_path),
        "defaults": {
            "train": {"format": "words", "trainer": GRPO, "placebos": 0},
            "collect": {"format": "words", "max_tokens": 8, "temperature": 1.0},
            "distill": {"format": "words", "trainer": SFT}, "score": {"format": "words"},
            "evaluate": {"format": "words", "task": "arithmetic", "max_tokens": 8},
        },
        "test": {"stage": "problems", "task": "arithmetic", "count": 4, "seed": 9},
        "heldout": {"stage": "problems", "task": "arithmetic", "count": 4, "seed": 8, "exclude": ["@test"]},
        "rounds": {
            "count": 2,
            "initial": {
                "train": {"stage": "warmup", "model": model, "data": world["data"], "format": "words", "trainer": SFT},
                "distill": {"model": model, "data": world["data"]},
                "evaluate": {"model": "@round0/distill", "benchmark": "@heldout"},
            },
            "steps": {
                "train": {"model": "@round{previous}/train", "student": "@round{previous}/distill", "data": world["data"]},
                "collect": {"model": "@round{round}/train", "data": world["data"]},
                "distill": {"model": model, "data": {"path": world["data"]}},
                "evaluate": {"model": "@round{round}/distill", "benchmark": "@heldout"},
                "explain": {"stage": "collect", "model": "@round{round}/train", "data": "@heldout"},
                "score-frozen": {"stage": "score", "teacher": "@round{round}/train", **scored},
                "gain": {"model": "@round0/distill", "data": "@round{round}/explain", "scores": "@round{round}/score-frozen",
                         "heldout": "@test", "group": 1, "steps": 1},
            },
            "accept": {"patience": 1},
        },
        "final": {"stage": "evaluate", "model": "@best:model", "benchmark": "@test"},
        "report": {"task": "arithmetic"},
    }  # fmt: skip
    recipe = build_recipe(values, "r.yaml")
    run_recipe(recipe, only="problems")
    run_recipe(recipe, only="round0")  # cut here
    assert run_recipe(recipe) == 0
    folder = tmp_path / "r"
    # Students that learned the same, greedily decoded, solve the same: rejected, and with a patience of 1 that is the end.
    assert not (folder / "round2").exists()
    assert (folder / "best" / "model" / "model.safetensors").is_file()
    results = json.loads((folder / "results.json").read_text())
    assert [one["round"] for one in results["rounds"]] == [0, 1]
    assert results["rounds"][1]["decision"]["accepted"] is False
    assert {
        "solved",
        "score-frozen: reward",
        "gain: correlation",
        "words",
        "distinct_2",
        "copying",
        "leak_rate",
    } <= results["rounds"][1].keys()
    assert results["incomplete"] == []
    assert (folder / "rounds.svg").is_file()
