"""Formats through chat templates: what a template drops is found before any weights are loaded."""

import pytest
from byte_models import CHATML, byte_tokenizer

from rlt.errors import ConfigError, ModelError
from rlt.text.formats import check_template, load_format, render_student, render_teacher, teacher_prompt
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
        (NO_SYSTEM, "the system message"),
        ("{% for m in messages if m['role'] != 'user' %}[{{ m['content'] }}]{% endfor %}", "the user message"),
        ("{% for m in messages %}[{{ m['content'] | upper }}]{% endfor %}", "the system message"),
        ("{{ messages[0]['content'] }}{{ messages[1]['content'] }}", "the assistant message"),
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
    with pytest.raises(ModelError, match="the system message"):
        render_student(fmt, template(NO_SYSTEM), Problem("0", "What?", "5", system="The row's own."), "So.")


def test_a_template_that_drops_thoughts_is_given_the_response_to_the_letter():
    drops = "{% for m in messages %}[{{ m['content'].split('<|end_of_thought|>')[-1] }}]{% endfor %}"
    rendered = render_student(FMT, template(drops), Problem("0", "What?", "5"), "So.\n")
    thought, solution = FMT.tags.thought, FMT.tags.solution
    said = thought.open + "\n\nSo.\n" + thought.close + FMT.delimiter + solution.open + "5" + solution.close
    assert rendered.text == f"[Think.][What?][{said}]"
    assert [rendered.text[slice(*span)] for span in rendered.spans.values()] == ["So.\n", "5"]


# -- the solution in the user's turn -------------------------------------------------------------------------------------

USER = load_format("stratos-user").model_copy(update={"teacher_system_prompt": "Teach."})
FIVE = Problem("0", "What?", "5")
SHOWN = "What?\n\n<|begin_of_solution|>5<|end_of_solution|>"
ASKED = f"<|im_start|>system\nTeach.<|im_end|>\n<|im_start|>user\n{SHOWN}<|im_end|>\n<|im_start|>assistant\n"


def test_a_teacher_shown_the_solution_by_the_user_is_asked_as_any_engine_asks():
    tokenizer = template(CHATML)
    assert teacher_prompt(USER, tokenizer, FIVE) == ASKED
    messages = USER.teacher_messages(FIVE)
    assert messages == [{"role": "system", "content": "Teach."}, {"role": "user", "content": SHOWN}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == ASKED


def test_its_turn_is_the_explanation_and_the_closing_tag():
    rendered = render_teacher(USER, template(CHATML), FIVE, "So.\n\n")
    assert rendered.text == ASKED + "So.\n\n<|end_of_explanation|><|im_end|>\n"
    assert rendered.text[slice(*rendered.spans["explanation"])] == "So.\n\n"
    assert render_teacher(USER, TOKENIZER, FIVE, "So", closed=False).text == ASKED + "So"
    assert USER.parse_completion("So.\n\n<|end_of_explanation|>") == ("So.\n\n", True)


def test_students_read_what_they_read_otherwise():
    stratos = load_format("stratos")
    assert render_student(USER, template(CHATML), FIVE, "So.") == render_student(stratos, TOKENIZER, FIVE, "So.")
    for name in ("stratos", "r1", "words"):
        assert load_format(f"{name}-user").for_students() == load_format(name).for_students()


def test_a_generation_prompt_that_opens_a_thought_belongs_to_the_prompt():
    thinks = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert teacher_prompt(USER, template(thinks), FIVE) == ASKED + "<think>\n"


def test_a_template_that_cannot_ask_is_refused():
    with pytest.raises(ModelError, match="ignores `add_generation_prompt`"):
        check_template(USER, template(CHATML.split("{% if add_generation_prompt %}")[0]))


def test_messages_alone_cannot_hold_a_prefilled_solution():
    with pytest.raises(ConfigError, match="`solution_turn: user`, such as stratos-user"):
        load_format("stratos").teacher_messages(FIVE)
