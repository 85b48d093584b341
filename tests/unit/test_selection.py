"""Which explanations a student gets: fit to the token, chosen per problem, and every other one accounted for."""

from __future__ import annotations

from byte_models import byte_tokenizer

from rlt.data.explanations import explanation_row
from rlt.data.selection import Fits, Report, choose_all, choose_best, choose_random, problem_of_row, select
from rlt.engines.base import Completion
from rlt.text.formats import load_format, render_student
from rlt.types import Problem

FORMAT = load_format("stratos")
CLOSE = FORMAT.tags.explanation.close
TOKENIZER = byte_tokenizer()


def row(problem: str, sample: int, text: str) -> dict:
    made = Problem(problem, f"What is {problem}?", "It is 5.")
    return explanation_row(FORMAT, made, sample, 3, Completion("k", text, "stop", 3, 2, (1, 2), -0.5, 7), "fake")


def selected(rows, fits, choose):
    return chosen([(r, fits.reason(r)) for r in rows], choose)


def chosen(judged, choose):
    report, dropped = Report(), {}
    kept = list(select(judged, choose, lambda r, why: dropped.update({r["id"]: why}), report))
    return [r["id"] for r in kept], dropped, report


def test_an_explanation_is_the_text_before_its_tag_without_the_tags_padding():
    assert row("a", 0, f"one\n\ntwo\n\n{CLOSE}")["explanation"] == "one\n\ntwo"
    assert row("a", 0, f"one\n\n\n\n{CLOSE}")["explanation"] == "one\n\n"
    assert row("a", 0, f"one{CLOSE}")["explanation"] == "one"
    assert row("a", 0, "one\n\n") == {**row("a", 0, "one\n\n"), "explanation": "one", "closed": False}


def test_a_row_has_the_completion_to_the_letter_and_an_id_of_its_own():
    made = row("a", 2, f"one\n\n{CLOSE}")
    assert (made["id"], made["problem"], made["sample"]) == ("a/2", "a", 2)
    assert (made["completion"], made["closed"], made["text_only"]) == (f"one\n\n{CLOSE}", True, False)


def test_what_fits_is_counted_to_the_token():
    made = row("a", 0, f"one\n\n{CLOSE}")
    text = render_student(FORMAT, TOKENIZER, problem_of_row(made), FORMAT.as_written("one")).text
    length = len(TOKENIZER.encode(text, add_special_tokens=False))
    assert Fits(FORMAT, [(TOKENIZER, length)]).reason(made) is None
    assert Fits(FORMAT, [(TOKENIZER, length - 1)]).reason(made) == "the student's text is longer than its context"
    assert (
        Fits(FORMAT, [(TOKENIZER, None), (TOKENIZER, length - 1)]).reason(made) is not None
    )  # it must fit every student


def test_unclosed_explanations_and_those_with_tags_inside_are_left_out():
    rows = [row("a", 0, "one"), row("a", 1, f"two <|begin_of_solution|> {CLOSE}"), row("a", 2, f"three {CLOSE}")]
    kept, dropped, report = selected(rows, Fits(FORMAT), choose_all)
    assert kept == ["a/2"]
    assert dropped == {
        "a/0": "the explanation never closes its tag", "a/1": "the explanation contains a tag of the format",
    }  # fmt: skip
    assert (report.rows, report.kept, report.problems, report.problems_without) == (3, 1, 1, 0)


def test_of_those_that_fit_the_best_by_reward_is_kept():
    rows = [row(p, s, f"x {CLOSE}") for p in "ab" for s in range(3)]
    rewards = {"a/0": -3.0, "a/1": -1.0, "a/2": -2.0, "b/0": -1.0, "b/1": None, "b/2": -5.0}
    judged = [
        ({**r, "reward": rewards[r["id"]]}, "it cannot be scored: too long" if r["id"] == "b/1" else None) for r in rows
    ]
    kept, dropped, report = chosen(judged, choose_best)
    assert kept == ["a/1", "b/0"]
    assert dropped["b/1"] == "it cannot be scored: too long"
    assert report.dropped == {"another explanation of its problem was chosen": 3, "it cannot be scored": 1}


def test_the_random_one_depends_on_seed_and_problem_alone():
    rows = [row(str(p), s, f"x {CLOSE}") for p in range(40) for s in range(3)]
    kept, _, _ = selected(rows, Fits(FORMAT), choose_random(0))
    assert [name.split("/")[0] for name in kept] == [str(p) for p in range(40)]
    assert {name.split("/")[1] for name in kept} == {"0", "1", "2"}
    assert selected(rows[60:], Fits(FORMAT), choose_random(0))[0] == kept[20:]
    assert selected(rows, Fits(FORMAT), choose_random(1))[0] != kept


def test_a_problem_with_nothing_left_is_counted():
    _, _, report = selected([row("a", 0, "one"), row("b", 0, f"x {CLOSE}")], Fits(FORMAT), choose_all)
    assert report.problems_without == 1
    assert "1 of 2 explanations kept; 1 of 2 problems have none" in report.text()
