"""A teacher for your own problems. Usage: own_teacher.py [FOLDER]

What `rlt init FILE`, `rlt check` and `rlt run` do, with a file of 60 problems under column names of its own and a shipped tiny
model. For your own: `rlt init your-file.jsonl`, and no --model, for the largest that fits your GPU.
"""

import json
import sys
from pathlib import Path

from rlt.catalog import FOLDER
from rlt.checking import check_steps, table
from rlt.config import ProblemsConfig
from rlt.drafting import InitConfig, init
from rlt.pipeline import run_recipe
from rlt.recipe import load_recipe
from rlt.stages import problems

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own-teacher")
made, mine, recipe_file = folder / "made.jsonl", folder / "mine.jsonl", folder / "mine.yaml"

# Somebody's file: problems with worked solutions and explanations, in columns of other names.
problems.run(ProblemsConfig(task="arithmetic", count=60, experts="noisy", output=made))
names = {"question": "prompt", "solution": "output", "answer": "final_answer", "explanation": "reasoning"}
rows = [json.loads(line) for line in made.read_text().splitlines()]
mine.write_text("".join(json.dumps({theirs: row[ours] for ours, theirs in names.items()}) + "\n" for row in rows))

# Columns, held-out rows, lengths, batches: chosen and said.
model = str(FOLDER / "quickstart" / "bases" / "0")
recipe_file.unlink(missing_ok=True)
print("\n".join(init(InitConfig(data=str(mine), output=recipe_file, model=model, hours=1))))

# Any key can be overridden, as on the command line: --train.trainer.max-steps 2.
short = {"trainer": {"max_steps": 2}}
steps = dict.fromkeys(("warmup", "student", "train", "distill"), short)
recipe = load_recipe(recipe_file, {"folder": str(folder / "runs"), **steps})
checked = check_steps(recipe, recipe.steps)
assert not checked.problems, checked.problems
print(table(recipe, checked))
sys.exit(run_recipe(recipe))
