"""Countdown: reach a target with given numbers, each used at most once, by + - * and exact division.

A question reads `25 7 3 4 make 46 ?`; the solution is an expression, `25 + ( 7 * 3 )`, with spaces between words.
Explanations write one step after another, `7 * 3 21`, and `no` after a failed try of a searching solver.

The experts are synthetic, like those of `rlt.tasks.arithmetic`: some work carefully, most search, leap, slip, or state
the answer first. The checker has its own small parser and exact fractions; a model's text is never evaluated as code.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from rlt.errors import ConfigError
from rlt.tasks import Verdict, experts
from rlt.tasks.generation import bounds, distinct
from rlt.types import JsonRow, Problem

CHEAP = True  # graded in this process: a small parser, linear in the text

LARGEST = 99
OPERATORS = "+-*/"

MIXTURES: dict[str, dict[str, float]] = {
    "careful": {"careful": 1.0},
    "noisy": {"careful": 0.10, "leap": 0.35, "search": 0.20, "sloppy": 0.15, "answer_first": 0.20},
    "searching": {"careful": 0.20, "search": 0.80},
}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a solution: `left operator right` is `value`, all whole numbers from 0 to 99."""

    left: int
    operator: str
    right: int
    value: int

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right} {self.value}"


# -- problems ----------------------------------------------------------------------------------------------------------


def generate(count: int, seed: int, options: JsonRow | None = None, exclude: Iterable[str] = ()) -> list[Problem]:
    """`count` solvable problems with distinct questions, none of which is in `exclude`.

    Options: `numbers`, the number of given numbers, or [fewest, most] (4); `largest`, the largest of them (25); `spare`,
    how many of them the solution does not need (0). The target and all intermediate values are whole and at most 99.
    Raises ConfigError for other options, and if there are too few different questions.
    """
    fewest, most, largest, spare = _options(options or {})

    def draw(rng: random.Random) -> Problem | None:
        numbers = [rng.randint(1, largest) for _ in range(rng.randint(fewest, most))]
        made = _make(numbers[: len(numbers) - spare], rng)
        if made is None:
            return None
        target, expression = made
        rng.shuffle(numbers)
        question = " ".join([*map(str, numbers), "make", str(target), "?"])
        return None if target in numbers else Problem("", question, solution=expression, answer=str(target))

    return distinct("countdown", count, seed, draw, exclude, "these options", tries=200)


def _options(options: JsonRow) -> tuple[int, int, int, int]:
    low, high = bounds(options.get("numbers", 4))
    largest, spare = options.get("largest", 25), options.get("spare", 0)
    known = not options.keys() - {"numbers", "largest", "spare"}
    if (
        known and isinstance(largest, int) and 2 <= largest <= LARGEST and low <= high <= 6
        and isinstance(spare, int) and 0 <= spare <= low - 2
    ):  # fmt: skip
        return low, high, largest, spare
    raise ConfigError(
        "countdown: options are `numbers`: 2 to 6, or [fewest, most]; `largest`: 2 to 99; `spare`: how many numbers are "
        f"not needed, leaving at least 2; not {options}."
    )


def _make(numbers: Sequence[int], rng: random.Random) -> tuple[int, str] | None:
    """A target made from all `numbers` by random steps, with its expression; None if no step is possible."""
    heap = [(number, str(number)) for number in numbers]
    while len(heap) > 1:
        left, right = (heap.pop(rng.randrange(len(heap))) for _ in range(2))
        choices = [(op, value) for op in OPERATORS if (value := _whole(left[0], op, right[0])) is not None]
        if not choices:
            return None
        operator, value = rng.choice(choices)
        heap.append((value, f"( {left[1]} {operator} {right[1]} )"))
    value, expression = heap[0]
    return value, expression.removeprefix("( ").removesuffix(" )")


