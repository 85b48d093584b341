"""Comparing two mathematical answers in one spelling: by structure, numbers, text, and math-verify.

Cheap steps come first, so that most answers never reach sympy. The cost of the last step is unbounded (`9^{9^{9^9}}`):
compare a model's answers only in a process that can be killed, see `rlt.tasks.grading`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rlt.tasks.math_spelling import NUMBER, NUMERALS, spell

# -- structure ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parts:
    """An answer with several parts. `kind`: `()`, `[]`, `(]`, `[)`, `set`, `list`, `union`, or `matrix` (row by row)."""

    kind: str
    items: tuple[str, ...]
    columns: int = 0


_MATRIX = re.compile(
    r"\\begin\{(?:[pbvB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{(?:[pbvB]?matrix|array)\}(?:\^T)?", re.DOTALL
)
_OPEN, _CLOSE = "([{\ue001", ")]}\ue002"


def split_top(text: str, separators: Sequence[str]) -> list[str]:
    """`text` split at each separator outside of brackets."""
    pieces, depth, start, position = [], 0, 0, 0
    while position < len(text):
        depth += (text[position] in _OPEN) - (text[position] in _CLOSE)
        separator = next((s for s in separators if depth == 0 and text.startswith(s, position)), None)
        if separator:
            pieces.append(text[start:position])
            position += len(separator)
            start = position
        else:
            position += 1
    return [*pieces, text[start:]]


def _parts(body: str) -> Parts | None:
    """The parts of an answer in one spelling, or None if it has only one."""
    if matrix := _MATRIX.fullmatch(body):
        rows = [row.split("&") for row in matrix[1].split("\ue003") if row]
        return Parts("matrix", tuple(cell for row in rows for cell in row), max(map(len, rows), default=0))
    pieces = split_top(body, ("\\cup",))
    if len(pieces) > 1:
        return Parts("union", tuple(piece.strip() for piece in pieces))
    pieces = [piece for piece in split_top(body, (",", ";")) if piece]
    if len(pieces) > 1:
        return Parts("list", tuple(expanded for piece in pieces for expanded in _plus_minus(piece)))
    if (interval := _interval(body)) is not None:
        return interval
    if len(body) > 1 and body[0] in "([" and body[-1] in ")]" and _encloses(body):
        pieces = split_top(body[1:-1], (",", ";"))
        if len(pieces) > 1:
            return Parts(body[0] + body[-1], tuple(pieces))
    if len(body) > 1 and (body[0], body[-1]) in (("\ue001", "\ue002"), ("{", "}")) and _encloses(body):
        pieces = [piece for piece in split_top(body[1:-1], (",", ";")) if piece]
        return Parts("set", tuple(expanded for piece in pieces for expanded in _plus_minus(piece)))
    expanded = _plus_minus(body)
    return Parts("list", expanded) if len(expanded) > 1 else None


def _encloses(body: str) -> bool:
    """Whether the first character's bracket is closed by the last character (half-open intervals included)."""
    depth = 0
    for position, character in enumerate(body):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0:
            return position == len(body) - 1
    return False


def _plus_minus(body: str) -> tuple[str, ...]:
    if body.count(r"\pm") != 1:
        return (body,)
    before, after = (part.strip() for part in body.split(r"\pm"))
    lead = before.endswith(("(", "=", "{")) or not before
    return (f"{before}{'' if lead else '+'}{after}", f"{before}-{after}")


_SIDE = r"[^<>=\ue005\ue006]+"
_BETWEEN = re.compile(rf"({_SIDE})([<\ue005])([a-zA-Z]|\\theta|\\alpha)([<\ue005])({_SIDE})")
_ABOVE = re.compile(rf"([a-zA-Z]|\\theta|\\alpha)([<>\ue005\ue006])({_SIDE})")


def _interval(body: str) -> Parts | None:
    """The interval of an inequality in one variable (`-2<x\\le7`, `x>3`), or None."""
    text = re.sub(r"\\le(?![a-zA-Z])\s*|<=", "\ue005", re.sub(r"\\ge(?![a-zA-Z])\s*|>=", "\ue006", body))
    text = re.sub(r"\\lt(?![a-zA-Z])\s*", "<", re.sub(r"\\gt(?![a-zA-Z])\s*", ">", text))
    if match := _BETWEEN.fullmatch(text):
        low, first, _, second, high = match.groups()
        return Parts(("(" if first == "<" else "[") + (")" if second == "<" else "]"), (low, high))
    if match := _ABOVE.fullmatch(text):
        _, relation, bound = match.groups()
        if relation in ">\ue006":
            return Parts("(" + ")" if relation == ">" else "[)", (bound, r"\infty"))
        return Parts("()" if relation == "<" else "(]", (r"-\infty", bound))
    return None


# -- sameness ----------------------------------------------------------------------------------------------------------

