"""Formats: the prompts, tags and paddings that turn problems and explanations into text. Data, not code.

Text is rendered through a tokenizer's own chat template. The character spans of explanation and solution are known by
construction: the assistant's message is found whole in the rendered text, and the spans are offsets inside it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from rlt.errors import ConfigError, DataError, ModelError
from rlt.text.clock import strftime_now
from rlt.types import Explanation, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_FORMAT = "stratos"
SHIPPED_FORMATS = resources.files("rlt") / "shipped" / "formats"


class TagPair(NamedTuple):
    open: str
    close: str


class Tags(BaseModel):
    """The three tag pairs of a format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    explanation: TagPair
    thought: TagPair
    solution: TagPair

    def all(self) -> tuple[str, ...]:
        """Every tag, opening and closing, once."""
        return tuple(dict.fromkeys([*self.explanation, *self.thought, *self.solution]))


class Format(BaseModel):
    """How questions, solutions and explanations become a teacher's and a student's text.

    `student_system_prompt` null: use the problem's own `system` column, or no system message if there is none.
    `solution_turn` says where the teacher sees the solution. `assistant`: in its own turn, which it then continues.
    `user`: after the question, for engines that only take messages; the assistant's turn is then just the explanation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher_system_prompt: str | None
    student_system_prompt: str | None
    tags: Tags
    padding: str
    delimiter: str
    solution_turn: Literal["assistant", "user"] = "assistant"

    @field_validator("tags")
    @classmethod
    def _tags_not_empty(cls, tags: Tags) -> Tags:
        if any(not tag.strip() for tag in tags.all()):
            raise ValueError("tags must not be empty: the parts of a text are told apart by them")
        return tags

    # -- the teacher's side ------------------------------------------------------------------------------------------

    def teacher_question(self, problem: Problem) -> str:
        """The user's text: the question, followed by the solution if `solution_turn` is `user`."""
        return problem.question + (self.delimiter + self._shown(problem) if self.solution_turn == "user" else "")

    def teacher_prefix(self, problem: Problem) -> str:
        """The assistant's text that the teacher continues: the tagged solution, the opening explanation tag, padding.

        Empty if `solution_turn` is `user`.
        """
        if self.solution_turn == "user":
            return ""
        return self._shown(problem) + self.delimiter + self.tags.explanation.open + self.padding

    def teacher_messages(self, problem: Problem, assistant: str | None = None) -> list[dict[str, str]]:
        """Chat messages of the teacher: its system prompt, the question, and `assistant` if it is not None.

        Without `assistant`, the messages ask an engine for an explanation. Raises ConfigError if they would then lack
        the solution.
        """
        if assistant is None and self.solution_turn == "assistant":
            raise ConfigError(
                "this format puts the solution into the assistant's turn, so messages alone cannot ask for an explanation. "
                "Use a format with `solution_turn: user`, such as stratos-user."
            )
        return _messages(self.teacher_system_prompt, self.teacher_question(problem), assistant)

    def _shown(self, problem: Problem) -> str:
        return self.tags.solution.open + problem.solution + self.tags.solution.close

    def parse_completion(self, completion: str) -> tuple[str, bool]:
        """`(explanation, closed)`: the text up to the closing tag, exactly as written, and whether the tag was found."""
        text, tag, _ = completion.partition(self.tags.explanation.close)
        return text, bool(tag)

    def completed(self, problem: Problem, completion: str) -> Explanation:
        """The explanation in a teacher's raw `completion`: its text up to the closing tag, exactly as written."""
        return Explanation(problem, *self.parse_completion(completion))

    def finished(self, problem: Problem, explanation: str) -> Explanation:
        """An Explanation from finished text, written as a teacher would: with the padding before its closing tag."""
        return Explanation(problem, self.as_written(explanation))

    # -- the student's side ------------------------------------------------------------------------------------------

    def for_students(self) -> tuple[object, ...]:
        """What a student's text depends on: students cannot tell apart two formats that agree in it."""
        return self.student_system_prompt, self.tags.thought, self.tags.solution, self.padding, self.delimiter

    def student_system(self, problem: Problem) -> str | None:
        """The student's system prompt for this problem, or None."""
        return problem.system if self.student_system_prompt is None else self.student_system_prompt

    def student_messages(self, problem: Problem, assistant: str) -> list[dict[str, str]]:
        """Chat messages of the student: system prompt if any, the question, and `assistant`."""
        return _messages(self.student_system(problem), problem.question, assistant)

    def as_written(self, explanation: str) -> str:
        """A finished `explanation` as a teacher writes it: with the padding before its closing tag."""
        return explanation + self.padding

    def student_response(self, written: str, solution: str) -> str:
        """The student's response: thought (padding, then the explanation as written), delimiter, solution."""
        tags = self.tags
        thought = tags.thought.open + self.padding + written + tags.thought.close
        return thought + self.delimiter + tags.solution.open + solution + tags.solution.close

    def parse_response(self, response: str) -> tuple[str | None, str | None]:
        """`(thought, solution)` of a student's response; None for a part whose tag is never opened or never closed.

        A response cut off inside its solution has None there; the grader's fallbacks then decide.
        """
        return _between(response, self.tags.thought), _between(response, self.tags.solution, last=True)

    # -- validation --------------------------------------------------------------------------------------------------

    def tag_inside(self, text: str) -> str | None:
        """The first of this format's tags found in `text`, or None."""
        return next((tag for tag in self.tags.all() if tag in text), None)


