"""What is learned: the target, its closing tag and the end of the turn; nothing is cut."""

import pytest

from rlt.config import DataConfig
from rlt.errors import DataError
from rlt.formats import load_format, render_student, render_teacher
from rlt.sequences import tokenize
from rlt.tiny import word_tokenizer
from rlt.training import Example, fit, learned_span
from rlt.types import Problem

FMT = load_format("words")
TOKENIZER = word_tokenizer(["what", "five", "two", "and", "three"], FMT)
PROBLEM = Problem(id="7", question="what", solution="five")


def learned_words(rendered, start, end):
    (tokens,) = tokenize(TOKENIZER, [rendered])
    span = learned_span(tokens.ids, tokens.offsets, start, end, TOKENIZER)
    return [TOKENIZER.convert_ids_to_tokens(tokens.ids[i]) for i in span]


def test_a_teacher_learns_explanation_closing_tag_and_end():
    text = render_teacher(FMT, TOKENIZER, PROBLEM, FMT.thought_body("two and three"))
    start, end = text.spans["explanation"]
    assert learned_words(text, start + 1, end + len("</explain>")) == ["two", "and", "three", "</explain>", "<end>"]


def test_a_student_learns_its_whole_response():
    text = render_student(FMT, TOKENIZER, PROBLEM, FMT.thought_body("two and three"))
    start = text.spans["explanation"][0] - len("<think>")
    end = text.spans["solution"][1] + len("</answer>")
    assert learned_words(text, start, end) == [
        "<think>", "two", "and", "three", "</think>", "<answer>", "five", "</answer>", "<end>",
    ]  # fmt: skip


def test_labels_are_minus_100_where_nothing_is_learned():
    assert Example([5, 6, 7, 8], range(2, 4)).labels() == [-100, -100, 7, 8]


def test_too_long_examples_are_named_or_dropped_and_never_cut():
    rows = [("a", Example([1, 2, 3], range(1, 3))), ("b", Example([1, 2], range(1, 2)))]
    with pytest.raises(DataError, match=r"d\.jsonl: problem a: its text has 3 tokens, over the limit of 2"):
        fit(rows, 2, DataConfig(path="d.jsonl"))
    kept, dropped = fit(rows, 2, DataConfig(path="d.jsonl", on_invalid="skip"))
    assert kept == [rows[1][1]]
    assert len(dropped) == 1
