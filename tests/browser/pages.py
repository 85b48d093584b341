"""Pages with numbers that are known: few tokens, worked by hand, and texts that would break a careless page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlt.data.rows import write_rows
from rlt.results.view.page import scores_data, write_page
from rlt.reward.formula import reward_parts
from rlt.reward.tokens import TokenNumbers

ALPHA, KL_COEF = 0.01, 3.0


def score_row(id: str, words: list[str], thought: list[str], shift: float = 0.0, **more: Any) -> dict[str, Any]:
    """A row as `rlt score --tokens --placebos` writes it, its parts computed from its tokens.

    Log-probs of the solution's first three tokens: -1 + shift, -2.5, -0.25; gains over the empty explanation 1, -0.5, 0,
    over the shuffled one 0, -1, 0.5. Divergences of the explanation's first two: 2, -1. Further tokens are like the third
    and the second.
    """
    more_solution, more_explanation = len(words) - 3, len(thought) - 2
    own = torch.tensor([-1.0 + shift, -2.5] + [-0.25] * (1 + more_solution))
    empty = own - torch.tensor([1.0, -0.5] + [0.0] * (1 + more_solution))
    shuffled = own - torch.tensor([0.0, -1.0] + [0.5] * (1 + more_solution))
    teacher = torch.tensor([-0.5] + [-1.5] * (1 + more_explanation))
    student = torch.tensor([-2.5] + [-0.5] * (1 + more_explanation))
    kl = teacher - student
    numbers = TokenNumbers(
        words, own, thought, teacher, student, kl, empty, shuffled, [2, 17, *[1] * (1 + more_solution)]
    )
    parts = reward_parts(own, kl, alpha=ALPHA, kl_coef=KL_COEF, format_penalty=0.0)
    lifts = {
        f"lift_over_{name}": parts.r_ss - reward_parts(p, None, alpha=ALPHA, kl_coef=0, format_penalty=0).r_ss
        for name, p in (("empty", empty), ("shuffled", shuffled))
    }
    return {"id": id, **parts.to_row(), **lifts, "tokens": numbers.to_row(), **more}


def plain_rows(count: int, shift: float = 0.0) -> list[dict[str, Any]]:
    """Rows `row-0`, `row-1` ..., each with a reward higher than the one before by 1/300."""
    return [
        score_row(
            f"row-{i}", ["It", " is", " 5"], ["add", " well"], shift + i / 100, question=f"What is {i} + 1?",
            solution="It is 5", explanation="add well",
        )
        for i in range(count)
    ]  # fmt: skip


SCRIPT = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'><!--"
HOSTILE = {
    "script": SCRIPT,
    "turned": "abc \u202egnorw\u202c \u200fdef\u2066x\u2069",
    "long": "y" * 100_000,
    "emoji": "👩‍👩‍👧 is 🙂 5",
    "surrogate": "half \ud83d of one",
    "zero": "nul \x00 bell \x07 next\u2028line",
    "template": "${alert(1)} {{ 7 * 7 }} @@DATA@@ $& &lt;b&gt;",
}


def hostile_rows() -> list[dict[str, Any]]:
    """Rows whose every text, id included, is hostile."""
    return [
        score_row(
            name if len(text) > 1000 else text, [text, " is", " 5"], [text, " is", " 5"], question=text,
            solution=text + " is 5", explanation=text + " is 5", error=None,
        )
        for name, text in HOSTILE.items()
    ]  # fmt: skip


def write_scores(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A file of scores with the state that `rlt score` leaves beside it."""
    import json

    write_rows(path, rows)
    config = {"alpha": ALPHA, "alpha_kl": None, "mean_coef": 1.0, "kl_coef": KL_COEF, "student": ["student"]}
    state = {"stage": "score", "config": config, "complete": True}
    path.with_name(path.name + ".stage.json").write_text(json.dumps(state))
    return path


def scores_page(folder: Path, *files: list[dict[str, Any]], limit: int = 10_000) -> Path:
    """The page of one or two files with these rows."""
    paths = [write_scores(folder / f"{name}.jsonl", rows) for name, rows in zip("ab", files, strict=False)]
    write_page(folder / "page.html", scores_data(paths, limit))
    return folder / "page.html"


def run_page(folder: Path) -> Path:
    """The page of a run, with two seeds, two arms and one question over three steps."""
    samples = [
        {**score_row(f"step {step}", ["It", " is", " 5"], ["add", " well"], step / 10), "source": 0, "match": "q",
         "step": step, "question": "What is 2 + 3?", "solution": "It is 5", "explanation": "add well", "copied": []}
        for step in range(3)
    ]  # fmt: skip
    for row in samples:
        row["tokens"] = {"student": row["tokens"]}
    coefficients = {"alpha": ALPHA, "alpha_kl": None, "mean_coef": 1.0, "kl_coef": KL_COEF}
    data = {
        "kind": "run", "title": "a run", "description": "Made by hand", "rows": samples,
        "sources": [{"name": "train, seed 0", "shown": 3, "total": 3, "coefficients": coefficients, "students": []}],
        "curves": [{"step": "train", "metric": "reward", "seeds": {"0": [[1, -3.0], [2, -1.0]],
                                                                         "1": [[1, -2.0], [2, float("nan")]]}}],
        "stages": [{"step": "train", "stage": "train", "seconds": 90.0, "done": 2, "of": 2}],
        "recipe": "name: a run\n",
        "report": {
            "headline": ["rlt against warmup: 0.10 better"], "note": None, "incomplete": [], "versions": {"rlt": "0.1"},
            "tables": [["A table", ["arm", "rate"], [["rlt", "0.9"]]]],
            "arms": [{"arm": arm, "label": "greedy", "mean": mean, "low": mean - 0.1, "high": mean + 0.1,
                      "values": [mean - 0.05, mean + 0.05]} for arm, mean in (("warmup", 0.7), ("rlt", 0.8))],
            "bands": {"label": "greedy", "seeds": [{"seed": 0, "values": [0.1, 0.2, 0.4]}]},
        },
    }  # fmt: skip
    write_page(folder / "run.html", data)
    return folder / "run.html"
