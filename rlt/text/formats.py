"""Formats: the prompts, tags and paddings that turn problems and explanations into text. Data, not code.

Text is rendered through a tokenizer's own chat template, and the character spans of explanation and solution are known
by construction: the assistant's message is found whole in the rendered text, and the spans are offsets inside it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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

    `student_system_prompt` null means: the problem's own `system` column, or no system message where it has none.
    `solution_turn` is where the teacher sees the solution: in the `assistant`'s turn, which it then continues, or behind
    the question in the `user`'s, for engines that only take messages; the assistant's turn is then the explanation alone.
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
            raise ValueError("a tag is empty; spans could not be told apart")
        return tags

    # -- the teacher's side ------------------------------------------------------------------------------------------

    def teacher_question(self, problem: Problem) -> str:
        """The user's text: the question, and behind it the solution where that stands in the user's turn."""
        return problem.question + (self.delimiter + self._shown(problem) if self.solution_turn == "user" else "")

    def teacher_prefix(self, problem: Problem) -> str:
        """The assistant's text that the teacher continues: solution in tags, then the opened explanation, padding in.

        Empty where the solution stands in the user's turn.
        """
        if self.solution_turn == "user":
            return ""
        return self._shown(problem) + self.delimiter + self.tags.explanation.open + self.padding

    def teacher_messages(self, problem: Problem, assistant: str | None = None) -> list[dict[str, str]]:
        """Chat messages of the teacher: its system prompt, the question, and `assistant` if it is not None.

        Without `assistant` they ask for an explanation, as engines take them; raises ConfigError for a format whose
        solution would be missing from them.
        """
        if assistant is None and self.solution_turn == "assistant":
            raise ConfigError(
                "the format has the solution in the assistant's turn, so messages alone cannot ask for an explanation. Use a "
                "format with `solution_turn: user`, such as stratos-user."
            )
        return _messages(self.teacher_system_prompt, self.teacher_question(problem), assistant)

    def _shown(self, problem: Problem) -> str:
        return self.tags.solution.open + problem.solution + self.tags.solution.close

    def parse_completion(self, completion: str) -> tuple[str, bool]:
        """The explanation exactly as the teacher wrote it up to its closing tag, and whether that tag was there."""
        text, tag, _ = completion.partition(self.tags.explanation.close)
        return text, bool(tag)

    def completed(self, problem: Problem, completion: str) -> Explanation:
        """The explanation in a teacher's raw `completion`: its text up to the closing tag, exactly as written."""
        return Explanation(problem, *self.parse_completion(completion))

    def finished(self, problem: Problem, explanation: str) -> Explanation:
        """A finished explanation, as a teacher writes it: with the padding that comes before its closing tag."""
        return Explanation(problem, self.as_written(explanation))

    # -- the student's side ------------------------------------------------------------------------------------------

    def for_students(self) -> tuple[object, ...]:
        """What a student's text depends on: two formats that agree in it are one to students."""
        return self.student_system_prompt, self.tags.thought, self.tags.solution, self.padding, self.delimiter

    def student_system(self, problem: Problem) -> str | None:
        """The student's system prompt for this problem, or None."""
        return problem.system if self.student_system_prompt is None else self.student_system_prompt

    def student_messages(self, problem: Problem, assistant: str) -> list[dict[str, str]]:
        """Chat messages of the student: system prompt if any, the question, and `assistant`."""
        return _messages(self.student_system(problem), problem.question, assistant)

    def as_written(self, explanation: str) -> str:
        """A finished `explanation` as a teacher writes it: with the padding that comes before its closing tag."""
        return explanation + self.padding

    def student_response(self, written: str, solution: str) -> str:
        """The student's response: thought (padding, then the explanation as written), delimiter, solution."""
        tags = self.tags
        thought = tags.thought.open + self.padding + written + tags.thought.close
        return thought + self.delimiter + tags.solution.open + solution + tags.solution.close

    def parse_response(self, response: str) -> tuple[str | None, str | None]:
        """`(thought, solution)` of a student's response; None for a part that never opens or never closes.

        The solution of a response that opens the tag and stops (length limit) is None: a grader's fallbacks decide.
        """
        return _between(response, self.tags.thought), _between(response, self.tags.solution, last=True)

    # -- validation --------------------------------------------------------------------------------------------------

    def tag_inside(self, text: str) -> str | None:
        """The first of this format's tags that occurs in `text`, or None."""
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
    """The format of that name (`stratos`, `r1`) or in that YAML file; None: DEFAULT_FORMAT.

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

    `prompt`: where the text ends that a model is given, and its own tokens begin; None: the text is tokenized whole.
    """

    text: str
    spans: dict[str, tuple[int, int]]
    prompt: int | None = None


# Placeholders for explanation and solution while a template is rendered. Templates that look into an assistant's message
# (Qwen3's takes thoughts apart, others strip blanks) see this well-formed one; the real text then takes its place.
_PROBE = "rlt-explanation", "rlt-solution"


