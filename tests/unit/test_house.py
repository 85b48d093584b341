"""Sizes that keep the code readable: a file is one concept, a function fits a screen, a value has a type."""

import ast
import re
from pathlib import Path

import rlt

SOURCES = {path: path.read_text(encoding="utf-8") for path in Path(rlt.__file__).parent.rglob("*.py")}
LONGEST_FILE, LONGEST_FUNCTION = 450, 60
MOST_ANY = 40


def test_no_file_is_too_long():
    lengths = {path.name: len(text.splitlines()) for path, text in SOURCES.items()}
    assert {name: length for name, length in lengths.items() if length >= LONGEST_FILE} == {}


def test_no_function_is_too_long():
    functions = [
        (path.name, node.name, node.end_lineno - node.lineno + 1)
        for path, text in SOURCES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [function for function in functions if function[2] >= LONGEST_FUNCTION] == []


def test_few_values_are_of_any_type():
    found = [line for text in SOURCES.values() for line in text.splitlines() if re.search(r"\bAny(Row)?\b", line)]
    used = [line for line in found if "import" not in line]
    assert len(used) < MOST_ANY
