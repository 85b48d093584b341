"""A student judged against one that learned from the original explanations. Usage: judge_students.py [FOLDER]

Two students from the same start, with the same settings and questions; only the explanations differ. The originals are by
experts who mostly skip steps; careful experts stand in for a trained teacher here. For your own: files of explanations in place
of both.
"""

import json
import sys
from pathlib import Path

from rlt.catalog import FOLDER
from rlt.pipeline import run_recipe
from rlt.recipe import build_recipe

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/judge-students")
recipe = build_recipe(
    {
        "name": "judged",
        "folder": str(folder),
        "defaults": {"evaluate": {"task": "arithmetic", "max_tokens": 44}},
        "heldout": {"stage": "problems", "task": "arithmetic", "count": 60, "seed": 900},
        "originals": {
            "stage": "problems",
            "task": "arithmetic",
            "count": 256,
            "experts": "hardest",
            "exclude": ["@heldout"],
        },
        "taught": {
            "stage": "problems",
            "task": "arithmetic",
            "count": 256,
            "experts": "careful",
            "exclude": ["@heldout"],
        },
        "distill": {
            "model": str(FOLDER / "quickstart" / "bases" / "0"),
            "trainer": {
                "max_steps": 20,
                "learning_rate": 1e-3,
                "per_device_train_batch_size": 32,
                "save_strategy": "no",
            },
            "each": {"original": {"data": "@originals"}, "teacher": {"data": "@taught"}},
        },
        "evaluate": {
            "each": "@distill",
            "model": "@distill/{each}",
            "benchmark": "@heldout",
            "samples": 4,
            "temperature": 0.7,
        },
        "report": {
            "arms": {"original": "the original explanations", "teacher": "the teacher's"},
            "headline": ["teacher", "original"],
        },
    },
    "judge_students.py",
)
status = run_recipe(recipe)
arms = json.loads((recipe.folder / "results.json").read_text())["arms"]
for name, arm in arms.items():
    print(f"{name}: {arm['seeds'][0]['solve_rate_t07']:.3f} of the held-out problems")
sys.exit(status)
