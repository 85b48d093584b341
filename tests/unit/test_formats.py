"""Formats through chat templates: what a template drops is found before any weights are loaded."""

import pytest
from byte_models import CHATML, byte_tokenizer

from rlt.errors import ModelError
from rlt.text.formats import check_template, load_format, render_student
from rlt.types import Problem

FMT = load_format("stratos").model_copy(update={"teacher_system_prompt": "Teach.", "student_system_prompt": "Think."})
TOKENIZER = byte_tokenizer()
NO_SYSTEM = "{% for m in messages if m['role'] != 'system' %}[{{ m['content'] }}]{% endfor %}"


def template(text):
    TOKENIZER.chat_template = text
    return TOKENIZER


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NO_SYSTEM, "the system's message"),
        ("{% for m in messages if m['role'] != 'user' %}[{{ m['content'] }}]{% endfor %}", "the user's message"),
        ("{% for m in messages %}[{{ m['content'] | upper }}]{% endfor %}", "the system's message"),
        ("{{ messages[0]['content'] }}{{ messages[1]['content'] }}", "the assistant's message"),
    ],
    ids=["system", "question", "letters", "answer"],
)
def test_a_template_that_loses_any_message_is_refused(text, words):
    with pytest.raises(ModelError, match="drops or rewrites " + words):
        check_template(FMT, template(text))


def test_blanks_around_prompts_and_questions_may_go():
    trims = CHATML.replace(
        "{{ m['content'] }}", "{{ m['content'] if m['role'] == 'assistant' else m['content'] | trim }}"
    )
    fmt = FMT.model_copy(update={"teacher_system_prompt": "Teach.\n", "student_system_prompt": "Think. "})
    check_template(fmt, template(trims))


def test_a_format_without_system_prompts_needs_no_system_role():
    fmt = FMT.model_copy(update={"teacher_system_prompt": None, "student_system_prompt": None})
    check_template(fmt, template(NO_SYSTEM))
    with pytest.raises(ModelError, match="the system's message"):
        render_student(fmt, template(NO_SYSTEM), Problem("0", "What?", "5", system="The row's own."), "So.")


def test_a_template_that_drops_thoughts_is_given_the_response_to_the_letter():
    drops = "{% for m in messages %}[{{ m['content'].split('<|end_of_thought|>')[-1] }}]{% endfor %}"
    rendered = render_student(FMT, template(drops), Problem("0", "What?", "5"), "So.\n")
    thought, solution = FMT.tags.thought, FMT.tags.solution
    said = thought.open + "\n\nSo.\n" + thought.close + FMT.delimiter + solution.open + "5" + solution.close
    assert rendered.text == f"[Think.][What?][{said}]"
    assert [rendered.text[slice(*span)] for span in rendered.spans.values()] == ["So.\n", "5"]
