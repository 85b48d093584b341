"""`rlt init`: a recipe for one's own data."""

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rlt import drafting
from rlt.cli import main
from rlt.recipe import load_recipe

# Written for this test.
ROWS = [
    {"Problem": f"A box holds {n} pens. How many are in 3 boxes?", "Worked-Solution": f"3 x {n} is the number of pens.",
     "final_answer": 3 * n, "CoT": f"One box holds {n} pens, so three boxes hold {n} + {n} + {n} = {3 * n}."}
    for n in range(2, 42)
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_gpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(drafting, "_gpus", lambda: iter(()))


def written(rows, name="pens.jsonl"):
    path = Path(name)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def steps(path="pens.yaml"):
    return {step.name: step.config for step in load_recipe(path).steps}


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_ten_lines_and_a_recipe_that_rlt_check_passes(ending, capsys):
    assert main(["init", written(ROWS, f"pens.{ending}")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 10
    assert (
        said[1]
        == "columns: question <- Problem, solution <- Worked-Solution, answer <- final_answer, explanation <- CoT"
    )
    assert said[2].startswith("held out: the first 4 problems")
    assert main(["check", "pens.yaml"]) == 0
    assert "no problems found" in capsys.readouterr().out


def test_what_is_held_out_is_not_trained_on():
    main(["init", written(ROWS)])
    made = steps()
    assert (made["heldout"].data.limit, made["train"].data.skip, made["warmup"].data.skip) == (4, 4, 4)


def test_without_explanations_the_model_writes_the_first_ones():
    main(["init", written([{k: v for k, v in row.items() if k != "CoT"} for row in ROWS])])
    assert {"self-explained", "closed"} <= steps().keys()


def test_without_a_worked_solution_the_answer_takes_its_place(capsys):
    main(["init", written([{"prompt": row["Problem"], "label": row["final_answer"]} for row in ROWS])])
    assert "solution <- label" in capsys.readouterr().out
    assert main(["check", "pens.yaml"]) == 0


def test_answers_that_are_letters_are_multiple_choice_and_words_are_not_graded():
    main(["init", written([{**row, "final_answer": "B"} for row in ROWS])])
    assert steps()["evaluate/rlt"].task == "multiple_choice"
    main(["init", written([{**row, "final_answer": "many pens"} for row in ROWS], "words.jsonl")])
    assert not any(name.startswith("evaluate") for name in steps("words.yaml"))


def test_the_model_is_the_largest_whose_plan_fits(capsys):
    path = written(ROWS)
    sizes = []
    for gpu, count in (("l4-24gb", 1), ("h100-80gb", 1), ("h100-80gb", 8)):
        main(["init", path, "--gpu", gpu, "--count", str(count), "--output", f"{gpu}-{count}.yaml"])
        said = capsys.readouterr().out
        sizes.append(float(said.split("Qwen2.5-")[1].split("B")[0]))
        used, memory = said.split("hours, ")[1].split(" GiB")[0].split(" of ")
        assert float(used) <= float(memory)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_what_cannot_fit_is_said(capsys):
    main(["init", written(ROWS), "--gpu", "l4-24gb", "--hours", "0.001"])
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "gib", "known"),
    [
        ("NVIDIA H100 80GB HBM3", 79.6, "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", 40.0, "a100-40gb"),
        ("NVIDIA GeForce RTX 3090", 24.0, "rtx3090-24gb"),
        ("NVIDIA H200", 140.4, "h200-141gb"),
        ("Something new", 30.0, "rtx3090-24gb"),  # no more memory than it has, and the slowest of these
    ],
)
def test_a_gpu_is_planned_as_itself_or_as_a_smaller_one(name, gib, known):
    assert drafting._known(name, gib) == known


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": "b"}], "no column looks like the question; the row has a. Name it: `--columns.question THEIRS`"),
        ([{"question": "q"}], "no column looks like the solution"),
        ([], "has no rows"),
        (ROWS[:3], "has 3 rows; a run needs at least 4"),
    ],
)
def test_what_cannot_be_guessed_is_one_line_with_the_fix(rows, message, capsys):
    assert main(["init", written(rows)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_columns_that_are_given_are_not_guessed(capsys):
    path = written([{"q": "1 + 1?", "a": "It is 2."}] * 8)
    assert main(["init", path, "--columns.question", "q", "--columns.solution", "a"]) == 0
    assert "columns: question <- q, solution <- a" in capsys.readouterr().out


def test_a_recipe_is_never_overwritten(capsys):
    path = written(ROWS)
    assert main(["init", path]) == 0
    assert main(["init", path]) == 2
    assert "pens.yaml: already exists" in capsys.readouterr().err


def test_a_csv_row_with_too_many_values_is_named(capsys):
    Path("x.csv").write_text("question,solution\nwhat, is it,2\n")
    assert main(["init", "x.csv"]) == 2
    assert "x.csv row 1: the number of values differs from the columns" in capsys.readouterr().err