_NAME = r"(?:\\?[A-Za-z]+(?:_\w+)?'?(?:\([A-Za-z,]*\))?|\([A-Za-z](?:,[A-Za-z])+\))"
_ASSIGNED = re.compile(rf"({_NAME})(?:=|\\in(?![a-z])\s*|\\approx(?![a-z])\s*)(.+)", re.DOTALL)


LONGEST = 1000  # characters; longer texts are not answers, and their numbers have thousands of digits


@lru_cache(maxsize=4096)
def same_answer(given: str, answer: str) -> bool:
    """Whether `given` is the same as the reference `answer`, in any spelling.

    The same: other spellings of numbers, fractions, roots, expressions; a list, set or union in another order; with or
    without unit, dollar sign, degree sign, `x =`, base subscript; `10%` for 10 or 0.1 if the reference has the sign.
    Not the same: other interval brackets, another unit or base, a rounded number (six digits must agree).
    """
    if len(given) > LONGEST + 2 * len(answer):
        return False
    (left, left_unit), (right, right_unit) = spell(given), spell(answer)
    if not left or not right:
        return False
    if left_unit and right_unit and left_unit != right_unit:
        return False
    return _same(left, right)


def _same(left: str, right: str) -> bool:
    if left == right:
        return True
    if len(split_top(left, (",", ";"))) == 1 and len(split_top(right, (",", ";"))) == 1:
        given, answer = _ASSIGNED.fullmatch(left), _ASSIGNED.fullmatch(right)
        if given and answer:
            # y=2x and f(x)=2x name the same thing; x=5 and y=5 do not.
            names = {given[1], answer[1]}
            if len(names) > 1 and not any("(" in name for name in names):
                return _same_value(left, right)
            return _same(given[2], answer[2])
        if given and "=" not in right:
            return _same(given[2], right)
        if answer and "=" not in left:
            return _same(left, answer[2])
    given_parts, answer_parts = _parts(left), _parts(right)
    if given_parts or answer_parts:
        if given_parts and answer_parts:
            return _same_parts(given_parts, answer_parts)
        single, several = (left, answer_parts) if answer_parts else (right, given_parts)
        assert several is not None
        return several.kind == "set" and len(several.items) == 1 and _same(single, several.items[0])
    return _same_value(left, right)


def _same_parts(given: Parts, answer: Parts) -> bool:
    kinds = {given.kind, answer.kind}
    if len(given.items) != len(answer.items):
        return False
    if "matrix" in kinds:
        # A column or row is a vector with any brackets.
        shapes = {
            p.columns in (1, len(p.items)) if p.kind == "matrix" else p.kind in ("()", "[]") for p in (given, answer)
        }
        fits = given.columns == answer.columns if given.kind == answer.kind else shapes == {True}
        return fits and _all_same(given.items, answer.items)
    if kinds <= {"set", "list", "union"}:
        return _same_unordered(given.items, answer.items)
    if given.kind == answer.kind or kinds == {"()", "list"} or (kinds == {"()", "[]"} and len(given.items) != 2):
        return _all_same(given.items, answer.items)
    return False


def _all_same(given: Sequence[str], answer: Sequence[str]) -> bool:
    return all(_same(a, b) for a, b in zip(given, answer, strict=True))


