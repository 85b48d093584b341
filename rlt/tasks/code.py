"""Code: the last Python block of a solution, run against tests in `rlt.tasks.sandbox`.

The tests are the `answer`, as JSON, in the form of their datasets:

- `{"inputs": [...], "outputs": [...]}`: programs; each input goes to standard input, each output is compared (APPS, TACO).
- the same with `"fn_name"`: a function, or a method of `class Solution`; each input is a list of arguments.
- `[{"input", "output", "testtype": "stdin" | "functional"}, ...]`, or `{"tests": [...], "fn_name"}`: LiveCodeBench; each
  line of a functional input is one argument as JSON.
- `{"prompt", "test", "entry_point"}`: `test` defines `check(candidate)` (HumanEval).
- `{"test_list": [...], "test_setup_code"}`: assert statements (MBPP).

A response is right if every test passes; the first failure stops. `rlt.data.code_rows` makes the answer from a dataset's
row.

Outputs are the same if their lines are, ignoring whitespace at the ends of lines and empty lines at the end. They are also
the same if each line has the same number of words, and each word is the same or both are numbers: integers must be exact,
other numbers may differ by `TOLERANCE`, absolute or relative. A program must exit with status 0. For values of functions,
tuples equal lists, keys of dicts are compared as text, and numbers as above. If APPS or TACO expect a list of one value,
the value itself is accepted.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from rlt.tasks import Verdict
from rlt.tasks.sandbox import Box, CallFailed, Functions, check_available, tests_pass
from rlt.types import JsonMap, JsonRow

CHEAP = False  # other people's programs
check_machine = check_available

SECONDS = 6.0  # for one program, one call, or all asserts; LiveCodeBench's limit
TOLERANCE = 1e-6
# LeetCode's starter code uses these without importing them.
PREAMBLE = (
    "import collections, functools, heapq, itertools, math, operator, random, re, string, sys\n"
    "from bisect import *\nfrom collections import *\nfrom functools import *\nfrom heapq import *\n"
    "from itertools import *\nfrom math import inf, gcd, ceil, floor, sqrt\nfrom typing import *\n"
)


def grade(solution: str, answer: str, question: str) -> Verdict:
    """Whether the last Python block of `solution` passes all tests of `answer`. Takes seconds; see `rlt.tasks.grading`."""
    code = extract(solution)
    if code is None:
        return Verdict(False, None)
    tests = tests_of(answer)
    # Text that is not Python never starts a process. HumanEval's answers may continue the prompt's function.
    if not isinstance(tests, Checked) and not _compiles(code):
        return Verdict(False, code)
    return Verdict(tests.passed_by(code), code)


def check_answer(answer: str, question: str) -> str | None:
    """Why no response can be graded against these tests, or None."""
    try:
        tests_of(answer)
    except ValueError as error:
        return str(error)
    return None


_BLOCK = re.compile(r"^( {0,3})```[ \t]*([\w+-]*)[^\n]*\n(.*?)^ {0,3}```[ \t]*$", re.MULTILINE | re.DOTALL)


def extract(solution: str) -> str | None:
    """The last closed ``` block marked as Python, else the last one without a mark, else None."""
    found = _BLOCK.findall(solution.replace("\r\n", "\n"))
    blocks = [(mark.casefold(), _unindented(code, len(fence))) for fence, mark, code in found]
    for marks in (("python", "py", "python3"), ("",)):
        for mark, code in reversed(blocks):
            if mark in marks and code.strip():
                return code
    return None


def _unindented(code: str, fence: int) -> str:
    """The block without the indentation of its fence (in a list), or of one space (from word-level models).

    Other indentation is kept: HumanEval's answers may be the body of a function.
    """
    lines = [line for line in code.splitlines() if line.strip()]
    common = min((len(line) - len(line.lstrip(" ")) for line in lines), default=0)
    return textwrap.dedent(code) if common in (1, fence) else code


def _compiles(code: str) -> bool:
    try:
        compile(code, "solution.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


# -- tests -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Programs:
    """Inputs and expected outputs."""

    inputs: Sequence[str]
    outputs: Sequence[str]

    def passed_by(self, code: str) -> bool:
        with Box() as box:
            for given, expected in zip(self.inputs, self.outputs, strict=True):
                result = box.run(code, given, SECONDS)
                if result["status"] != 0 or not same_output(_decoded(result["output"]), expected):
                    return False
        return True


@dataclass(frozen=True)
class Calls:
    """Lists of arguments and expected values."""

    name: str
    arguments: Sequence[Sequence[object]]
    values: Sequence[object]
    boxed: bool
    """Whether the value in an expected list of one is accepted."""

    def passed_by(self, code: str) -> bool:
        with Functions(PREAMBLE + code, SECONDS) as functions:
            for arguments, expected in zip(self.arguments, self.values, strict=True):
                try:
                    value = functions.call(self.name, arguments)
                    if not same_value(value, expected, self.boxed):
                        return False
                except (CallFailed, RecursionError):
                    return False
        return True


@dataclass(frozen=True)
class Checked:
    """HumanEval's tests (`check(candidate)`, with the prompt that a response may continue), or MBPP's assert statements."""

    tests: str
    setup: str
    entry_point: str | None

    def passed_by(self, code: str) -> bool:
        if self.entry_point is not None:
            whole = _compiles(code) and self.entry_point in _defined(code)
            code = f"{self.setup}\n{code}" if whole else self.setup + code
        if not _compiles(code):
            return False
        return tests_pass(code, self.setup, self.tests, self.entry_point, SECONDS)


def _defined(code: str) -> set[str]:
    names = set()
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def tests_of(answer: str) -> Programs | Calls | Checked:
    """The tests in an answer; raises ValueError, saying what is wrong, if they are invalid."""
    try:
        found = json.loads(answer)
    except ValueError as error:
        raise ValueError(f"the tests are not JSON ({error})") from error
    if isinstance(found, list):
        found = {"tests": found}
    if not isinstance(found, dict):
        raise ValueError("the tests are neither a JSON object nor a list")
    if "test" in found:
        return _check_function(found)
    if "test_list" in found:
        return _asserts(found)
    if "tests" in found:
        found = _from_livecodebench(found)
    inputs, outputs, name = found.get("inputs"), found.get("outputs"), found.get("fn_name")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise ValueError("the tests have no lists `inputs` and `outputs`, no `test`, and no `test_list`")
    if not inputs or len(inputs) != len(outputs):
        raise ValueError(
            f"the tests have {len(inputs)} inputs and {len(outputs)} outputs; they need the same number, at least one"
        )
    if not name:
        return Programs([_text(value) for value in inputs], [_text(value) for value in outputs])
    wrong = [value for value in inputs if not isinstance(value, list)]
    if wrong:
        raise ValueError(f"the input {wrong[0]!r} of `{name}` is not a list of arguments")
    return Calls(str(name), inputs, outputs, found.get("boxed", True))


def _check_function(found: JsonMap) -> Checked:
    entry = found.get("entry_point")
    if not isinstance(entry, str) or not entry.isidentifier():
        raise ValueError("the tests have `test`, but `entry_point` is not a function's name")
    prompt, test = str(found.get("prompt") or ""), str(found["test"])
    for part, text in (("prompt", prompt), ("test", test)):
        if not _compiles(text):
            raise ValueError(f"the tests' `{part}` is not Python")
    if "check" not in _defined(test):
        raise ValueError("the tests' `test` defines no `check(candidate)`")
    return Checked(test, prompt, entry)


def _asserts(found: JsonMap) -> Checked:
    statements = found["test_list"]
    if not isinstance(statements, list) or not statements:
        raise ValueError("the tests' `test_list` is not a list of assert statements")
    imports = cast(Iterable[str], found.get("test_imports") or [])
    setup = "\n".join([*imports, str(found.get("test_setup_code") or "")])
    tests = "\n".join(map(str, statements))
    for part, text in (("test_setup_code", setup), ("test_list", tests)):
        if not _compiles(text):
            raise ValueError(f"the tests' `{part}` is not Python")
    return Checked(tests, setup, None)


def _from_livecodebench(found: JsonMap) -> JsonRow:
    cases, name = found["tests"], found.get("fn_name")
    if not isinstance(cases, list) or not all(
        isinstance(one, dict) and {"input", "output"} <= set(one) for one in cases
    ):
        raise ValueError("the tests are not a list of objects with `input` and `output`")
    if not any(case.get("testtype") == "functional" for case in cases):
        return {"inputs": [case["input"] for case in cases], "outputs": [case["output"] for case in cases]}
    if not name:
        raise ValueError("the tests are for a function, but its name, `fn_name`, is missing")
    return {
        "fn_name": name,
        "inputs": [[json.loads(line) for line in case["input"].splitlines() if line.strip()] for case in cases],
        "outputs": [json.loads(case["output"]) for case in cases],
        "boxed": False,
    }


def _text(value: object) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


# -- sameness ----------------------------------------------------------------------------------------------------------


def _decoded(output: str) -> str:
    return output.encode("latin-1").decode("utf-8", errors="replace")


_INTEGER = re.compile(r"[+-]?\d{1,300}")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")


def same_output(given: str, expected: str) -> bool:
    """Whether a program's output is the expected one (the rule is in the module's docstring)."""
    left, right = _lines(given), _lines(expected)
    if left == right:
        return True
    if len(left) != len(right):
        return False
    for line, other in zip(left, right, strict=True):
        if line != other:
            words, others = line.split(), other.split()
            if len(words) != len(others) or not all(map(_same_word, words, others)):
                return False
    return True


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_word(given: str, expected: str) -> bool:
    if given == expected:
        return True
    if max(len(given), len(expected)) > 300 or not _NUMBER.fullmatch(given) or not _NUMBER.fullmatch(expected):
        return False
    if _INTEGER.fullmatch(expected):
        return _whole(given) == int(expected)
    return _close(float(given), float(expected))


def _whole(number: str) -> int | None:
    """The value of `12` or `12.000`; None for another number."""
    match = re.fullmatch(r"([+-]?\d+)(?:\.0*)?", number)
    return int(match[1]) if match else None


def _close(given: float, expected: float) -> bool:
    return given == expected or abs(given - expected) <= TOLERANCE * max(1.0, abs(expected))


def same_value(given: object, expected: object, boxed: bool = False) -> bool:
    """Whether a function's value is the expected one (the rule is in the module's docstring)."""
    return _same_value(given, expected) or (
        boxed and isinstance(expected, list) and len(expected) == 1 and _same_value(given, expected[0])
    )


def _same_value(given: object, expected: object) -> bool:
    if isinstance(expected, (list, tuple)):
        return (
            isinstance(given, (list, tuple)) and len(given) == len(expected) and all(map(_same_value, given, expected))
        )
    if isinstance(expected, dict):
        if not isinstance(given, dict) or len(given) != len(expected):
            return False
        named = {str(key): value for key, value in given.items()}
        return all(str(key) in named and _same_value(named[str(key)], value) for key, value in expected.items())
    if isinstance(expected, float) and isinstance(given, (int, float)):
        return bool(-1e300 < given < 1e300) and _close(float(given), expected)
    return type(given) in (int, float, str, bool, type(None)) and bool(given == expected)
