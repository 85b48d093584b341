"""Controls of the reward, and problems chosen from a dataset."""

import json

import pytest

from rlt.config import ProblemsConfig
from rlt.data.rows import read_rows, write_rows
from rlt.errors import ConfigError, DataError
from rlt.reward.placebos import controlled
from rlt.stages import problems
from rlt.types import Explanation, Problem

SAID = Explanation(Problem("0", "Tom has 3.", "The answer is 7."), "3 + 4 = 7, so 70 and 7.\n")


def test_wrong_numbers_are_others_of_as_many_digits_the_same_wherever_they_stand():
    text = controlled(SAID, "numbers", "\n", 0).text
    three, four, seven, seventy, again = (
        word for word in text.replace(",", "").replace(".", "").split() if word.isdigit()
    )
    assert seven == again
    assert three != "3"
    assert four != "4"
    assert seven != "7"
    assert (len(seventy), seventy != "70") == (2, True)
    assert text.startswith(f"{three} + {four} = {seven}, so ")
    assert controlled(SAID, "numbers", "\n", 0).text == text != controlled(SAID, "numbers", "\n", 1).text


@pytest.mark.parametrize(("control", "text"), [("empty", "\n"), ("solution", "The answer is 7.\n")])
def test_the_empty_explanation_and_the_answer_given_away(control, text):
    assert controlled(SAID, control, "\n", 0).text == text


def made(tmp_path, **keys):
    rows = [
        {"question": f"Question {'long ' * (3 - i)}{i}?", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}
        for i in range(3)
    ]
    write_rows(tmp_path / "gsm8k.jsonl", rows)
    config = ProblemsConfig(output=tmp_path / "out.jsonl", data=str(tmp_path / "gsm8k.jsonl"), **keys)
    problems.run(config)
    return [row for _, row in read_rows(tmp_path / "out.jsonl")]


def test_the_shortest_of_a_dataset_with_their_steps_as_explanation(tmp_path):
    short, shorter = reversed(made(tmp_path, count=2, shortest=True, solution="answer"))
    assert shorter == {"id": "2", "question": "Question long 2?", "solution": "The answer is 3.", "answer": "3",
                       "explanation": "2 + 1 = 3"}  # fmt: skip
    assert short["question"] == "Question long long 1?"


def test_too_few_problems_are_an_error(tmp_path):
    with pytest.raises(DataError, match="has 3 such problems; `count` asks for 4"):
        made(tmp_path, count=4)


def test_questions_that_are_excluded_are_left_out(tmp_path):
    (tmp_path / "held.jsonl").write_text(json.dumps({"question": "Question long 2?"}) + "\n")
    assert [row["id"] for row in made(tmp_path, exclude=[tmp_path / "held.jsonl"])] == ["0", "1"]


@pytest.mark.parametrize(
    "keys", [{}, {"task": "arithmetic", "data": "x.jsonl"}, {"task": "arithmetic", "shortest": True}]
)
def test_a_source_is_named_once(tmp_path, keys):
    with pytest.raises((ConfigError, ValueError), match=r"not both|belong to"):
        ProblemsConfig(output=tmp_path / "o.jsonl", **keys)


def test_a_wrong_solution_names_the_answer_of_the_next_problem_that_has_another(tmp_path):
    assert [(row["solution"], row["answer"], row.get("explanation")) for row in made(tmp_path, solution="wrong")] == [
        ("The answer is 2.", "2", None), ("The answer is 3.", "3", None), ("The answer is 1.", "1", None),
    ]  # fmt: skip


def test_problems_with_one_answer_have_no_wrong_one(tmp_path):
    write_rows(tmp_path / "same.jsonl", [{"question": f"{i}?", "solution": "7.", "answer": "7"} for i in range(2)])
    with pytest.raises(DataError, match=r"same.jsonl: problem 0: `solution: wrong` needs"):
        problems.run(ProblemsConfig(output=tmp_path / "out.jsonl", data=str(tmp_path / "same.jsonl"), solution="wrong"))
