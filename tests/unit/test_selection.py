"""Which explanations a student gets: fit to the token, chosen for each problem, and every other one accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from byte_models import byte_tokenizer, save, tiny_model
from pydantic import ValidationError

from rlt.config import SelectConfig
from rlt.data.explanations import COLUMNS
from rlt.data.rows import read_rows, write_rows
from rlt.errors import DataError, ModelError
from rlt.outputs import Result, read_state
from rlt.stages import select
from rlt.stages.select import Fits
from rlt.text.formats import load_format, render_student
from rlt.types import Explanation, JsonRow, Problem

FORMAT = load_format("stratos")
CLOSE = FORMAT.tags.explanation.close
TOKENIZER = byte_tokenizer()
LONGER = "the student's text is longer than its context"
OTHER = "another explanation of its problem was chosen"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLT_QUIET", "1")


def explanation(problem: str, sample: int, text: str, closed: bool = True) -> Explanation:
    made = Problem(problem, f"What is {problem}?", "It is 5.")
    return Explanation(made, text, closed, f"{problem}/{sample}", sample, "stop", 3, 2, -0.5, 7, "fake")


def rows(*explanations: Explanation) -> list[JsonRow]:
    return [each.to_row(FORMAT.padding, CLOSE) for each in explanations]


def run(folder: Path, given: list[JsonRow], scores: list[JsonRow] | None = None, **options: object) -> Result:
    write_rows(folder / "data.jsonl", given)
    if scores is not None:
        write_rows(folder / "scores.jsonl", scores)
        options["scores"] = folder / "scores.jsonl"
    values = {"output": folder / "out", "data": {"path": str(folder / "data.jsonl")}, **options}
    return select.run(SelectConfig.model_validate(values))


def kept(folder: Path, name: str = "") -> list[str]:
    return [row["id"] for _, row in read_rows(folder / "out" / name)]


def dropped(folder: Path) -> dict[str, str]:
    return {row["id"]: row["reason"] for _, row in read_rows(folder / "out" / "report" / "dropped.jsonl")}


# -- what can be chosen ------------------------------------------------------------------------------------------------


def test_what_fits_is_counted_to_the_token() -> None:
    made = explanation("a", 0, "one\n\n")
    text = render_student(FORMAT, TOKENIZER, made.problem, FORMAT.as_written("one")).text
    length = len(TOKENIZER.encode(text, add_special_tokens=False))
    assert Fits(FORMAT, [(TOKENIZER, length)]).reason(made) is None
    assert Fits(FORMAT, [(TOKENIZER, length - 1)]).reason(made) == LONGER
    assert (
        Fits(FORMAT, [(TOKENIZER, None), (TOKENIZER, length - 1)]).reason(made) == LONGER
    )  # it must fit every student


def test_unclosed_explanations_and_those_with_tags_inside_are_left_out_unless_all_are_kept(tmp_path: Path) -> None:
    data = rows(
        explanation("a", 0, "one", closed=False), explanation("a", 1, "two <|begin_of_solution|>"),
        explanation("a", 2, "three"),
    )  # fmt: skip
    metrics = run(tmp_path / "closed", data, keep="closed").metrics
    assert kept(tmp_path / "closed") == ["a/2"]
    assert dropped(tmp_path / "closed") == {"a/0": "it never closes its tag", "a/1": "it contains a tag of the format"}
    assert (metrics["selected"], metrics["problems"], metrics["problems_without"]) == (1, 1, 0)
    run(tmp_path / "all", data, keep="all")
    assert kept(tmp_path / "all") == ["a/0", "a/1", "a/2"]


def test_what_the_students_template_rewrites_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(fmt, tokenizer, problem, body):
        if "</think>" in body:
            raise ModelError("the chat template of tiny drops or rewrites the assistant message")
        return render_student(fmt, tokenizer, problem, body)

    monkeypatch.setattr(select, "render_student", render)
    student = save(tmp_path / "student", tiny_model(TOKENIZER, 0), TOKENIZER)
    data = rows(explanation("a", 0, "one"), explanation("b", 0, "two </think>"))
    metrics = run(tmp_path, data, keep="all", student=[student]).metrics
    assert kept(tmp_path) == ["a/0"]
    assert dropped(tmp_path)["b/0"].startswith("the chat template rewrites it: the chat template of tiny drops")
    assert metrics["dropped"] == {"the chat template rewrites it": 1}


def test_a_given_context_takes_the_place_of_the_students_own(tmp_path: Path) -> None:
    student = save(tmp_path / "student", tiny_model(TOKENIZER, 0), TOKENIZER)
    data = rows(explanation("a", 0, "one"), explanation("b", 0, "long " * 1000))
    assert run(tmp_path / "own", data, keep="closed", student=[student]).metrics["dropped"] == {LONGER: 1}
    with pytest.raises(DataError, match=rf"none of 2 explanations can be selected: 2 x {LONGER}"):
        run(tmp_path / "given", data, keep="closed", student=[student], student_context=20)
    assert not (tmp_path / "given" / "out").exists()


def test_invalid_rows_end_it_or_are_left_out_with_the_reason(tmp_path: Path) -> None:
    data = [*rows(explanation("a", 0, "one")), {"question": "What?", "solution": ""}]
    with pytest.raises(DataError, match=r"data\.jsonl line 2: column `solution` is empty.*on_invalid: skip"):
        run(tmp_path, data, keep="all")
    path = str(tmp_path / "data.jsonl")
    assert run(tmp_path, data, keep="all", data={"path": path, "on_invalid": "skip"}).metrics["dropped"] == {
        "it is invalid": 1
    }


# -- the choice --------------------------------------------------------------------------------------------------------


def scores_of(data: list[JsonRow], values: list[float | None]) -> list[JsonRow]:
    return [
        {"id": row["id"], "reward": value, "error": None if value is not None else "too long"}
        for row, value in zip(data, values, strict=True)
    ]


def test_of_those_that_fit_the_best_by_reward_is_kept_with_its_reward(tmp_path: Path) -> None:
    data = rows(*(explanation(p, s, "x") for p in "ab" for s in range(3)))
    metrics = run(tmp_path, data, scores_of(data, [-3.0, -1.0, -2.0, -1.0, None, -5.0]), keep="best").metrics
    assert [(row["id"], row["reward"]) for _, row in read_rows(tmp_path / "out")] == [("a/1", -1.0), ("b/0", -1.0)]
    assert dropped(tmp_path)["b/1"] == "it has no score: too long"
    assert metrics["dropped"] == {OTHER: 3, "it has no score": 1}


def test_the_best_that_does_not_fit_is_not_the_best(tmp_path: Path) -> None:
    data = rows(explanation("a", 0, "x", closed=False), explanation("a", 1, "x"), explanation("a", 2, "x"))
    run(tmp_path, data, scores_of(data, [9.0, 1.0, 1.0]), keep="best")
    assert kept(tmp_path) == ["a/1"]  # of equals the first


def test_the_random_one_depends_on_seed_and_problem_alone(tmp_path: Path) -> None:
    data = rows(*(explanation(str(p), s, "x") for p in range(40) for s in range(3)))
    run(tmp_path / "whole", data, keep="random")
    chosen = kept(tmp_path / "whole")
    assert [name.split("/")[0] for name in chosen] == [str(p) for p in range(40)]
    assert {name.split("/")[1] for name in chosen} == {"0", "1", "2"}
    run(tmp_path / "part", data[60:], keep="random")
    assert kept(tmp_path / "part") == chosen[20:]
    run(tmp_path / "seed", data, keep="random", seed=1)
    assert kept(tmp_path / "seed") != chosen


def test_a_problem_with_nothing_left_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run(
        tmp_path, rows(explanation("a", 0, "one", closed=False), explanation("b", 0, "x")), keep="closed"
    ).metrics
    assert metrics["problems_without"] == 1
    assert "1 of 2 explanations kept (dropped: 1 x it never closes its tag)" in capsys.readouterr().out


def test_bands_are_of_equal_size_lowest_first_and_keep_the_order_of_the_data(tmp_path: Path) -> None:
    plain = [{"id": str(i), "question": f"{i}?", "solution": "s", "explanation": f"e{i}"} for i in range(6)]
    scores = scores_of(plain, [5.0, 1.0, None, 3.0, 2.0, 4.0])
    metrics = run(tmp_path, plain, scores, keep="bands", bands=2).metrics
    assert (kept(tmp_path, "band-1.jsonl"), kept(tmp_path, "band-2.jsonl")) == (["1", "4"], ["0", "3", "5"])
    assert (metrics["band_1_mean"], metrics["band_2_mean"]) == (1.5, 4.0)
    assert dropped(tmp_path) == {"2": "it has no score: too long"}
    _, row = next(read_rows(tmp_path / "out" / "band-1.jsonl"))
    assert row["explanation"] == "e1"
    with pytest.raises(DataError, match="5 scored rows are too few for 7 bands"):
        run(tmp_path / "more", plain, scores, keep="bands", bands=7)


# -- scores belong to the rows -----------------------------------------------------------------------------------------


def test_scores_of_other_rows_are_refused(tmp_path: Path) -> None:
    data = rows(*(explanation("a", s, "x") for s in range(3)))
    scores = scores_of(data, [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match=r"scores\.jsonl: has 2 rows, and .*data\.jsonl has 3"):
        run(tmp_path, data, scores[:2], keep="best")
    with pytest.raises(DataError, match=r"scores\.jsonl: has 3 rows, and .*data\.jsonl has 2"):
        run(tmp_path, data[:2], scores, keep="best")
    with pytest.raises(DataError, match=r"scores\.jsonl row 1: `id` is 'a/2', the data's is 'a/0'"):
        run(tmp_path, data, scores[::-1], keep="best")
    with pytest.raises(DataError, match=r"scores\.jsonl row 1: column `lift` is missing"):
        run(tmp_path, data, scores, keep="best", by="lift")
    assert not (tmp_path / "out").exists()


def test_skipped_rows_keep_their_scores(tmp_path: Path) -> None:
    data = rows(*(explanation(p, 0, "x") for p in "abcd"))
    path = str(tmp_path / "data.jsonl")
    run(
        tmp_path, data, scores_of(data, [1.0, 2.0, 3.0, 4.0]), keep="best",
        data={"path": path, "skip": 1, "limit": 2},
    )  # fmt: skip
    assert [(row["id"], row["reward"]) for _, row in read_rows(tmp_path / "out")] == [("b/0", 2.0), ("c/0", 3.0)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": "best"}, "`keep: best` needs `scores`"),
        ({"keep": "bands"}, "`keep: bands` needs `scores`"),
        ({"keep": "random", "scores": "s.jsonl"}, "`scores` has no effect with `keep: random`"),
        ({"keep": "all", "student_context": 512}, "`student_context` needs `student`"),
        ({"keep": "all", "student": "http://host:8000/v1"}, "give the folder or hub name of its tokenizer"),
    ],
)
def test_selections_that_cannot_be_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SelectConfig.model_validate({"output": "out", "data": "data.jsonl", **options})


# -- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_datasets_opens_what_was_selected(tmp_path: Path, file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = rows(*(explanation("a", s, f"x{s}") for s in range(4)))
    run(tmp_path, data, scores_of(data, [4.0, 3.0, 2.0, 1.0]), keep="bands", bands=2, file_format=file_format)
    low = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    high = datasets.load_dataset(str(tmp_path / "out"), "band-2", split="train", cache_dir=str(tmp_path / "cache"))
    assert low.column_names == [*COLUMNS, "reward"]
    assert (low["id"][:], high["reward"][:]) == (["a/2", "a/3"], [4.0, 3.0])


def test_a_complete_selection_is_not_made_again(tmp_path: Path) -> None:
    data = rows(explanation("a", 0, "x"))
    first = run(tmp_path, data, keep="closed")
    stamp = (tmp_path / "out" / "selected.jsonl").stat().st_mtime_ns
    again = select.run(SelectConfig.model_validate(json.loads(json.dumps(read_state(tmp_path / "out")["config"]))))
    assert again.metrics == first.metrics
    assert (tmp_path / "out" / "selected.jsonl").stat().st_mtime_ns == stamp


def response(question: int, sample: int, text: str, correct: bool = True) -> JsonRow:
    return {"key": f"b/{question}/{sample}", "question_id": str(question), "sample": sample, "question": f"{question}?",
            "answer": "5", "response": text, "correct": correct}  # fmt: skip


RIGHT = FORMAT.student_response(FORMAT.as_written("2 + 3 = 5."), "It is 5.")


def test_correct_keeps_the_first_right_response_to_each_question_and_says_why_the_others_are_left_out(tmp_path: Path):
    given = [
        response(1, 0, "It is 4.", correct=False), response(1, 1, RIGHT), response(1, 2, RIGHT), response(2, 0, "It is 5."),
    ]  # fmt: skip
    result = run(tmp_path, given, keep="correct")
    assert (result.metrics["problems"], result.metrics["problems_without"]) == (2, 1)
    ((_, row),) = read_rows(tmp_path / "out" / "selected.jsonl")
    assert (row["problem"], row["question"], row["explanation"], row["solution"]) == (
        "1",
        "1?",
        "2 + 3 = 5.",
        "It is 5.",
    )
    assert dropped(tmp_path) == {
        "b/1/0": "its answer is wrong", "b/1/2": OTHER, "b/2/0": "it has no thought or no solution in the format's tags",
    }  # fmt: skip


def test_correct_needs_graded_responses(tmp_path: Path):
    with pytest.raises(DataError, match=r"data.jsonl.*: column `response` is missing; .* reads responses.jsonl"):
        run(tmp_path, rows(explanation("1", 0, "Add.")), keep="correct")