def _messages(system: str | None, question: str, assistant: str | None) -> list[dict[str, str]]:
    said = (("system", system), ("user", question), ("assistant", assistant))
    return [{"role": role, "content": content} for role, content in said if content is not None]


def _between(text: str, tag: TagPair, last: bool = False) -> str | None:
    start = text.rfind(tag.open) if last else text.find(tag.open)
    if start < 0:
        return None
    start += len(tag.open)
    end = text.find(tag.close, start)
    return None if end < 0 else text[start:end]


def shipped_formats() -> list[str]:
    """Names of the formats that come with rlt."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in SHIPPED_FORMATS.iterdir() if entry.name.endswith(".yaml")
    )


@lru_cache
def load_format(name_or_path: str | None) -> Format:
    """The shipped format of that name (`stratos`, `r1`), or the one in that YAML file; None: DEFAULT_FORMAT.

    Raises ConfigError, naming file and key, if the format is missing or invalid.
    """
    name_or_path = name_or_path or DEFAULT_FORMAT
    path = Path(name_or_path)
    if name_or_path in shipped_formats():
        text = (SHIPPED_FORMATS / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise ConfigError(
            f"format {name_or_path!r}: neither a shipped format ({', '.join(shipped_formats())}) nor a YAML file."
        )
    try:
        return Format.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"format {name_or_path}: not valid YAML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"`{'.'.join(map(str, e['loc']))}`: {e['msg']}" for e in error.errors())
        raise ConfigError(f"format {name_or_path}: {problems}") from error


# -- rendering through a chat template -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rendered:
    """Text of one chat with the character spans `[start, end)` of its parts: `explanation` and/or `solution`.

    `prompt`: where the model's prompt ends, in characters; None: tokenize the text as a whole.
    """

    text: str
    spans: dict[str, tuple[int, int]]
    prompt: int | None = None


# Placeholders for explanation and solution during rendering. Templates that look into an assistant's message (Qwen3's
# splits off thoughts, others strip blanks) see this well-formed one, which is then replaced by the real text.
_PROBE = "rlt-explanation", "rlt-solution"


def render_student(fmt: Format, tokenizer: PreTrainedTokenizerBase, problem: Problem, written: str) -> Rendered:
    """The student's text with spans `explanation` and `solution`; `written`: the explanation up to its closing tag.

    The explanation's span starts after the format's padding.
    """
    probe = fmt.student_response(fmt.as_written(_PROBE[0]), _PROBE[1])
    response = fmt.student_response(written, problem.solution)
    text, start = _render(tokenizer, fmt.student_messages(problem, probe), response)
    thought = start + len(fmt.tags.thought.open + fmt.padding)
    solution_end = start + len(response) - len(fmt.tags.solution.close)
    spans = {
        "explanation": (thought, thought + len(written)),
        "solution": (solution_end - len(problem.solution), solution_end),
    }
    return Rendered(text, spans)


def render_teacher(
    fmt: Format, tokenizer: PreTrainedTokenizerBase, problem: Problem, written: str, closed: bool = True
) -> Rendered:
    """The teacher's text: its prompt, then an explanation as `written`, with the span `explanation`.

    `closed`: whether the closing tag follows. The span starts where the prompt ends.
    """
    prefix, close = fmt.teacher_prefix(problem), fmt.tags.explanation.close
    probe = fmt.teacher_prefix(replace(problem, solution=_PROBE[1])) + fmt.as_written(_PROBE[0]) + close
    text, start = _render(tokenizer, fmt.teacher_messages(problem, probe), prefix + written + (close if closed else ""))
    if fmt.solution_turn == "user":
        asked = _generation_prompt(tokenizer, fmt.teacher_messages(problem), text[:start])
        text, start = asked + text[start:], len(asked)
    prompt = start + len(prefix)
    end = prompt + len(written)
    # Nothing follows a cut-off explanation: its last token must not merge with what the template would add.
    return Rendered(text if closed else text[:end], {"explanation": (prompt, end)}, prompt)


def teacher_prompt(fmt: Format, tokenizer: PreTrainedTokenizerBase, problem: Problem) -> str:
    """The text that the teacher continues, up to where the explanation starts."""
    rendered = render_teacher(fmt, tokenizer, problem, "")
    return rendered.text[: rendered.prompt]


def student_prompt(fmt: Format, tokenizer: PreTrainedTokenizerBase, problem: Problem) -> str:
    """The text that a student answers, up to where its response starts; without the solution."""
    probe = fmt.student_response(fmt.as_written(_PROBE[0]), _PROBE[1])
    text, start = _render(tokenizer, fmt.student_messages(problem, probe), probe)
    return text[:start]


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], response: str) -> tuple[str, int]:
    """The chat with `response` as the last message's exact text, and the position where it starts."""
    *asked, probe = messages
    text = _applied(tokenizer, messages)
    if probe["content"] not in text:
        # A template that drops thoughts from an assistant's turn (DeepSeek-R1's) keeps a plain one.
        plain = {**probe, "content": "rlt-response"}
        text, probe = _applied(tokenizer, [*asked, plain]), plain
    # The other messages may lose surrounding blanks, as in many templates.
    lost = next((m for m in (*asked, probe) if m["content"].strip() not in text), None)
    if lost is not None:
        raise ModelError(
            f"the chat template of {_name(tokenizer)} drops or rewrites the {lost['role']} message, so the model would not "
            "read what the format says. Use another template (`chat_template.jinja` in the model's folder) or another "
            "format.\n" + _difference(lost["content"], text)
        )
    start = text.rfind(probe["content"])
    return text[:start] + response + text[start + len(probe["content"]) :], start


