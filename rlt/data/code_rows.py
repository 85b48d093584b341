"""Rows of code datasets (APPS, TACO, HumanEval, MBPP, LiveCodeBench): question, solution, tests."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from collections.abc import Iterable
from typing import Never, cast

from rlt.errors import DataError
from rlt.types import JsonMap, JsonRow


def code_row(row: JsonRow, where: str) -> JsonRow:
    """The row with `question`, `solution` (a Python code block) and `answer` (the tests), filled from its dataset's columns.

    Raises DataError for tests or solutions that cannot be parsed.
    """
    try:
        texts = {"question": question_of(row), "answer": answer_of(row), "solution": solution_of(row)}
    except ValueError as error:
        raise DataError(f"{where}: {error}. Fix or remove the row.") from error
    return {**row, **{column: text for column, text in texts.items() if text is not None}}


def solution_of(row: JsonMap) -> str | None:
    """The row's reference program as a Python code block (the first of APPS's; HumanEval's with its prompt), or None."""
    if row.get("canonical_solution") is not None and row.get("prompt") is not None:
        code = str(row["prompt"]) + str(row["canonical_solution"])
    elif row.get("test_list") is not None and row.get("code") is not None:
        code = str(row["code"])
    elif given := row.get("solutions"):
        programs = json.loads(given) if isinstance(given, str) else list(cast(Iterable[object], given))
        code = str(programs[0]) if programs else ""
    else:
        return None
    lines = code.replace("\r\n", "\n").strip("\n")
    return f"```python\n{lines}\n```" if lines.strip() else None


def answer_of(row: JsonMap) -> str | None:
    """The tests in a row of APPS, TACO, HumanEval, MBPP or LiveCodeBench as an answer, or None if it has none."""
    if row.get("input_output"):
        return str(row["input_output"])
    if row.get("test_list") is not None:
        keys = ("test_list", "test_setup_code", "test_imports")
        return json.dumps({key: row[key] for key in keys if row.get(key)})
    if row.get("entry_point") is not None and row.get("test") is not None:
        return json.dumps({key: row.get(key) for key in ("prompt", "test", "entry_point")})
    if row.get("public_test_cases") is not None or row.get("private_test_cases") is not None:
        metadata = row.get("metadata") or {}
        metadata = json.loads(metadata) if isinstance(metadata, str) else cast(JsonRow, metadata)
        cases = [*_cases(row.get("public_test_cases")), *_cases(row.get("private_test_cases"))]
        return json.dumps({"tests": cases, "fn_name": metadata.get("func_name")})
    return None


def question_of(row: JsonMap) -> str | None:
    """The question that a dataset spreads over several columns (MBPP, HumanEval, LiveCodeBench), or None."""
    if row.get("test_list") is not None and (row.get("text") or row.get("prompt")):
        # Only the tests have the function's name and arguments; Austin et al. 2021 show them too.
        tests = "\n".join(cast(Iterable[str], row["test_list"]))
        return f"{row.get('text') or row.get('prompt')}\n\nYour code must pass these tests:\n\n{tests}"
    if row.get("entry_point") is not None and row.get("prompt") is not None and row.get("question") is None:
        return f"Complete this function:\n\n```python\n{str(row['prompt']).strip()}\n```"
    if row.get("question_content"):
        starter = str(row.get("starter_code") or "").rstrip()
        kind = f"Start from this code:\n\n```python\n{starter}\n```" if starter else (
            "The program reads from standard input and writes to standard output."
        )  # fmt: skip
        return f"{str(row['question_content']).rstrip()}\n\n{kind}"
    return None


class _OnlyText(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Never:
        raise ValueError(f"hidden tests refer to {module}.{name}; only text is unpickled")


def _cases(packed: object) -> list[object]:
    """LiveCodeBench's test cases: JSON, or JSON pickled as text, compressed, in base 64."""
    if not packed:
        return []
    if not isinstance(packed, str):
        return list(cast(Iterable[object], packed))
    try:
        cases = json.loads(packed)
    except ValueError:
        # A pickle can run any code; a pickled text needs no class.
        try:
            cases = _OnlyText(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load()
        except (ValueError, zlib.error, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"test cases are neither JSON nor LiveCodeBench's packed form ({error})") from error
    return json.loads(cases) if isinstance(cases, str) else list(cases)
