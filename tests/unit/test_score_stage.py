"""`rlt score` around its engine: what is asked, written, resumed and refused. The engine here counts letters."""

import contextlib
import json

import pyarrow.parquet
import pytest
from pydantic import ValidationError

from rlt.config import AccuracyConfig, ScoreConfig
from rlt.data.rows import read_rows
from rlt.errors import DataError, RltError, RunError
from rlt.outputs import read_state
from rlt.reward.items import ScoredRow, StudentLost
from rlt.reward.students import ServedStudent
from rlt.stages import score
from rlt.text.formats import load_format
from rlt.types import RewardParts

ROW = {"question": "q", "solution": "s", "explanation": "e"}


class Letters:
    """An engine whose reward is the length of the explanation; "NaN" cannot be scored. `calls`: sizes of its batches."""

    fmt = load_format("words")

    def __init__(self, config, stop_at=None, lost_at=None):
        self.students, self.stop_at, self.lost_at = config.student, stop_at, lost_at
        self.calls, self.others, self.closed = [], {}, False

    def passes(self, tokens):
        return 1

    def score(self, items, progress=None, keep_tokens=()):
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(len(items))
        rows = [self.row(item.text.strip()) for item in items]
        for row in rows:
            if row.parts.error is None:
                progress(1, 10)
        bodies = [item.text.strip() for item in items]
        if self.lost_at in bodies:
            raise StudentLost("the server is gone", rows[: bodies.index(self.lost_at)])
        return rows

    def row(self, text):
        if text == "NaN":
            return ScoredRow.failed("NaN")
        parts = RewardParts(reward=float(len(text)), r_ss=float(len(text)), solution_tokens=1)
        return ScoredRow(parts, dict.fromkeys(self.students, parts) if len(self.students) > 1 else {})

    def in_place(self):
        return contextlib.nullcontext()

    def close(self):
        self.closed = True


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Scores rows with Letters and returns `(rows written, engine)`."""
    monkeypatch.setenv("RLT_QUIET", "1")
    monkeypatch.setattr(score, "open_models", lambda config, fmt: ({}, None))

    def go(rows, *, engine=None, output="out.jsonl", **options):
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = {"student": ["student"], "data": tmp_path / "data.jsonl", "output": tmp_path / output, **options}
        config = ScoreConfig(**options)
        engines = []

        def load(config, fmt, *models):
            engines.append(Letters(config, **(engine or {})))
            return engines[-1]

        def with_placebos(engine, items, scored, others, progress):
            assert list(others) == list(range(len(items)))
            for item, body in zip(items, others.values(), strict=True):
                engine.others[item.problem.id] = body and body.strip()
            return scored

        monkeypatch.setattr(score, "load_engine", load)
        monkeypatch.setattr("rlt.reward.placebos.with_placebos", with_placebos)
        error = None
        try:
            score.run(config)
        except (KeyboardInterrupt, RltError) as raised:
            error = type(raised)(str(raised))  # without its traceback, which would hold the output's lock
        if error is not None:
            raise error
        return [row for _, row in read_rows(config.output)], *engines

    return go


def rows_of(*texts):
    return [{"question": f"q{i}?", "solution": "s", "explanation": text, "id": i} for i, text in enumerate(texts)]


# -- configuration -----------------------------------------------------------------------------------------------------


def test_the_state_has_the_configuration_as_it_was_asked(run, tmp_path):
    run([ROW], preset="paper", temperature=0.7)
    kept = read_state(tmp_path / "out.jsonl")["config"]
    assert (kept["temperature"], kept["score_temperature"], kept["estimator"]) == (0.7, None, None)


def test_it_ends_with_a_table_of_the_means_of_what_the_rows_have(run, capsys):
    rows, _ = run(rows_of("one", "three"))
    mean = sum(row["reward"] for row in rows) / 2
    lines = capsys.readouterr().out.splitlines()
    assert ["reward", f"{mean:.4g}"] in [line.split() for line in lines]


def test_rows_of_several_sources_end_with_the_numbers_of_each(run, tmp_path, capsys):
    of_b = {"question": "q", "solution": "s", "completion": "never closed", "source": "b"}
    run([{**ROW, "source": "a"}, of_b, {**ROW, "explanation": "NaN", "source": "a"}])
    numbers = read_state(tmp_path / "out.jsonl")["metrics"]["by_source"]
    assert numbers["a"] == {"rows": 1, "unclosed": 0.0, "reward": 1.0, "r_ss": 1.0}
    assert numbers["b"] == {"rows": 1, "unclosed": 1.0, "reward": 12.0, "r_ss": 12.0}
    assert "source  rows  unclosed" in capsys.readouterr().out


def test_what_is_complete_is_not_scored_again_nor_with_another_configuration(run):
    run([ROW], preset="paper")
    assert len(run([ROW], preset="paper")) == 1  # rows, and no engine
    with pytest.raises(RunError, match="preset"):
        run([ROW], preset="reference-code")


@pytest.mark.parametrize("name", ["out.json", "out.csv", "out.txt", "out"])
def test_other_files_than_jsonl_and_parquet_are_refused_with_the_configuration(name):
    with pytest.raises(ValidationError, match=r"must be a \.jsonl or \.parquet file"):
        ScoreConfig(data="none.jsonl", output=name)


def test_answers_are_needed_somewhere_and_missing_ones_left_to_the_rows(run):
    accuracy = AccuracyConfig()
    with pytest.raises(DataError, match="no row has the column `answer`"):
        run([ROW, ROW], accuracy=accuracy)
    rows, _ = run([ROW, {**ROW, "answer": 5}], accuracy=accuracy)
    assert len(rows) == 2


# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_that_are_no_text_get_an_error_and_the_others_a_reward(run):
    half = "caf\u00e9 \ud83d"
    bad = [{**ROW, column: half} for column in ("question", "solution", "explanation", "completion", "id")]
    bad += [{**ROW, "explanation": float("nan")}, {**ROW, "completion": ["e"]}]
    rows, engine = run([*bad, ROW])
    assert [row["error"] is None for row in rows] == [False] * 7 + [True]
    assert "data.jsonl line 4: column `completion` has a lone surrogate" in rows[3]["error"]
    assert "data.jsonl line 6: column `explanation` is a float, not text" in rows[5]["error"]
    assert rows[4]["id"] == half
    assert engine.calls == [1]


# -- chunks and resuming -----------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Windows of 4 rows, chunks of about 14 characters."""
    monkeypatch.setattr(score, "WINDOW", 4)
    monkeypatch.setattr(score, "CHUNK_BATCHES", 1)
    monkeypatch.setattr(score, "CHARACTERS_A_TOKEN", 2)
    return {"batch_tokens": 7, "format": "words"}


