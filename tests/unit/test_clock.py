"""A chat template that prints the date prints that of the run, on every day."""

from datetime import date

import pytest
from byte_models import byte_tokenizer

from rlt.text import clock
from rlt.text.formats import load_format, render_teacher, student_prompt
from rlt.types import Problem

# As in Llama 3.2 (a variable that falls back to the clock) and gpt-oss.
DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{ 'Today Date: ' + date_string + ' ' + strftime_now('%Y-%m-%d') + '\n' }}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
PROBLEM = Problem(id="p", question="2 + 3?", solution="5.")


def rendered() -> tuple[str, str]:
    tokenizer, fmt = byte_tokenizer(template=DATED), load_format("stratos")
    return render_teacher(fmt, tokenizer, PROBLEM, fmt.padding).text, student_prompt(fmt, tokenizer, PROBLEM)


def on(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    today = classmethod(lambda cls: date.fromisoformat(day))
    monkeypatch.setattr(clock, "date", type("Day", (date,), {"today": today}))


def test_prompts_are_the_same_on_two_days_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(clock.VARIABLE, "2025-01-31")
    on(monkeypatch, "2025-01-31")
    first = rendered()
    on(monkeypatch, "2025-02-01")
    assert rendered() == first
    assert all(text.startswith("Today Date: 31 Jan 2025 2025-01-31\n") for text in first)


def test_without_a_run_the_date_is_todays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(clock.VARIABLE, raising=False)
    on(monkeypatch, "2025-02-01")
    assert rendered()[0].startswith("Today Date: 01 Feb 2025")
