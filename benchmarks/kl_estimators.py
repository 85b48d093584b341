"""How the variance of the KL estimates differs: `k1` and `k3` from one sampled token, `exact` from distributions.

    python benchmarks/kl_estimators.py

A tiny teacher samples explanations; the student is the teacher's weights with noise, so that divergences are
small, as in training. For each estimate of an explanation's mean KL: its mean and deviation over samples, and that
relative to that of `exact`, which only varies because the sampled texts do. Writes `results/kl_estimators.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import plain
import torch

from rlt.config import RewardOptions
from rlt.engines.base import Request, Sampling
from rlt.engines.hf import HfEngine
from rlt.outputs import versions
from rlt.reward.scoring import RewardEngine
from rlt.text.formats import teacher_prompt

RESULTS = Path(__file__).parent / "results" / "kl_estimators.json"


def main() -> None:
    """Sample, estimate, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512, help="explanations of one question")
    arguments = parser.parse_args()
    engine, items = plain.miniature(1)
    student, teacher = engine.students[0], engine.teacher
    torch.manual_seed(0)
    with torch.no_grad():
        pairs = zip(student.model.parameters(), teacher.model.parameters(), strict=True)
        for ours, theirs in pairs:
            ours.copy_(theirs + 0.1 * theirs.std() * torch.randn_like(theirs))
    problem, fmt = items[0].problem, engine.fmt
    prompt = teacher_prompt(fmt, teacher.tokenizer, problem)
    requests = [Request(str(i), prompt, seed=i) for i in range(arguments.samples)]
    written = HfEngine.of(teacher.model, teacher.tokenizer).generate(requests, Sampling(32, temperature=1.0))
    rows = [fmt.completed(problem, completion.text) for completion in written]
    table = {}
    for estimator in ("exact", "k1", "k3"):
        options = RewardOptions(estimator=estimator, score_temperature=1.0)
        scored = RewardEngine([student], fmt, options, teacher).score(rows)
        means = [row.parts.explanation_kl_mean for row in scored if row.parts.explanation_kl_mean is not None]
        largest = [row.parts.explanation_kl_max for row in scored if row.parts.explanation_kl_max is not None]
        table[estimator] = {
            "mean": statistics.fmean(means), "deviation": statistics.stdev(means),
            "mean_of_largest": statistics.fmean(largest), "negative_share": sum(v < 0 for v in means) / len(means),
        }  # fmt: skip
    print(f"{'estimate':10}{'mean':>10}{'deviation':>12}{'to exact':>10}{'largest':>10}{'negative':>10}   nats a token")
    for name, row in table.items():
        ratio = row["deviation"] / table["exact"]["deviation"]
        print(f"{name:10}{row['mean']:10.4f}{row['deviation']:12.4f}{ratio:10.1f}{row['mean_of_largest']:10.3f}"
              f"{row['negative_share']:10.1%}")  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"versions": versions(), "samples": arguments.samples, **table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
