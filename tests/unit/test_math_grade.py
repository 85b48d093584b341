"""Where the mathematics grader finds the answer, and which answers it refuses as references."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlt.tasks import math
from rlt.tasks.grading import answer_part
from rlt.tasks.math_spelling import spell
from rlt.text.formats import load_format

FORMAT = load_format("stratos")
RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces_math500_sample.jsonl"

# What reading the responses found, where our verdict is not the recorded one.
SETTLED = {
    70: "ours is right: cut off while it tries values; the recorded grader took the last number, 1, for 1 % of 100",
}


@pytest.mark.parametrize(
    ("text", "extracted"),
    [
        (r"\boxed{1} is wrong, so \boxed{2}", "2"),
        (r"so \boxed{\frac{1}{2}} holds", r"\frac{1}{2}"),
        (r"x = \boxed{1} and x = 3, \boxed{2}", "2"),
        (r"$\boxed{1}$, $\boxed{-2}$", "1, -2"),
        (r"\boxed{1} \text{ and } \boxed{-2}", "1, -2"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{\text{(E)}}", r"\text{(E)}"),
        (r"\boxed 7 and more", "7"),
        (r"\boxed{12", "12"),
        (r"\boxed{} The answer is 5.", "5"),
        ("The answer is 5.", "5"),
        ("**Answer:** 5", "5"),
        (r"The final answer is $\sqrt{53}$. I hope it is correct.", r"\sqrt{53}"),
        (r"I think the final answer is \(\sqrt{53}\).", r"\sqrt{53}"),
        ("the answer is three boxes with pens", "three"),
        ("The answer is\n\\[\n\\frac{1}{2}\n\\]", r"\frac{1}{2}"),
        ("the answer is 1,234 red apples", "1,234"),
        ("If the answer is 3, then 4 follows.\n\nBut no: we get 8.", "8"),
        ("We get 3.5, no, 12.", "12"),
        ("It falls to -4", "-4"),
        ("no digits at all", None),
        ("", None),
    ],
)
def test_the_last_answer_is_extracted_by_the_stated_fallbacks(text: str, extracted: str | None) -> None:
    assert math.extract(text) == extracted


def test_several_boxes_may_be_one_answer_in_two_forms() -> None:
    text = r"It is $\boxed{15\frac{39}{40}}$ or $\boxed{\frac{639}{40}}$."
    assert math.grade(text, r"\frac{639}{40}", "").correct
    assert not math.grade(r"$\boxed{3}$ or $\boxed{7}$", "7", "").correct


@pytest.mark.parametrize(
    ("response", "part"),
    [
        ("<|begin_of_thought|>2<|end_of_thought|>\n<|begin_of_solution|>3<|end_of_solution|>", "3"),
        ("<|begin_of_thought|>2<|end_of_thought|>\n\nIt is 3.", "\n\nIt is 3."),
        ("<|begin_of_thought|>2<|end_of_thought|>", "<|begin_of_thought|>2<|end_of_thought|>"),
        ("<|begin_of_solution|>3", "<|begin_of_solution|>3"),
        ("plain text", "plain text"),
    ],
)
def test_the_answer_is_looked_for_in_the_solution_part(response: str, part: str) -> None:
    assert answer_part(response, FORMAT) == part


def test_an_answer_outside_the_closed_solution_does_not_count() -> None:
    response = (
        r"<|begin_of_thought|>\boxed{5}<|end_of_thought|><|begin_of_solution|>It is 6.<|end_of_solution|>\boxed{5}"
    )
    assert not math.grade(answer_part(response, FORMAT), "5", "").correct


@pytest.mark.parametrize("answer", ["", "  ", "$", r"\frac{1}{", "}", r"\frac{}{}", "?"])
def test_an_answer_that_no_grader_can_read_is_refused(answer: str) -> None:
    assert math.check_answer(answer, "") is not None


@pytest.mark.parametrize(
    "answer", ["5", r"\text{Evelyn}", r"\{1\pm\sqrt{5},-2\}", "52_8", r"\$32,\!348", "x \\in [-2,7]"]
)
def test_answers_of_all_kinds_are_accepted(answer: str) -> None:
    assert math.check_answer(answer, "") is None


PIECES = [*r"\{}[]()$,.;=<>-+/^_ 01x%°π ", r"\boxed{", r"\text{", r"\frac", "\n", " and "]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_text_breaks_the_reading(text: str) -> None:
    extracted = math.extract(text)
    assert extracted is None or extracted.strip()
    spell(text)


@pytest.mark.skipif(not RECORDED.exists(), reason="needs ../shared/data/traces_math500_sample.jsonl")
def test_recorded_verdicts_on_real_responses(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    disagreements = {}
    for number, row in enumerate(rows):
        verdict = math.grade(answer_part(row["response"], FORMAT), row["answer"], row["question"])
        if verdict.correct != row["correct"]:
            disagreements[number] = f"row {number}: answer {row['answer']!r}, read {verdict.extracted!r}"
    with capsys.disabled():
        for number, line in disagreements.items():
            print(f"\n{line}; {SETTLED.get(number, 'NOT SETTLED')}")
    assert set(disagreements) <= set(SETTLED)
    assert 1 - len(disagreements) / len(rows) >= 0.98
