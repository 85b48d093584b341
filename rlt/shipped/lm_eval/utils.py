"""What lm-evaluation-harness calls for the task beside this file: which part of a response counts, and the harness's verdicts.

Written by `rlt export lm-eval`. Imports the harness and math-verify only, and rlt for a private benchmark.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

SPEC = json.loads((Path(__file__).parent / "spec.json").read_text(encoding="utf-8"))


def process_docs(dataset):
    """The questions of a private benchmark, laid out in memory as rlt asks them; others come laid out."""
    if not SPEC["private"]:
        return dataset
    from rlt.integrations.lm_eval import asked

    docs = asked(SPEC["benchmark"], dataset)
    # `map` writes its result into a cache otherwise.
    return dataset.map(lambda _, place: docs[place], with_indices=True, keep_in_memory=True, load_from_cache_file=False)


def answer_part(response):
    """The solution between its tags; without a solution tag what follows the thought; else the whole response."""
    if SPEC["solution_open"] in response:
        part = response.rpartition(SPEC["solution_open"])[2]
        return part.partition(SPEC["solution_close"])[0] if SPEC["solution_close"] in part else response
    _, closed, after = response.rpartition(SPEC["thought_close"])
    return after if closed and after.strip() else response


def process_math(doc, results):
    """`math_verify`: the harness's comparison for minerva_math. `exact_match`: its string comparison for hendrycks_math."""
    from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed
    from math_verify import parse, verify

    part = answer_part(results[0])
    box = last_boxed_only_string(part)
    try:
        exact = box is not None and is_equiv(remove_boxed(box), doc["target"])
    except AssertionError:  # a box that never closes
        exact = False
    return {
        "exact_match": int(exact),
        "math_verify": int(verify(gold=parse("$" + doc["target"] + "$"), target=parse(part))),
    }


def process_choice(doc, results):
    """`exact_match`: the last boxed letter, found by the harness's filter for regular expressions."""
    from lm_eval.filters.extraction import RegexFilter

    pattern = r"\\boxed\{\s*(?:\\text\{)?\(?([A-J])\)?\}?\s*\}"
    found = RegexFilter(regex_pattern=pattern, group_select=-1).apply([[answer_part(results[0])]], [doc])
    return {"exact_match": int(re.sub(r"\W", "", next(iter(next(iter(found))))) == doc["target"])}
