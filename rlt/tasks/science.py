r"""Science: numbers with units, and several answers at once, each with a stated tolerance.

The `answer` is text or a JSON object:

- `3.0e8 m/s`: one quantity. A response must be within 1 % of it (`TOLERANCE`), with the right sign, in a unit of the same
  dimension. An integer without a unit is a count and must be exact. Anything but a number is compared as mathematics.
- `{"answers": ["2.5", "x^2"], "unit": "cm", "tolerance": 0.01}`: all of them, each once, in any order. `unit` is that of each
  number. `tolerance` is absolute, one number or one per answer (OlympiadBench's column `error`); `relative` is a share.
  Without either, six digits must agree, as in `rlt.tasks.math`.

Units are converted by `pint` (`pip install 'rlt[science]'`). A response may omit the unit; its number is then in the
reference's unit. If the reference has no unit, a response may have one.

The answer is the last `\boxed{...}`, as in `rlt.tasks.math`, or else the whole sentence after the last `answer is`. The
last number alone does not count: science texts often end with other numbers.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

from rlt.errors import DependencyError
from rlt.tasks import Verdict, math
from rlt.tasks.math_answers import number, parse, prepare, readable, same_answer, spell, split_top
from rlt.types import JsonMap

if TYPE_CHECKING:
    from pint import Unit, UnitRegistry

__all__ = ["CHEAP", "answer_of", "check_answer", "check_machine", "grade", "prepare", "question_of", "same"]

same = math.same
CHEAP = False  # anything but a number is compared by `rlt.tasks.math_answers`, which may never return
TOLERANCE = Fraction(1, 100)  # share of a plain reference
SIX_DIGITS = Fraction(2, 10**6)  # for one without a stated tolerance, as in mathematics


@dataclass(frozen=True)
class Reference:
    """One expected answer: `text` and, for a number, its `value`, its unit, and the largest allowed difference."""

    text: str
    value: Fraction | None
    unit: str | None
    limit: Fraction


def grade(solution: str, answer: str, question: str) -> Verdict:
    """Whether `solution` ends with exactly the expected answers. May take unbounded time, see `rlt.tasks.grading`."""
    found = math.boxed(solution) or _stated(solution)
    return Verdict(found is not None and _all_match(found, references(answer)), found)


def check_answer(answer: str, question: str) -> str | None:
    """Why no response can be graded against this answer, or None."""
    try:
        expected = references(answer)
    except ValueError as error:
        return str(error)
    for reference in expected:
        if reference.value is None and not readable(reference.text):
            return f"{reference.text!r} is neither a number nor LaTeX that math-verify can parse"
    return None


def check_machine() -> None:
    """Raise DependencyError if pint is not installed."""
    try:
        import pint  # noqa: F401
    except ImportError as error:
        raise DependencyError("task science needs pint for units: pip install 'rlt[science]'") from error


_PHRASE = re.compile(r"\banswer\s*(?:is|:)\s*:?\s*(?:approximately|about|roughly|around)?([^\n]+)", re.IGNORECASE)


def _stated(text: str) -> str | None:
    phrases = _PHRASE.findall(text)
    return re.split(r"[.!?](?:\s|$)", phrases[-1])[0].strip(" *$.") or None if phrases else None


# -- what is expected --------------------------------------------------------------------------------------------------


def references(answer: str) -> list[Reference]:
    """The expected answers of a row; raises ValueError, saying what is wrong, if they are invalid."""
    if not answer.lstrip().startswith("{"):
        return [_plain(answer)]
    try:
        found = json.loads(answer)
    except ValueError:
        return [_plain(answer)]  # a set in LaTeX's braces
    texts = found.get("answers") if isinstance(found, dict) else None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("`answers` must be a list of at least one text")
    unit = _unit(found["unit"]) if found.get("unit") else None
    if unit is not None and _known(unit) is None:
        raise ValueError(f"pint does not know the unit {found['unit']!r}")
    tolerance = found.get("tolerance")
    tolerances = tolerance if isinstance(tolerance, list) else [tolerance] * len(texts)
    if len(tolerances) != len(texts):
        raise ValueError(f"there are {len(texts)} answers and {len(tolerances)} tolerances")
    relative = SIX_DIGITS if found.get("relative") is None else _positive(found["relative"])
    made = []
    for text, limit in zip(texts, tolerances, strict=True):
        absolute = None if limit is None else _positive(limit)
        value = _number_of(text) if absolute is None else _value_of(text)
        made.append(
            Reference(text, value, unit, absolute if absolute is not None else relative * abs(value or Fraction(0)))
        )
    return made


def _plain(text: str) -> Reference:
    quantity = _quantity(text)
    # `2g` is a product, `2 g` and `2 \text{g}` are grams: as in mathematics.
    if quantity is None or re.search(r"\d[A-Za-z]\W*$", text):
        return Reference(text, None, None, Fraction(0))
    value, unit = quantity
    if unit is not None and _known(unit) is None:
        unit = None  # the thing that is counted
        if not re.search(r"[\d}]\s*\\?\w*\{?\s*[A-Za-z][a-z -]{2,}\W*$", text):
            return Reference(text, None, None, Fraction(0))
    counted = unit is None and re.fullmatch(r"[+-]?\d+", spell(text)[0]) is not None
    return Reference(text, value, unit, Fraction(0) if counted else TOLERANCE * abs(value))


def _positive(limit: object) -> Fraction:
    try:
        value = Fraction(str(limit).strip())
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"the tolerance {limit!r} is not a number") from error
    if value < 0:
        raise ValueError(f"the tolerance {limit!r} is negative")
    return value


def _number_of(text: str) -> Fraction | None:
    quantity = _quantity(text)
    return quantity[0] if quantity is not None and quantity[1] is None else None


def answer_of(row: JsonMap) -> str | None:
    """The answer of an OlympiadBench row as JSON, or None for a row of another form."""
    final = row.get("final_answer")
    if final is None:
        return None
    texts = [final] if isinstance(final, str) else [str(text) for text in cast(Iterable[object], final)]
    if row.get("is_multiple_answer"):
        texts = [piece for text in texts for piece in _pieces(text)]
    errors = [part.strip() for part in str(row.get("error") or "").split(",") if part.strip()]
    tolerance = errors[0] if len(errors) == 1 else errors or None
    unit = str(row.get("unit") or "").strip().strip("$").strip()
    return json.dumps(
        {"answers": [text.strip().strip("$") for text in texts], "unit": unit or None, "tolerance": tolerance}
    )


def question_of(row: JsonMap) -> str | None:
    """The question of an OlympiadBench row after the context that several questions share, or None without one."""
    context, question = row.get("context"), row.get("question")
    return f"{str(context).strip()}\n\n{question}" if context and question else None


# -- several answers ---------------------------------------------------------------------------------------------------


def _all_match(found: str, expected: Sequence[Reference]) -> bool:
    if len(expected) == 1:
        return _matches(found, expected[0])
    pieces = _pieces(found)
    return len(pieces) == len(expected) and _paired(pieces, list(expected))


def _pieces(found: str) -> list[str]:
    """The answers in a list: separated by commas outside of brackets, semicolons, `and`, `or`, or line breaks."""
    text = re.sub(r"\\(?:text|mathrm)\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\\\|\n|;|\\q?quad\b", ",", found)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.replace("$", " ").replace("{,}", "")).strip()
    if text.startswith(r"\{") and text.endswith(r"\}"):
        text = text[2:-2]
    return [piece.strip() for piece in split_top(text, (",",)) if piece.strip()]


def _paired(pieces: list[str], expected: list[Reference]) -> bool:
    """Whether pieces and references can be paired; with tolerances, one piece may match two references."""
    return not pieces or any(
        _matches(pieces[0], reference) and _paired(pieces[1:], expected[:place] + expected[place + 1 :])
        for place, reference in enumerate(expected)
    )


# -- one answer --------------------------------------------------------------------------------------------------------


def _matches(given: str, reference: Reference) -> bool:
    if reference.value is None:
        return same_answer(given, reference.text)
    quantity = _quantity(given) or _expression(given)
    if quantity is None:
        return False
    value, unit = quantity
    if unit is not None and reference.unit is not None:
        converted = _convert(value, unit, reference.unit)
        if converted is None:
            return False
        value = converted
    elif unit is not None and _known(unit) is None and not re.fullmatch(r"[A-Za-z][A-Za-z -]{2,}", unit):
        return False  # `2x` for 2; `2 electrons` is accepted
    # Conversions use floats.
    return abs(value - reference.value) <= reference.limit + abs(reference.value) * Fraction(1, 10**12)


def _value_of(text: str) -> Fraction | None:
    quantity = _quantity(text) or _expression(text)
    return quantity[0] if quantity is not None and quantity[1] is None else None


_BRACED = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_LATEX = re.compile(rf"\\(?:text|mathrm|textrm|mathit|mathbf|rm|operatorname|mbox|unit|si)\s*{_BRACED}")
_TAIL = re.compile(rf"(?P<head>.*?[\w}})\]])\s*\\(?:text|mathrm)\s*(?P<unit>{_BRACED}.*)", re.DOTALL)


def _expression(text: str) -> tuple[Fraction, str | None] | None:
    r"""The value of an expression without variables (`2\pi`, `\sqrt{3}/2 \text{ m}`), with its unit, or None."""
    text = _NAMED.sub("", text.strip().strip("$"))
    tail = _TAIL.fullmatch(text)
    body = spell(tail["head"] if tail else text)[0]
    if not body or re.search(r"[,;=<>]|\\pm|\\mp|\\cup|_|\bor\b", body):
        return None
    parsed = parse(body)
    value = parsed[0] if parsed else None
    if value is None or not getattr(value, "is_number", False) or not getattr(value, "is_real", False):
        return None
    decimal = float(value.evalf(20))  # type: ignore[attr-defined]
    finite = abs(decimal) < float("inf")
    return (Fraction(decimal), _unit(tail["unit"][1:-1]) if tail else None) if finite else None


_POWER = r"(?:\\times|\\cdot|\*|×|·|x)\s*10\s*(?:\^|\*\*)\s*\{?\s*([+-]?\d{1,3})\s*\}?"
_DIGITS = r"[+-]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d*)?"
_VALUE = re.compile(
    rf"(?P<number>\\frac\s*\{{[^{{}}]*\}}\s*\{{[^{{}}]*\}}|[+-]?\d+\s*/\s*\d+(?!\s*[A-Za-z])|{_DIGITS})"
    rf"(?:\s*{_POWER}|[eE](?P<exponent>[+-]?\d{{1,3}})(?![a-zA-Z0-9]))?\s*(?P<unit>.*)",
    re.DOTALL,
)
_NAMED = re.compile(r"^[^=<>]{0,40}?(?:=|\\approx|≈|\\simeq|\\sim)\s*")
_UNIT_TEXT = re.compile(r"[A-Za-z%°ΩµμÅ\\^(][A-Za-z0-9 %°ΩµμÅ·*/^{}()+\\.-]*")


@functools.lru_cache(maxsize=4096)
def _quantity(text: str) -> tuple[Fraction, str | None] | None:
    """A number and the unit after it, or None for any other text (`3 or 4`, `2x`, `5 \\pm 1`)."""
    text = text.strip().strip("$").strip()
    for spacing in (r"\,", r"\;", r"\:", r"\!", r"\ ", "~", "\u00a0", "\u202f"):
        text = text.replace(spacing, " ")
    text = text.replace("−", "-").replace("–", "-").replace("{,}", ",")
    text = _NAMED.sub("", re.sub(r"\\[dt]frac", r"\\frac", _LATEX.sub(r" \1", text))).rstrip(". ")
    if text.startswith("- "):
        text = "-" + text[2:]
    negative = text.startswith("-\\frac")
    match = _VALUE.fullmatch(text.removeprefix("-") if negative else text)
    if match is None or not match["number"].strip("+-."):
        return None
    value = number(spell(match["number"])[0])
    power = match[2] or match["exponent"]
    if value is None:
        return None
    value = (-value if negative else value) * Fraction(10) ** int(power or 0)
    unit = match["unit"].strip()
    if not unit:
        return value, None
    if not _UNIT_TEXT.fullmatch(unit):
        return None
    if re.search(r"\b(?:or|and|to|either|plus|minus|maybe)\b|\\(?:pm|mp|cup|sqrt|pi|frac\{)", unit):
        return None
    return value, _unit(unit)


_SYMBOLS = {
    r"\circ": "degree", r"\degree": "degree", "°": "degree", r"\Omega": "ohm", "Ω": "ohm", r"\mu": "µ", "μ": "µ",
    r"\AA": "angstrom", r"\mathring{A}": "angstrom", "Å": "angstrom", "%": "percent", r"\percent": "percent",
    r"\cdot": "*", "·": "*", r"\times": "*", r"\ell": "L",
}  # fmt: skip


def _unit(text: str) -> str:
    """A unit in pint's notation: `m \\cdot s^{-1}` gives `m * s**-1`."""
    text = _LATEX.sub(r" \1", text).strip().strip("$")
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?\s*(?=[CFK]\b)|°\s*(?=[CF]\b)", "deg", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", " degree", text)
    for symbol, name in _SYMBOLS.items():
        text = text.replace(symbol + " " if symbol == r"\mu" else symbol, name)
    text = re.sub(r"\^\s*\{\s*([+-]?\d+)\s*\}|\^\s*([+-]?\d+)", lambda m: f"**{m[1] or m[2]}", text)
    text = re.sub(r"(?<=[A-Za-z])([+-]\d)\b", r"**\1", text)  # `m s-1`
    return re.sub(r"\s+", " ", text).strip(" .")


# -- units -------------------------------------------------------------------------------------------------------------


@functools.cache
def _units() -> UnitRegistry:
    from pint import UnitRegistry

    return UnitRegistry(cache_folder=None, autoconvert_offset_to_baseunit=True)


@functools.lru_cache(maxsize=1024)
def _known(unit: str) -> Unit | None:
    """The unit as pint parses it, or None."""
    if len(unit) > 60 or re.search(r"\*\*\s*[+-]?\d{3}", unit):
        return None
    try:
        return _units().Unit(unit)
    except Exception:  # pint raises parser errors, its own, and arithmetic ones: they have no common base class
        return None


def _convert(value: Fraction, unit: str, target: str) -> Fraction | None:
    """`value` in the unit `target`, or None if the dimensions differ."""
    if unit == target:
        return value
    given, wanted = _known(unit), _known(target)
    if given is None or wanted is None or given.dimensionality != wanted.dimensionality:
        return None
    try:
        return Fraction(_units().Quantity(float(value), given).to(wanted).magnitude)
    except (ArithmeticError, ValueError, TypeError):  # pint's errors are TypeErrors: `degC/m` cannot be converted
        return None