def test_chunks_are_bounded_by_their_text_and_end_with_their_window(run, small):
    # Each row has 3 letters of question and solution, 1 of padding, and those of its explanation.
    rows, engine = run(rows_of("a", "bb", "c" * 50, "d", "e", "f", "g"), **small)
    assert engine.calls == [2, 1, 1, 2, 1]
    assert [row["reward"] for row in rows] == [1, 2, 50, 1, 1, 1, 1]
    assert engine.closed


def test_chunks_whose_students_sample_are_short_enough_that_a_cut_off_run_loses_little(run, monkeypatch):
    monkeypatch.setattr(score, "SAMPLED", 9)
    _, engine = run([{**ROW, "answer": "5"}] * 5, accuracy=AccuracyConfig(samples=4))
    assert engine.calls == [2, 2, 1]


@pytest.mark.parametrize("placebos", [False, True])
def test_a_run_that_was_cut_off_keeps_its_chunks_and_draws_the_same_placebos(run, small, placebos, tmp_path):
    data = rows_of("a", "bb", "c", "NaN", "e", "ff", "g")
    whole, uncut = run(data, output="whole.jsonl", placebos=placebos, **small)
    with pytest.raises(KeyboardInterrupt):
        run(data, placebos=placebos, engine={"stop_at": 1}, **small)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    with (tmp_path / "out.jsonl").open("a") as file:
        file.write('{"half a li')
    rows, engine = run(data, placebos=placebos, **small)
    assert rows == whole
    assert engine.calls == uncut.calls[1:]
    assert engine.others == {name: text for name, text in uncut.others.items() if name not in ("0", "1")}
    if placebos:  # the next of the window, round the end
        assert uncut.others == {"0": "bb", "1": "c", "2": "NaN", "3": "a", "4": "ff", "5": "g", "6": "e"}


