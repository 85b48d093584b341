"""Datasets to problems: known schemas, mappings, and errors that name file, row and column."""

import json

import pytest

from rlt.config import DataConfig
from rlt.data.problems import load_problems
from rlt.errors import DataError
from rlt.text.formats import load_format
from rlt.types import Problem


def write(tmp_path, *rows, name="d.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(path, fmt=None, need=(), **options):
    return load_problems(DataConfig(path=path, **options), fmt, need=need)


def test_question_and_solution_need_no_mapping(tmp_path):
    path = write(tmp_path, {"question": "q", "solution": "s", "answer": 5, "other": 1})
    assert list(load(path)) == [Problem(id="0", question="q", solution="s", answer="5")]


def test_gsm8k_answers_are_split_at_the_marks(tmp_path):
    path = write(tmp_path, {"question": "q", "answer": "2+3 = <<2+3=5>>5 eggs\n#### 1,005"})
    (problem,) = load(path)
    assert problem.solution == "2+3 = 5 eggs\nThe answer is 1005."
    assert problem.answer == "1005"


def test_gsm8k_rows_keep_their_other_columns(tmp_path):
    row = {"id": "a", "question": "q", "answer": "5 eggs\n#### 5", "explanation": "e", "system": "s"}
    (problem,) = load(write(tmp_path, row))
    assert problem == Problem("a", "q", "5 eggs\nThe answer is 5.", answer="5", explanation="e", system="s")


def test_conversations_beside_question_and_solution_are_another_column(tmp_path):
    row = {"question": "q", "solution": "s", "explanation": "e", "conversations": [{"from": "user", "value": "no"}]}
    assert list(load(write(tmp_path, row))) == [Problem("0", "q", "s", explanation="e")]


def test_numbers_are_answers_and_a_row_without_id_has_its_number(tmp_path):
    rows = [{"question": "q", "solution": "s", "answer": answer, "id": None} for answer in (5, 0.5, None, 10**400)]
    loaded = list(load(write(tmp_path, *rows)))
    assert [problem.answer for problem in loaded] == ["5", "0.5", None, str(10**400)]
    assert [problem.id for problem in loaded] == ["0", "1", "2", "3"]


def test_math_calls_its_question_problem(tmp_path):
    (problem,) = load(write(tmp_path, {"problem": "q", "solution": "s"}))
    assert problem.question == "q"


def test_stratos_conversations_keep_the_solution_to_the_letter(tmp_path):
    text = (
        "<|begin_of_thought|>\n\nFirst.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nFive.\n\n<|end_of_solution|>"
    )
    row = {"system": "Think.", "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": text}]}
    (problem,) = load(write(tmp_path, row))
    assert problem == Problem(id="0", question="q", solution="\n\nFive.\n\n", explanation="First.", system="Think.")


def test_a_mapping_names_other_columns(tmp_path):
    path = write(tmp_path, {"prompt": "q", "gold": "s", "n": "x"})
    (problem,) = load(path, columns={"question": "prompt", "solution": "gold", "id": "n"})
    assert (problem.id, problem.question, problem.solution) == ("x", "q", "s")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"question": "q", "solution": "s"}, {"question": "q"}], {}, "d.jsonl line 2: column `solution` is missing"),
        ([{"question": "q", "solution": "  "}], {}, "line 1: column `solution` is empty"),
        ([{"question": ["q"], "solution": "s"}], {}, "column `question` is a list, not text"),
        ([{"question": "q", "solution": "s", "explanation": float("nan")}], {}, "`explanation` is a float, not text"),
        (
            [{"question": "q", "solution": "s", "explanation": ["e"]}],
            {},
            "line 1: column `explanation` is a list, not text",
        ),
        ([{"question": "q", "solution": "s", "answer": float("nan")}], {}, "column `answer` is a float, not text"),
        ([{"question": "q", "solution": "s", "system": 5}], {}, "column `system` is a int, not text"),
        ([{"conversations": ["hello"]}], {}, "column `conversations` needs a `user`"),
        ([{"prompt": "q"}], {}, "column `question` is missing; the row has prompt"),
        ([{"prompt\ud83d": "q"}], {}, "the row has prompt\\ud83d"),
        ([{"question": "q"}], {"columns": {"solution": "gold"}}, "column `gold` (mapped to `solution`) is missing"),
        (
            [{"question": "q"}],
            {"columns": {"solutoin": "gold"}},
            r"unknown column 'solutoin'; expected one of id, question",
        ),
        ([{"id": 1, "question": "q", "solution": "s"}] * 2, {}, "column `id` has duplicates"),
        ([], {}, "no problem left"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, options, message):
    with pytest.raises(DataError) as caught:
        load(write(tmp_path, *rows), **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("column", ["id", "question", "solution", "answer", "explanation", "system"])
def test_half_a_character_is_an_invalid_row_in_any_column(tmp_path, column):
    row = {name: "fine" for name in ("id", "question", "solution", "answer", "explanation", "system")}
    path = write(tmp_path, {**row, column: "caf\u00e9 \ud83d"}, row)
    with pytest.raises(DataError) as caught:
        load(path)
    assert f"d.jsonl line 1: column `{column}` has a lone surrogate ('\\ud83d')" in str(caught.value)
    str(caught.value).encode()  # can be printed
    assert len(load(path, on_invalid="skip")) == 1


def test_a_needed_column_is_asked_for(tmp_path):
    with pytest.raises(DataError, match="line 1: column `explanation` is missing, and this stage needs it"):
        load(write(tmp_path, {"question": "q", "solution": "s"}), need=("explanation",))


def test_a_tag_in_a_question_is_refused_or_dropped_and_counted(tmp_path):
    fmt = load_format("stratos")
    path = write(tmp_path, {"question": "a <|end_of_thought|>", "solution": "s"}, {"question": "q", "solution": "s"})
    with pytest.raises(DataError, match=r"line 1: column `question` contains the format's tag <\|end_of_thought\|>"):
        load(path, fmt)
    kept = load(path, fmt, on_invalid="skip")
    assert [p.question for p in kept] == ["q"]
    assert "1 rows dropped" in kept.summary()


def test_half_a_line_is_named(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"question": "q", "solution": "s"}\n{"question": ')
    with pytest.raises(DataError, match=r"d\.jsonl line 2: not JSON"):
        load(str(path))


def test_skip_and_limit_both_count_rows_so_that_parts_of_a_file_never_overlap(tmp_path):
    path = write(tmp_path, *[{"question": f"q{i}", "solution": "s" if i != 2 else ""} for i in range(6)])
    training = [p.question for p in load(path, limit=3, on_invalid="skip")]
    held_out = [p.question for p in load(path, skip=3, on_invalid="skip")]
    assert (training, held_out) == (["q0", "q1"], ["q3", "q4", "q5"])
    assert [p.question for p in load(path, skip=1, limit=3, on_invalid="skip")] == ["q1", "q3"]


def test_parquet_reads_like_jsonl(tmp_path):
    from rlt.data.rows import write_rows

    write_rows(tmp_path / "d.parquet", [{"question": "q", "solution": "s", "answer": None}])
    assert list(load(str(tmp_path / "d.parquet"))) == [Problem(id="0", question="q", solution="s")]


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load(str(tmp_path / "none.jsonl"))