def render_student(fmt: Format, tokenizer: PreTrainedTokenizerBase, problem: Problem, written: str) -> Rendered:
    """The student's text for an explanation as `written`, up to its closing tag, with spans `explanation` and `solution`.

    The explanation's span begins behind the padding that the format puts before it.
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

    `closed`: whether the closing tag follows. The span begins where the prompt ends.
    """
    prefix, close = fmt.teacher_prefix(problem), fmt.tags.explanation.close
    probe = fmt.teacher_prefix(replace(problem, solution=_PROBE[1])) + fmt.as_written(_PROBE[0]) + close
    text, start = _render(tokenizer, fmt.teacher_messages(problem, probe), prefix + written + (close if closed else ""))
    if fmt.solution_turn == "user":
        asked = _generation_prompt(tokenizer, fmt.teacher_messages(problem), text[:start])
        text, start = asked + text[start:], len(asked)
    prompt = start + len(prefix)
    end = prompt + len(written)
    # Behind an explanation that was cut off comes nothing: its last token must not merge with what a template would add.
    return Rendered(text if closed else text[:end], {"explanation": (prompt, end)}, prompt)


def teacher_prompt(fmt: Format, tokenizer: PreTrainedTokenizerBase, problem: Problem) -> str:
    """The text that the teacher continues, up to where the explanation begins."""
    rendered = render_teacher(fmt, tokenizer, problem, "")
    return rendered.text[: rendered.prompt]


def student_prompt(fmt: Format, tokenizer: PreTrainedTokenizerBase, problem: Problem) -> str:
    """The text that a student answers, up to where its response begins. The solution is not in it."""
    probe = fmt.student_response(fmt.as_written(_PROBE[0]), _PROBE[1])
    text, start = _render(tokenizer, fmt.student_messages(problem, probe), probe)
    return text[:start]


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], response: str) -> tuple[str, int]:
    """The chat with `response` in place of the last message's text, to the letter, and where it starts."""
    *asked, probe = messages
    text = _applied(tokenizer, messages)
    if probe["content"] not in text:
        # A template that takes thoughts out of an assistant's turn (DeepSeek-R1's) keeps a plain one.
        plain = {**probe, "content": "rlt-response"}
        text, probe = _applied(tokenizer, [*asked, plain]), plain
    # What else a message holds may lose the blanks around it, as in many templates.
    lost = next((m for m in (*asked, probe) if m["content"].strip() not in text), None)
    if lost is not None:
        raise ModelError(
            f"the chat template of {_name(tokenizer)} drops or rewrites the {lost['role']}'s message, so the model would not "
            "read what the format says. Use another template (a `chat_template.jinja` in the model's folder) or another "
            "format.\n" + _difference(lost["content"], text)
        )
    start = text.rfind(probe["content"])
    return text[:start] + response + text[start + len(probe["content"]) :], start


def prints_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's chat template asks for the date."""
    return "strftime_now" in str(tokenizer.chat_template)


def _generation_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], before: str) -> str:
    """The text with which an engine asks for an answer to `messages`; `before` is what a finished answer stands behind.

    They may differ: a template may open a thought, or put an empty one before a finished answer (Qwen3's).
    """
    asked = _applied(tokenizer, messages, add_generation_prompt=True)
    if asked == _applied(tokenizer, messages) != before:
        raise ModelError(
            f"the chat template of {_name(tokenizer)} ignores `add_generation_prompt`, so engines could not ask for an "
            "answer. Use another template, or a format with `solution_turn: assistant`."
        )
    return asked


def _applied(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool = False
) -> str:
    from jinja2 import TemplateError

    more: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "strftime_now": strftime_now}
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **more))
    except TemplateError as error:
        raise ModelError(
            f"the chat template of {_name(tokenizer)} refuses these messages ({error}). Where it knows no system role, use a "
            "format with `teacher_system_prompt` and `student_system_prompt` null, or another template."
        ) from error


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "the tokenizer"


def _difference(written: str, rendered: str) -> str:
    lines = difflib.unified_diff(
        written.splitlines(), rendered.splitlines(), "what was written", "what the template made of it", lineterm=""
    )
    return "\n".join(lines)


def check_template(fmt: Format, tokenizer: PreTrainedTokenizerBase) -> None:
    """Render a probe once for teacher and student; raise ModelError where the template loses any message of it.

    Done before a model's weights are loaded. The error shows the difference between what was written and rendered.
    Where the student's system prompt is the rows' own, it is checked as each row is rendered.
    """
    if tokenizer.chat_template is None:
        raise ModelError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template. Put a `chat_template.jinja` into its "
            "folder, or use an instruction-tuned model."
        )
    probe = Problem(id="probe", question="What is 2 + 3?", solution="It is 5.")
    render_student(fmt, tokenizer, probe, "")
    render_teacher(fmt, tokenizer, probe, "")


def check_problem(fmt: Format, problem: Problem, where: str) -> None:
    """Raise DataError, naming `where` and the column, if a tag of the format stands inside a question or solution."""
    for column in ("question", "solution"):
        tag = fmt.tag_inside(getattr(problem, column))
        if tag is not None:
            raise DataError(
                f"{where}: column `{column}` contains the format's tag {tag}, so its parts could not be told apart. "
                "Drop the row, or remove the tag."
            )
