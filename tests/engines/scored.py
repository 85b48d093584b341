"""Rows of one policy for all engines, and a service that scores them."""

from __future__ import annotations

import json
from pathlib import Path

from plain_reward import continued, encoded, logprobs
from serve.conftest import CLOSE, FMT, Served

from rlt.models.loading import load_model, load_tokenizer
from rlt.text.formats import teacher_prompt
from rlt.types import Problem

PROBLEMS = [Problem(str(i), f"What is {i} + 2?", f"It is {i + 2}.") for i in range(4)]


def sampled_rows(folder: Path) -> list[dict]:
    """What the teacher of `folder` could have sampled for each problem: its text, tokens and log-probs at 0.7."""
    tokenizer, policy = load_tokenizer(str(folder / "teacher")), load_model(str(folder / "teacher"), device="cpu")
    rows = []
    for i, problem in enumerate(PROBLEMS):
        prompt, completion = teacher_prompt(FMT, tokenizer, problem), "So, " * i + "we add." + CLOSE * (i % 2)
        ids, before = continued(tokenizer, prompt, completion)[0], encoded(tokenizer, prompt)[0]
        label = json.dumps({"question": problem.question, "solution": problem.solution})
        rows.append({
            "prompt": prompt, "label": label, "completion": completion, "token_ids": ids,
            "logprobs": logprobs(policy, before + ids, 0.7, len(before)),
        })  # fmt: skip
    return rows


def of_the_service(served: Served, rows: list[dict]) -> list[dict]:
    """The service's own answer to these tokens and log-probs, one row a request."""
    scored = []
    for row in rows:
        asked = {**json.loads(row["label"]), **{k: row[k] for k in ("token_ids", "logprobs")}, "temperature": 0.7}
        status, answer = served.ask("/score", {"rows": [asked]})
        assert status == 200, answer
        scored += answer["rows"]
    return scored
