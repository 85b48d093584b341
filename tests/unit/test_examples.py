"""What is learned: the target, its closing tag and the end of the turn; nothing is cut."""

from __future__ import annotations

import pytest

from rlt.config import DataConfig
from rlt.errors import DataError, ModelError
from rlt.models.tiny import word_tokenizer
from rlt.text.formats import load_format, render_student, render_teacher
from rlt.training.examples import Example, examples_of, fit, fit_prompts, taught_to_student, taught_to_teacher, turn_end
from rlt.types import Problem
from tests.byte_models import byte_tokenizer

FMT = load_format("words")
TOKENIZER = word_tokenizer(["what", "five", "two", "and", "three"], FMT)
PROBLEM = Problem(id="7", question="what", solution="five")
WRITTEN = FMT.as_written("two and three")


def learned_words(tokenizer, text, span):
    (example,) = examples_of(tokenizer, [text], [span], turn_end(FMT, tokenizer))
    return [tokenizer.convert_ids_to_tokens(example.ids[i]) for i in example.learned]


# -- supervised examples -------------------------------------------------------------------------------------------------


def test_a_teacher_learns_explanation_closing_tag_and_end():
    text = render_teacher(FMT, TOKENIZER, PROBLEM, WRITTEN)
    words = learned_words(TOKENIZER, text, taught_to_teacher(FMT, text))
    assert words == ["two", "and", "three", "</explain>", "<end>"]


def test_a_student_learns_its_whole_response():
    text = render_student(FMT, TOKENIZER, PROBLEM, WRITTEN)
    assert learned_words(TOKENIZER, text, taught_to_student(FMT, text)) == [
        "<think>", "two", "and", "three", "</think>", "<answer>", "five", "</answer>", "<end>",
    ]  # fmt: skip


def test_the_end_of_a_turn_is_learned_where_it_is_not_the_eos_and_where_a_space_is_before_it():
    tokenizer = byte_tokenizer(
        tags=FMT.tags.all(), template="{% for m in messages %}{{ m['content'] }} <|im_end|>\n{% endfor %}"
    )
    tokenizer.eos_token = "<|endoftext|>"
    text = render_student(FMT, tokenizer, PROBLEM, WRITTEN)
    assert learned_words(tokenizer, text, taught_to_student(FMT, text))[-3:] == ["</answer>", "Ġ", "<|im_end|>"]


def test_a_template_after_which_no_model_could_stop_is_refused():
    tokenizer = byte_tokenizer(template="{% for m in messages %}{{ m['content'] }} [end]\n{% endfor %}")
    with pytest.raises(ModelError, match=r"ends the assistant's turn with ' \[end\]\\n'"):
        turn_end(FMT, tokenizer)


def test_explanation_tokens_are_counted():
    (example,) = examples_of(
        TOKENIZER, [render_student(FMT, TOKENIZER, PROBLEM, WRITTEN)], [(0, 4)], turn_end(FMT, TOKENIZER)
    )
    assert example.explanation_tokens == 3


def test_labels_are_minus_100_where_nothing_is_learned():
    assert Example([5, 6, 7, 8], range(2, 4)).labels() == [-100, -100, 7, 8]


# -- what fits -----------------------------------------------------------------------------------------------------------

PROBLEMS = [Problem(id=name, question="what", solution="five") for name in "ab"]


def test_too_long_examples_are_named_or_dropped_and_never_cut():
    examples = [Example([1, 2, 3], range(1, 3)), Example([1, 2], range(1, 2))]
    with pytest.raises(DataError, match=r"d\.jsonl: problem a: its text of 3 tokens exceeds the limit of 2"):
        fit(PROBLEMS, examples, 2, DataConfig(path="d.jsonl"))
    kept, dropped = fit(PROBLEMS, examples, 2, DataConfig(path="d.jsonl", on_invalid="skip"))
    assert kept == [examples[1]]
    assert len(dropped) == 1
    with pytest.raises(DataError, match=r"d\.jsonl: no problem is short enough; the first: .*problem a"):
        fit(PROBLEMS, examples, 1, DataConfig(path="d.jsonl", on_invalid="skip"))


def test_a_prompt_needs_room_for_its_completion():
    def fits(context, **data):
        data = DataConfig(path="d.jsonl", **data)
        return fit_prompts(PROBLEMS, ["two and", "two"], TOKENIZER, completion=3, context=context, data=data)

    assert fits(5) == ([0, 1], [])
    assert fits(None) == ([0, 1], [])
    assert fits(4, on_invalid="skip")[0] == [1]
    with pytest.raises(
        DataError, match=r"problem a: its prompt of 2 tokens and 3 of completion exceed the context of 4"
    ):
        fits(4)
