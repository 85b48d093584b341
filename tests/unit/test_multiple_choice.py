"""Multiple choice: which letter a solution ends with."""

from __future__ import annotations

import pytest

from rlt.tasks import multiple_choice

QUESTION = "Which is prime?\n\nA. 4\nB. 7\nC. 9\nD. 12 m"


@pytest.mark.parametrize(
    ("solution", "letter"),
    [
        (r"\boxed{B}", "B"), (r"\boxed{(B)}", "B"), (r"\boxed{\text{B}}", "B"), (r"\boxed{\text{(B)}}", "B"),
        (r"\boxed{B. 7}", "B"),
        (r"\boxed{A} no, \boxed{B}", "B"), (r"\boxed{7}", "B"), (r"\boxed{12\, m}", "D"), (r"\boxed{b}", "B"),
        ("The answer is B.", "B"),
        ("the correct answer is (B)", "B"), ("Answer: B", "B"), ("**Answer: B**", "B"),
        (r"The answer is $\text{B}$.", "B"), ("the answer is option C", "C"),
        ("So:\n\nB", "B"), ("I choose **B**", "B"), ("It is (A), or rather (C)", "C"), (r"\boxed{E}", "E"),
        ("A number is prime if it has two divisors.", None), ("the answer is clear", None), ("", None),
        (r"\boxed{13}", None), (r"\boxed{A or B}", "A or B"), (r"\boxed{B, C}", "B, C"),
        (r"\boxed{B and A}", "B and A"),
        ("The answer is B or A.", "B or A"), ("The answer is (B) or (C)", "B) or (C)"),
        ("The answer is A. No, the answer is B.", "B"),
        ("A good answer is B", "B"),
        ("The answer is a prime number: it is 7", None), ("the answer is b", "B"),
        ("Option A is wrong. I take **B**.", "B"),
    ],
)  # fmt: skip
def test_the_last_choice_is_read(solution: str, letter: str | None) -> None:
    verdict = multiple_choice.grade(solution, "B", QUESTION)
    assert verdict.extracted == letter
    assert verdict.correct == (letter == "B")


def test_the_answer_must_be_one_of_the_choices() -> None:
    assert multiple_choice.check_answer("B", QUESTION) is None
    assert multiple_choice.check_answer("E", QUESTION) is not None
    assert multiple_choice.check_answer("seven", QUESTION) is not None