def test_another_explanation_of_the_same_question_is_no_placebo(run):
    _, engine = run([{**ROW, "question": q, "explanation": e, "id": e} for q, e in ("ax", "ay", "bz")], placebos=True)
    assert engine.others == {"x": "z", "y": "z", "z": "x"}


def test_rows_before_a_lost_server_are_written(run, tmp_path):
    with pytest.raises(RltError, match="the server is gone"):
        run(rows_of("a", "bb", "c", "d"), engine={"lost_at": "c"})
    assert [row["reward"] for _, row in read_rows(tmp_path / "out.jsonl")] == [1, 2]
    rows, engine = run(rows_of("a", "bb", "c", "d"))
    assert [row["reward"] for row in rows] == [1, 2, 1, 1]
    assert engine.calls == [2]


def test_a_run_goes_on_with_the_same_served_model_only(run, monkeypatch):
    def serve(name):
        student = object.__new__(ServedStudent)
        student.model, student.close = name, lambda: closed.append(name)
        monkeypatch.setattr(score, "open_models", lambda config, fmt: ({"http://host/v1": student}, None))

    closed = []
    serve("one")
    with pytest.raises(KeyboardInterrupt):
        run([ROW], engine={"stop_at": 0})
    serve("two")
    with pytest.raises(RunError, match="started with the served students one; these servers have two"):
        run([ROW])
    serve("one")
    assert len(run([ROW])[0]) == 1
    assert closed == ["one", "two", "one"]


def test_the_bar_counts_each_model_and_placebo_that_reads_a_row(monkeypatch):
    monkeypatch.setenv("RLT_QUIET", "1")
    with score._Bar(10, 4) as bar:
        bar.passes = 3
        for _ in range(6):
            bar.progress(1, 5)
        assert bar._bar.n == 4 + 2
        bar.finish(3)
        assert bar._bar.n == 4 + 3


# -- Parquet -----------------------------------------------------------------------------------------------------------


def test_parquet_has_the_columns_of_the_configuration_whatever_the_first_rows_are(run, small, tmp_path):
    bad, good = {**ROW, "solution": ""}, {**ROW, "id": 7}
    run([bad] * 5 + [good], output="out.parquet", student=["one", "two"], placebos=True, **small)
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.column("id").to_pylist() == [None] * 5 + ["7"]
    last = table.to_pylist()[-1]
    assert (last["reward"], last["students"]["two"]["reward"], last["lift_over_empty"]) == (1.0, 1.0, None)
    assert [field.name for field in table.schema.field("students").type] == ["one", "two"]
    assert not list(tmp_path.glob("*.rows.jsonl"))


def test_ids_are_text_in_parquet(run, tmp_path):
    run([{**ROW, "id": value} for value in ("a", 7, "\ud83d", 2**70, None)], output="out.parquet")
    ids = pyarrow.parquet.read_table(tmp_path / "out.parquet").column("id").to_pylist()
    assert ids == ["a", "7", r"\ud83d", str(2**70), None]


def test_parquet_has_a_column_of_ids_also_where_no_row_has_one(run, tmp_path):
    run([ROW], output="out.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["id", *RewardParts.__dataclass_fields__]
    assert table.column("id").to_pylist() == [None]


def test_solutions_of_another_file_take_the_place_of_the_rows_own(tmp_path, monkeypatch):
    (tmp_path / "data.jsonl").write_text(
        json.dumps({**ROW, "solution": "wrong"}) + "\n" + json.dumps({**ROW, "question": "p"})
    )
    (tmp_path / "right.jsonl").write_text(json.dumps({"question": "q", "solution": "right"}) + "\n")
    config = ScoreConfig(
        student=["s"], data=tmp_path / "data.jsonl", output=tmp_path / "o.jsonl", solutions=tmp_path / "right.jsonl"
    )
    first, second = score.numbered(config, Letters.fmt)
    assert (first.explanation.problem.solution, first.explanation.text.strip()) == ("right", "e")
    assert second.error == (
        "data.jsonl line 2: its question is not in the file of `solutions`, " + str(tmp_path / "right.jsonl") + "."
    )
