"""Score ten explanations and look at them. Usage: score_ten.py [FOLDER]

Ten problems of chained arithmetic, explained by experts of whom half skip most steps; a shipped tiny model is student and
teacher. For your own: any file with question, solution and explanation, and your models' folders or hub names.
"""

import json
import sys
from pathlib import Path

from rlt.catalog import FOLDER
from rlt.config import ProblemsConfig, ScoreConfig, ViewConfig
from rlt.results.page import view
from rlt.stages import problems, score

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/score-ten")
model = str(FOLDER / "quickstart" / "bases" / "0")  # it can calculate, and has read such explanations
data, scores = folder / "explanations.jsonl", folder / "scores.jsonl"

problems.run(ProblemsConfig(task="arithmetic", count=10, experts="hardest", output=data))
score.run(
    ScoreConfig(
        student=[model],
        teacher=model,
        data=data,
        output=scores,
        format="words",  # what this model was trained with; `rlt score` reads that from the model's folder
        preset="paper",  # the formula as printed: temperature 1, exact KL
        placebos=True,  # would an empty explanation, or another question's, do as well?
        tokens=True,  # for the page
    )
)

rows = sorted(map(json.loads, scores.read_text().splitlines()), key=lambda row: -row["reward"])
texts = {row["id"]: row["explanation"] for row in map(json.loads, data.read_text().splitlines())}
for row in rows:
    print(f"{row['reward']:7.2f}  lift {row['lift_over_empty']:6.2f}  {texts[row['id']][:60]}")
view(ViewConfig(paths=[scores], output=folder / "page.html"))
