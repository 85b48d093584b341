"""One spelling for mathematical answers in LaTeX and plain notations."""

from __future__ import annotations

import re
from functools import lru_cache

_SYMBOLS = {
    "−": "-", "–": "-", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "≤": r"\le ", "≥": r"\ge ", "×": r"\times ",
    "·": r"\cdot ", "÷": "/", "±": r"\pm ", "√": r"\sqrt", "²": "^2", "³": "^3", "°": r"^\circ ", "∈": r"\in ",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "\u00a0": " ", "\u202f": " ", "，": ",", "’": "'",
}  # fmt: skip
_SPACING = re.compile(
    r"\\[,;:! ]|\\q?quad\b|\\(?:displaystyle|textstyle|limits|nolimits|hfill)\b|~|\\(?:big|Big|bigg|Bigg)[lr]?\b"
)
_DELIMITERS = re.compile(r"\\[()\[\]]|\*\*|(?<!\\)\$")
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname|rm|bf)\s*\{([^{}]*)\}"
)
_WORD = "\ue000"  # surrounds what was set as text, until units are told from variables
# Other private characters: \ue001 and \ue002 are a set's braces, \ue003 ends a matrix row, \ue004 is a space to keep,
# \ue005 and \ue006 are "at most" and "at least". None of them occurs in LaTeX.
_JOIN = re.compile(
    rf"{_WORD}\s*,?\s*(?:and|or)\s*{_WORD}|(?<=[\s\d)}}\]]),?\s*\b(?:and|or)\b\s*(?=[\s\d({{\[\\a-zA-Z-])"
)
NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_FUNCTIONS = frozenset({
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "log", "ln", "exp", "sqrt", "pi", "mod",
    "inf", "infinity", "max", "min", "gcd", "lcm",
})  # fmt: skip

# Spelling of a unit -> the unit. Only these are compared; other words after a number say what is counted.
_UNITS = {
    spelling: unit
    for unit, spellings in {
        "cm": "cm centimeter centimeters centimetre centimetres", "mm": "mm millimeter millimeters",
        "m": "m meter meters metre metres", "km": "km kilometer kilometers", "in": "in inch inches",
        "ft": "ft foot feet", "yd": "yd yard yards", "mi": "mi mile miles", "s": "s sec second seconds",
        "min": "min minute minutes", "h": "h hr hrs hour hours", "day": "day days", "week": "week weeks",
        "year": "year years", "g": "g gram grams", "kg": "kg kilogram kilograms", "lb": "lb lbs pound pounds",
        "oz": "oz ounce ounces", "l": "l L liter liters litre litres", "ml": "ml mL milliliter milliliters",
        "cent": "cent cents", "dollar": "dollar dollars", "mph": "mph", "radian": "radian radians rad",
    }.items()
    for spelling in spellings.split()
}  # fmt: skip
NUMERALS = {
    word: str(value)
    for value, word in enumerate([
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
    ])
}  # fmt: skip


_BOXED = re.compile(r"[\s$]*\\boxed\s*\{(.*)\}[\s$.]*", re.DOTALL)


def _balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


@lru_cache(maxsize=4096)
def spell(text: str) -> tuple[str, str | None]:
    """`(body, unit)`: the answer in one spelling without spaces, and the unit after it, if known.

    `"\\dfrac12 \\text{ inches}."` gives `("\\frac{1}{2}", "in")`. Drops dollar and degree signs, keeps percent signs.
    """
    if (boxed := _BOXED.fullmatch(text)) and _balanced(boxed[1]):
        text = boxed[1]
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = text.replace(r"\$", "").replace(r"\%", "%").replace(r"\{", "\ue001").replace(r"\}", "\ue002")
    text = text.replace("{,}", ",").replace(r"\\", "\ue003")
    text = re.sub(r",?\\[,!;: ]\s*(?=\d{3}(?!\d))", lambda match: match[0][0].replace("\\", ""), text)
    text = _DELIMITERS.sub("", _SPACING.sub(" ", text))
    while (unwrapped := _TEXT.sub(rf" {_WORD}\1{_WORD} ", text)) != text:
        text = unwrapped
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|\\circ\b", "", text)
    text = re.sub(r"\\(?:left|right)\s*(?=[^a-zA-Z])|\\(?:left|right)\b", "", text)
    text = re.sub(r"\\lbrace\b", "\ue001", re.sub(r"\\rbrace\b", "\ue002", text))
    text = text.replace(r"\langle", "(").replace(r"\rangle", ")").replace(r"\lbrack", "[").replace(r"\rbrack", "]")
    text = re.sub(r"\b([AaPp])\.\s?[Mm]\b\.?", r"\1m", text)
    text = _JOIN.sub(" , ", text)
    text = re.sub(r"^\s*([+-]?\d+)\s+(\d+)\s*/\s*(\d+)\s*$", r"\1\\frac{\2}{\3}", text)
    body, unit = _split_unit(text.strip().rstrip(".,;:").strip())
    body = _spell_math(body.replace(_WORD, " ").strip())
    return body, unit


_TRAILING = re.compile(
    rf"^(?P<body>.*[\d}})\]%\ue002]|.*\\pi|.*\b[a-z])\s*"
    rf"(?P<words>{_WORD}[^{_WORD}]*{_WORD}|\s[A-Za-z][A-Za-z .'/-]*)\s*"
    r"(?:\^\s*\{?\s*[23]\s*\}?)?\s*\.?$",
    re.DOTALL,
)


def _split_unit(text: str) -> tuple[str, str | None]:
    unit: str | None = None
    while match := _TRAILING.match(text):
        set_as_text = _WORD in match["words"]
        words = match["words"].replace(_WORD, " ").strip(" .'-")
        parts = re.findall(r"[A-Za-z]+", words)
        if not parts:
            break
        # `3 m` may be a product; `3 \text{ m}` and `3 cm` are not. Neither is `3 boxes`.
        wordy = set_as_text or any((len(part) > 2 or part in _UNITS) and len(part) > 1 for part in parts)
        if (
            not wordy
            or words.lower() in ("am", "pm")
            or _FUNCTIONS & {part.lower() for part in parts}
            or re.search(r"[=<>]|\\(?:in|le|ge)\b", words)
        ):
            break
        known = [_UNITS[part] for part in parts if part in _UNITS]
        unit = known[0] if known and not {"per", "square", "cubic", "sq"} & set(parts) and "/" not in words else unit
        text = match["body"].rstrip()
    return text, unit


_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?![\d,])(?=[^,]*$)")


def _spell_math(text: str) -> str:
    # `1,000` and `1,000\\pi` are numbers, `1, 000` and `(1,000)` are not.
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text, count=1) if _THOUSANDS.match(text) else text
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\(?:leqslant|leq)\b", r"\\le ", re.sub(r"\\(?:geqslant|geq)\b", r"\\ge ", text))
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d|[a-z])", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\d|[a-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"\bsqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text))
    text = re.sub(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi ", text)
    text = re.sub(r"(?<![\\a-zA-Z])(?:infinity|infty|inf)(?![a-zA-Z])", r"\\infty ", text)
    text = re.sub(r"(?<=[\])])\s*U\s*(?=[\[(])", r"\\cup ", text)
    # A space that ends a command's name is kept before a letter.
    text = re.sub(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])", "\\1\ue004", text)
    text = re.sub(r"\s+", "", text).replace("\ue004", " ")
    text = re.sub(r"\^\{(\w)\}", r"^\1", re.sub(r"_\{(\w+)\}", r"_\1", text))
    return text.replace("+\\infty", "\\infty")