def _whole(left: int, operator: str, right: int) -> int | None:
    """The value if it is a whole number from 1 to 99 and the step changes something; otherwise None."""
    if operator == "/" and (right in (0, 1) or left % right):
        return None
    if operator == "*" and 1 in (left, right):
        return None
    value = {"+": left + right, "-": left - right, "*": left * right, "/": left // right if right else 0}[operator]
    return value if 1 <= value <= LARGEST else None


# -- experts -----------------------------------------------------------------------------------------------------------


def explain(problem: Problem, mixture: str, rng: random.Random) -> str:
    """An explanation by an expert drawn from `mixture`; it leads to the problem's solution, though steps may be missing."""
    return _EXPERTS[experts.drawn("countdown", MIXTURES, mixture, rng)](problem, rng)


def steps_of(expression: str) -> list[Step]:
    """The steps of a solution made by `generate`, innermost first."""
    steps: list[Step] = []
    _Parser(_tokens(expression), steps).whole()
    return steps


def _careful(problem: Problem, rng: random.Random) -> str:
    return " ".join(map(str, steps_of(problem.solution)))


def _leap(problem: Problem, rng: random.Random) -> str:
    return " ".join(experts.leaped([*map(str, steps_of(problem.solution))], experts.LEAP, rng, keep_last=False))


def _search(problem: Problem, rng: random.Random) -> str:
    numbers, _ = read_question(problem.question)
    words = []
    for step in steps_of(problem.solution):
        for _ in range(rng.choice((0, 1, 1, 2))):
            left, right = rng.sample(numbers, 2)
            tried = [(op, value) for op in OPERATORS if (value := _whole(left, op, right)) is not None]
            if tried:
                operator, value = rng.choice(tried)
                words += [str(Step(left, operator, right, value)), "no"]
        words.append(str(step))
    return " ".join(words)


def _sloppy(problem: Problem, rng: random.Random) -> str:
    steps = steps_of(problem.solution)
    slip = rng.randrange(len(steps))
    last = len(steps) - 1
    shown = [
        Step(step.left, step.operator, step.right, rng.randint(1, LARGEST)) if i == slip != last else step
        for i, step in enumerate(steps)
    ]
    return " ".join(map(str, shown))


def _answer_first(problem: Problem, rng: random.Random) -> str:
    return f"so {problem.solution} {_leap(problem, rng)}"


_EXPERTS = {"careful": _careful, "leap": _leap, "search": _search, "sloppy": _sloppy, "answer_first": _answer_first}


# -- grading -----------------------------------------------------------------------------------------------------------


def grade(solution: str, answer: str, question: str) -> Verdict:
    """Whether the last expression in `solution` has the value `answer` and uses each of the question's numbers at most once.

    Only the last `\\boxed{}` is searched, if there is one. The last expression is the last one with an operator (`= 24`
    after it does not count), or else the last number.
    """
    extracted = extract(solution)
    if extracted is None:
        return Verdict(False, None)
    try:
        value, used = evaluate(extracted)
        numbers, _ = read_question(question)
    except ValueError:
        return Verdict(False, extracted)
    return Verdict(value == Fraction(answer.strip()) and not Counter(used) - Counter(numbers), extracted)


def check_answer(answer: str, question: str) -> str | None:
    """Why no response can be graded, or None: the answer must be the target, and the question must give numbers."""
    if not re.fullmatch(r"\s*-?\d+(?:/\d+)?\s*", answer) or re.search(r"/0+\s*$", answer):
        return f"the answer must be the target, a number, not {answer!r}"
    try:
        numbers, _ = read_question(question)
    except ValueError as error:
        return str(error)
    return None if numbers else "the question gives no numbers to use"


def read_question(question: str) -> tuple[list[int], int]:
    """The numbers to use and the target: `3 4 make 12 ?`, or numbers in square brackets and the last number after them.

    Any other text: all whole numbers of the question, the last of which is the target. Raises ValueError for fewer than two.
    """
    if match := re.search(r"\[([\d,\s]+)\]", question):
        inside = [int(number) for number in re.findall(r"\d+", match[1])]
        after = re.findall(r"\d+", question[match.end() :]) or re.findall(r"\d+", question[: match.start()])
        found = [*inside, *(int(number) for number in after[:1])]
    else:
        found = [int(number) for number in re.findall(r"\d+", question)]
    if len(found) < 2:
        raise ValueError("the question must give numbers and a target, like `3 4 make 12 ?`")
    return found[:-1], found[-1]


_LATEX = ((r"\times", "*"), (r"\cdot", "*"), (r"\div", "/"), ("×", "*"), ("·", "*"), ("÷", "/"), ("−", "-"),
          (r"\left", ""),
          (r"\right", ""), ("[", "("), ("]", ")"), ("$", " "))  # fmt: skip
_RUN = re.compile(r"[\d(][\d+\-*/()\s]*")
LONGEST = 2000  # characters of one expression


def extract(solution: str) -> str | None:
    """The last expression in `solution`, or None."""
    text = solution.rpartition(r"\boxed")[2] if r"\boxed" in solution else solution
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}", r"((\1)/(\2))", text)
    for latex, plain in _LATEX:
        text = text.replace(latex, plain)
    text = re.sub(r"\d*\.\d+", "#", text)  # no decimals: `1.5 + 3` is not `5 + 3`
    runs = [run.rstrip("+-*/ \t") for line in text.splitlines() for run in _RUN.findall(line)]
    readable = [run for run in runs if re.search(r"\d", run)]
    with_operator = [run for run in readable if re.search(r"\d[\s)]*[-+*/]", run)]
    found = (with_operator or readable)[-1:]
    return found[0] if found else None


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression of whole numbers, + - * / and brackets, and its numbers.

    Raises ValueError for anything else, for a division by zero, and for more than 2,000 characters.
    """
    if len(expression) > LONGEST:
        raise ValueError("an expression of more than 2,000 characters")
    tokens = _tokens(expression)
    return _Parser(tokens).whole(), [int(token) for token in tokens if token.isdecimal()]


def _tokens(expression: str) -> list[str]:
    tokens = re.findall(r"\d+|[-+*/()]|\S", expression)
    if bad := [token for token in tokens if not re.fullmatch(r"[0-9]{1,12}|[-+*/()]", token)]:
        raise ValueError(f"unexpected {bad[0]!r} in an expression")
    return tokens


class _Parser:
    """Recursive descent over the tokens; appends each operation to `steps`, if given."""

    DEEPEST = 50

    def __init__(self, tokens: list[str], steps: list[Step] | None = None) -> None:
        self.tokens, self.position, self.depth, self.steps = tokens, 0, 0, steps

    def whole(self) -> Fraction:
        value = self._sum()
        if self.position < len(self.tokens):
            raise ValueError(f"{self.tokens[self.position]!r} after the end of the expression")
        return value

    def _next(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _sum(self) -> Fraction:
        value = self._product()
        while (operator := self._next()) in ("+", "-"):
            self.position += 1
            value = self._apply(value, operator, self._product())
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while (operator := self._next()) in ("*", "/"):
            self.position += 1
            value = self._apply(value, operator, self._factor())
        return value

    def _factor(self) -> Fraction:
        token = self._next()
        self.position += 1
        if token.isdecimal():
            return Fraction(int(token))
        if token != "(":
            raise ValueError(f"{token!r} instead of a number" if token else "the expression ends too early")
        self.depth += 1
        if self.depth > self.DEEPEST:
            raise ValueError("too many nested brackets")
        value = self._sum()
        if self._next() != ")":
            raise ValueError("a bracket is not closed")
        self.position += 1
        self.depth -= 1
        return value

    def _apply(self, left: Fraction, operator: str, right: Fraction) -> Fraction:
        if operator == "/" and right == 0:
            raise ValueError("a division by zero")
        value = {"+": left + right, "-": left - right, "*": left * right}.get(operator)
        value = left / right if value is None else value
        if self.steps is not None:
            self.steps.append(Step(int(left), operator, int(right), int(value)))
        return value


def inspect(explanation: str, question: str) -> dict[str, bool]:
    """What a person would see in an explanation.

    `leaks`: it starts with the solution. `correct`: it consists of steps with right values, from available numbers to the
    target.
    """
    words = explanation.split()
    have, target = read_question(question)
    correct, value = len(words) % 4 == 0, None
    for left, operator, right, result in zip(*(words[i::4] for i in range(4)), strict=False):
        operands = [int(word) for word in (left, right) if word.isdecimal()]
        if len(operands) != 2 or operator not in OPERATORS or Counter(operands) - Counter(have):
            correct = False
            break
        value = _whole(operands[0], operator, operands[1])
        if value is None or str(value) != result:
            correct = False
            break
        have = [*(Counter(have) - Counter(operands)).elements(), value]
    return {"leaks": words[:1] == ["so"] or words[:1] == ["("], "correct": correct and value == target}


def vocabulary() -> list[str]:
    """Every word of questions, explanations and solutions."""
    return [*map(str, range(LARGEST + 1)), *OPERATORS, "(", ")", "make", "?", "...", "no", "so"]