def prints_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's chat template prints the date."""
    return "strftime_now" in str(tokenizer.chat_template)


def _generation_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], before: str) -> str:
    """The prompt with which an engine asks for an answer to `messages`; `before`: the text before a finished answer.

    The two may differ: a template may open a thought, or put an empty one before a finished answer (Qwen3's).
    """
    asked = _applied(tokenizer, messages, add_generation_prompt=True)
    if asked == _applied(tokenizer, messages) != before:
        raise ModelError(
            f"the chat template of {_name(tokenizer)} ignores `add_generation_prompt`, so an engine cannot ask for an "
            "answer. Use another template, or a format with `solution_turn: assistant`."
        )
    return asked


def _applied(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool = False
) -> str:
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, strftime_now=strftime_now
        )
    except TemplateError as error:
        raise ModelError(
            f"the chat template of {_name(tokenizer)} rejects these messages ({error}). If it has no system role, use a "
            "format with `teacher_system_prompt` and `student_system_prompt` null, or another template."
        ) from error
    return str(text)


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "the tokenizer"


def _difference(written: str, rendered: str) -> str:
    sides = written.splitlines(), rendered.splitlines()
    return "\n".join(difflib.unified_diff(*sides, "message", "rendered by the template", lineterm=""))


def check_template(fmt: Format, tokenizer: PreTrainedTokenizerBase) -> None:
    """Render a probe for teacher and student; raise ModelError with a diff if the template loses any of its messages.

    Runs before a model's weights are loaded. System prompts from the rows are checked as each row is rendered.
    """
    if tokenizer.chat_template is None:
        raise ModelError(
            f"{_name(tokenizer)} has no chat template. Put a `chat_template.jinja` into its folder, or use an "
            "instruction-tuned model."
        )
    probe = Problem(id="probe", question="What is 2 + 3?", solution="It is 5.")
    render_student(fmt, tokenizer, probe, "")
    render_teacher(fmt, tokenizer, probe, "")


def check_problem(fmt: Format, problem: Problem, where: str) -> None:
    """Raise DataError, naming `where` and the column, if a question or solution contains a tag of the format."""
    for column in ("question", "solution"):
        tag = fmt.tag_inside(getattr(problem, column))
        if tag is not None:
            raise DataError(
                f"{where}: column `{column}` contains the format's tag {tag}, so its parts cannot be told apart. "
                "Drop the row, or remove the tag."
            )
