"""Multiple choice: the letter at the end of a solution.

The first of these that is found counts, right or wrong:

1. the last `\\boxed{...}`: a letter (`C`, `(C)`, `\\text{C}`, `C. 5 m`), or the text of one of the question's choices;
2. what follows the last `answer is`, `answer:`, `choice is` or `option is`;
3. the last letter alone on its line, in brackets or in bold.

Several letters in the first two places (`A or B`) are wrong.
"""

from __future__ import annotations

import re

from rlt.tasks import Verdict

CHEAP = True

LETTERS = "ABCDEFGHIJ"
_CHOICE = re.compile(rf"^\s*\(?([{LETTERS}])[).:]\s+(.+?)\s*$", re.MULTILINE)
_BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_PHRASE = re.compile(
    r"\b(?:answer|choice|option)\s*(?:is|:)\s*:?\s*(?:option|choice)?[\s*$(\\]*"
    # A small `a` before a word is an article.
    rf"(?:text\w*\{{|mathrm\{{|boxed\{{)?[\s*(]*((?-i:[{LETTERS}])(?![A-Za-z'])|[{LETTERS}](?=[).*$\s]*(?:\n|$)))",
    re.IGNORECASE,
)
_OTHER = r"(?:,|/|;|\bor\b|\band\b|\\text\{ *(?:or|and) *\})"
_SEVERAL = re.compile(rf"\(?[{LETTERS}]\)?(?:\s*{_OTHER}\s*\(?[{LETTERS}]\)?(?![A-Za-z']))+")
_ALONE = re.compile(
    rf"\(([{LETTERS}])\)|\*\*\(?([{LETTERS}])[).]?\*\*|^[ \t]*([{LETTERS}])[ \t]*[.)]?[ \t]*$", re.MULTILINE
)


def grade(solution: str, answer: str, question: str) -> Verdict:
    """Whether the last choice in `solution` is the letter `answer`."""
    extracted = _boxed(solution, question) or _stated(solution) or _alone(solution)
    return Verdict(extracted == _letter(answer), extracted)


def check_answer(answer: str, question: str) -> str | None:
    """Why the answer is invalid, or None: it must be a letter, and one of the question's choices if these are listed."""
    letter = _letter(answer)
    if letter is None:
        return f"{answer!r} is not a letter from A to {LETTERS[-1]}"
    choices = choices_of(question)
    return f"{answer!r} is not one of the question's choices" if choices and letter not in choices else None


def choices_of(question: str) -> dict[str, str]:
    """Letter -> text of the choices in a question, one per line, as `A. text` or `(A) text`."""
    return {letter: text for letter, text in _CHOICE.findall(question)}


def _letter(text: str) -> str | None:
    match = re.fullmatch(rf"\s*\(?([{LETTERS}])\)?[.:]?\s*", text, re.IGNORECASE)
    return match[1].upper() if match else None


def _boxed(solution: str, question: str) -> str | None:
    boxes = _BOX.findall(solution)
    if not boxes:
        return None
    content = re.sub(r"\\(?:text\w*|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", boxes[-1]).strip(" $*")
    if _SEVERAL.fullmatch(content):
        return content
    if match := re.match(rf"\(?([{LETTERS}])(?:[).:,]|\s|$)", content):
        return match[1]
    spelled = {_plain(text): letter for letter, text in choices_of(question).items()}
    return _letter(content) or spelled.get(_plain(content))


def _plain(text: str) -> str:
    return re.sub(r"[\s$.]|\\[,;!]", "", text).casefold()


def _stated(solution: str) -> str | None:
    found = list(_PHRASE.finditer(solution))
    if not found:
        return None
    several = _SEVERAL.match(solution, found[-1].start(1))
    return several[0] if several else found[-1][1].upper()


def _alone(solution: str) -> str | None:
    found = _ALONE.findall(solution)
    return next(filter(None, found[-1])) if found else None
