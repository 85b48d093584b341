"""Mathematics: the last answer of a solution, compared by `rlt.tasks.math_answers`.

The first of these that is found counts, right or wrong:

1. the last `\\boxed{...}` (several side by side, `\\boxed{1}` and `\\boxed{2}`, are one answer with several parts);
2. what follows the last `answer is`, if no other line comes after it;
3. the last number.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rlt.tasks import Verdict
from rlt.tasks.math_answers import prepare, readable, same_answer
from rlt.tasks.math_spelling import NUMERALS, spell

__all__ = ["CHEAP", "boxed", "check_answer", "extract", "grade", "prepare", "same", "stated"]

CHEAP = False  # sympy may never return: graded in processes that can be killed


def grade(solution: str, answer: str, question: str) -> Verdict:
    """The verdict on the last answer in `solution`. May take unbounded time; `rlt.tasks.grading` limits it."""
    boxes = _last_boxes(solution)
    if len(boxes) > 1:
        # Parts of one answer, or one answer in several forms: `15\\frac{39}{40}` or `\\frac{639}{40}`.
        extracted = ", ".join(boxes)
        return Verdict(same_answer(extracted, answer) or all(same_answer(box, answer) for box in boxes), extracted)
    found = extract(solution)
    return Verdict(found is not None and same_answer(found, answer), found)


def check_answer(answer: str, question: str) -> str | None:
    """Why no response can be graded against this answer, or None. May take unbounded time, like `grade`."""
    if not answer.strip():
        return "it is empty"
    bare = re.sub(r"\\[{}]", "", answer)
    if bare.count("{") != bare.count("}"):
        return f"{answer!r} has an unmatched brace"
    if not re.search(r"\w", spell(answer)[0]):
        return f"{answer!r} has nothing to compare"
    return None if readable(answer) else f"{answer!r}: math-verify cannot parse this LaTeX"


def same(given: str, other: str) -> bool:
    """Whether two extracted answers are votes for the same thing."""
    return given == other or (len(given) + len(other) < 200 and spell(given) == spell(other))


# -- finding the answer ------------------------------------------------------------------------------------------------


def extract(solution: str) -> str | None:
    """The last answer in `solution` as written, or None (the order is in the module's docstring)."""
    return boxed(solution) or stated(solution) or _last_number(solution)


def boxed(solution: str) -> str | None:
    """The content of the last box, or of the last ones side by side, or None."""
    return ", ".join(_last_boxes(solution)) or None


class _Box(NamedTuple):
    begin: int
    content: str
    end: int


_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_BETWEEN_BOXES = re.compile(r"(?:[\s$,;]|\\[()\[\],;]|\b(?:and|or)\b|\\(?:text|q?quad)\b|[{}])*")


def _last_boxes(text: str) -> list[str]:
    """The contents of the last box and of those separated from it only by commas and the like."""
    boxes = [box for match in _BOX.finditer(text) if (box := _box(text, match)).content]
    if not boxes:
        return []
    together = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if not _BETWEEN_BOXES.fullmatch(text, box.end, together[0].begin):
            break
        together.insert(0, box)
    return list(dict.fromkeys(box.content for box in together))


def _box(text: str, match: re.Match[str]) -> _Box:
    start = match.end()
    if not text.startswith("{", start):  # \boxed 5
        bare = re.compile(r"[^\s$\\]*").match(text, start)
        assert bare is not None
        return _Box(match.start(), bare[0], bare.end())
    depth = 0
    for position in range(start, len(text)):
        if text[position - 1] != "\\" or text[position - 2 : position] == "\\\\":
            depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return _Box(match.start(), text[start + 1 : position].strip(), position + 1)
    line = text[start + 1 :].split("\n")[0]  # cut off inside the box
    return _Box(match.start(), line.strip(), start + 1 + len(line))


_PHRASE = re.compile(r"\banswer\s*(?:is|:)\s*:?", re.IGNORECASE)
_MATH = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|\*\*(.+?)\*\*", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|\n")


def stated(text: str) -> str | None:
    """What follows the last `answer is`, if no other line comes after it, or None."""
    phrases = list(_PHRASE.finditer(text))
    if not phrases:
        return None
    rest = text[phrases[-1].end() :].strip().strip("*").strip()
    if not rest or "\n" in _MATH.sub("", rest).strip():
        return None
    sentence = _SENTENCE_END.split(rest)[0].strip()
    math = _MATH.search(rest)
    if math:
        return next(group for group in math.groups() if group is not None).strip()
    words = sentence.split()
    if len(words) <= 2:
        return sentence
    numbers = _NUMBER.findall(sentence)
    return numbers[0] if numbers else next((word for word in words if word.casefold() in NUMERALS), sentence)


_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|-?\.\d+")


def _last_number(text: str) -> str | None:
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None