def _same_unordered(given: Sequence[str], answer: Sequence[str]) -> bool:
    left = list(answer)
    for item in given:
        match = next((other for other in left if _same(item, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same_value(left: str, right: str) -> bool:
    if left == right:
        return True
    if _same_percent(left, right):
        return True
    numbers = number(left), number(right)
    if numbers[0] is not None and numbers[1] is not None:
        return _same_number(numbers[0], numbers[1], decimal="." in left or "." in right)
    based = _BASED.fullmatch(left), _BASED.fullmatch(right)
    if based[0] or based[1]:
        return _same_based(left, right)
    if _is_text(left) or _is_text(right):
        return _plain(left) == _plain(right)
    left, right = _last_side(left), _last_side(right)
    if ("=" in left) != ("=" in right):
        return False
    return left == right or _same_symbolically(left, right)


_DECIMAL = re.compile(rf"([+-]?)({NUMBER})")
_FRACTION = re.compile(rf"([+-]?)(\d*)\\frac\{{([+-]?{NUMBER})\}}\{{([+-]?{NUMBER})\}}")
_SLASHED = re.compile(rf"([+-]?{NUMBER})/({NUMBER})")
_SCIENTIFIC = re.compile(rf"([+-]?{NUMBER})(?:\\times|\\cdot|\*)10\^\{{?(-?\d{{1,3}})\}}?")


def number(body: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, mixed or scientific number, or None for anything else."""
    body = body.replace("{", "").replace("}", "") if re.fullmatch(r"\{[^{}]*\}", body) else body
    if match := _DECIMAL.fullmatch(body):
        return Fraction(body)
    if match := _FRACTION.fullmatch(body):
        sign, whole, top, bottom = match.groups()
        if Fraction(bottom) == 0 or (whole and (Fraction(top) < 0 or "." in top + bottom)):
            return None
        value = Fraction(whole or 0) + Fraction(top) / Fraction(bottom)
        return -value if sign == "-" else value
    if match := _SLASHED.fullmatch(body):
        return Fraction(match[1]) / Fraction(match[2]) if Fraction(match[2]) else None
    if match := _SCIENTIFIC.fullmatch(body):
        return Fraction(match[1]) * Fraction(10) ** int(match[2])
    return None


def _same_number(left: Fraction, right: Fraction, decimal: bool) -> bool:
    if left == right:
        return True
    # Six digits of an infinite decimal are enough; integers must be exact.
    return decimal and right.denominator != 1 and abs(left - right) <= Fraction(2, 10**6) * abs(right)


def _same_percent(left: str, right: str) -> bool:
    if not (left.endswith("%") or right.endswith("%")):
        return False
    bare = left.removesuffix("%"), right.removesuffix("%")
    if _same_value(*bare):
        return True
    share = number(bare[0]), number(bare[1])
    return right.endswith("%") and not left.endswith("%") and None not in share and share[0] * 100 == share[1]  # type: ignore[operator]


_BASED = re.compile(r"([0-9A-F]+)_\{?(\w+)\}?")


def _same_based(left: str, right: str) -> bool:
    given, answer = _BASED.fullmatch(left), _BASED.fullmatch(right)
    if given and answer:
        bases = NUMERALS.get(given[2], given[2]), NUMERALS.get(answer[2], answer[2])
        return given[1] == answer[1] and bases[0] == bases[1]
    # The question names the base, so digits without a base are in that one.
    return (given[1] if given else left) == (answer[1] if answer else right)


def _is_text(body: str) -> bool:
    return re.fullmatch(r"[A-Za-z][A-Za-z .,'!?:()-]*", body.strip("()")) is not None and len(_plain(body)) != 0 and (
        len(body.strip("()")) > 3 or body.startswith("(") or len(body) == 1
    )  # fmt: skip


def _plain(body: str) -> str:
    if choice := re.fullmatch(r"\(?([A-Z])[).:]*|\(([A-Z])\).*", body):
        return (choice[1] or choice[2]).casefold()
    words = re.sub(r"[^a-z0-9]", "", re.sub(r"^(?:the|an|a)(?=[a-z]{4})", "", body.casefold()))
    return NUMERALS.get(words, words)


def _last_side(body: str) -> str:
    """The right side of an equation whose left sides are numbers (`21+45=66`); otherwise the body."""
    sides = split_top(body, ("=",))
    letters = [re.search(r"[A-Za-z]", re.sub(r"\\(?:frac|sqrt|cdot|times|pi)\b", "", side)) for side in sides[:-1]]
    return sides[-1] if len(sides) > 1 and not any(letters) else body


# -- math-verify -------------------------------------------------------------------------------------------------------


def _same_symbolically(left: str, right: str) -> bool:
    from math_verify import verify

    # Without its own time limits, which use signals and so work only in the main thread.
    answer, given = parse(right), parse(left)
    return bool(answer and given) and verify(list(answer), list(given), timeout_seconds=None)


def prepare() -> None:
    """Import sympy and its parser, which takes a second, before the first answer is timed."""
    import math_verify  # noqa: F401


@lru_cache(maxsize=1024)
def parse(body: str) -> tuple[object, ...]:
    """The sympy objects that math-verify parses from an answer in one spelling; empty if it cannot."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig
    from math_verify import parse as read

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    latex = body.replace("\ue001", r"\{").replace("\ue002", r"\}").replace("\ue003", r"\\")
    latex = (
        re.sub(r"(\d)\\frac\{(\d+)\}\{(\d+)\}", r"(\1+\\frac{\2}{\3})", latex) if _FRACTION.fullmatch(body) else latex
    )
    # Its own list of units has single letters, which are variables here (`5m`).
    spelling = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    config = LatexExtractionConfig(normalization_config=spelling)
    return tuple(read(f"${latex}$", [config], fallback_mode="no_fallback", parsing_timeout=None))  # type: ignore[arg-type]


def readable(answer: str) -> bool:
    """Whether the reference can be compared: a number, text, or LaTeX that can be parsed in every part."""
    return _readable(spell(answer)[0])


def _readable(body: str) -> bool:
    assigned = _ASSIGNED.fullmatch(body)
    body = assigned[2] if assigned and "," not in body else body
    parts = _parts(body)
    if parts:
        return all(_readable(item) for item in parts.items)
    bare = body.removesuffix("%")
    return number(bare) is not None or bool(_BASED.fullmatch(bare)) or "\\" not in bare or bool(parse(bare))
