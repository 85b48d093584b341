"""`rlt score` and the plain TRL example, run as a person would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from byte_models import byte_tokenizer, save, tiny_model
from plain_reward import plain_reward

from rlt.cli import main
from rlt.config import ScoreConfig
from rlt.data.explanations import explanation_of
from rlt.data.rows import read_rows
from rlt.stages import score
from rlt.text.formats import load_format

ROOT = Path(__file__).resolve().parents[2]
FMT = load_format("stratos").model_copy(update={"teacher_system_prompt": "Teach.", "student_system_prompt": "Think."})
CLOSE = FMT.tags.explanation.close
COLUMNS = [
    "reward", "r_ss", "r_kl", "solution_log_prob_mean", "solution_log_prob_min", "explanation_kl_mean",
    "explanation_kl_max", "format_penalty", "solution_tokens", "explanation_tokens", "error",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with models, a format and rows of each kind."""
    folder = tmp_path_factory.mktemp("score")
    tokenizer = byte_tokenizer(tags=FMT.tags.all())
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    for name, seed in (("student", 0), ("second", 2), ("teacher", 1)):
        save(folder / name, tiny_model(tokenizer, seed, **small), tokenizer)
    tokenizer.chat_template = "{% for m in messages if m['role'] != 'user' %}[{{ m['content'] }}]{% endfor %}"
    save(folder / "drops", tiny_model(tokenizer, 3, **small), tokenizer)
    (folder / "format.yaml").write_text(json.dumps(FMT.model_dump(mode="json")))
    rows = [
        {"id": "a", "question": "What is 1?", "solution": "It is 5.", "explanation": "So 5 é."},
        {"id": "b", "question": "What is 2?", "solution": "It is 5.", "completion": "So,\n\n5." + CLOSE + "more"},
        {"id": "c", "question": "What is 3?", "solution": "It is 6.", "completion": "Never closed"},
    ]
    _write(folder / "good.jsonl", rows)
    bad = [
        {**rows[0], "solution": ""},
        {**rows[0], "question": "What is <|begin_of_thought|>?"},
        {**rows[0], "explanation": "long " * 3000},
        {"id": "x", "question": "a", "solution": "b"},
    ]
    _write(folder / "bad.jsonl", [*rows, *bad])
    _write(folder / "no_column.jsonl", [{"question": "a", "explanation": "b"}] * 2)
    return folder


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _score(place, data, output, *more):
    return main([
        "score", "--student", str(place / "student"), "--teacher", str(place / "teacher"), "--data", str(place / data),
        "--format", str(place / "format.yaml"), "--temperature", "0.7", "--preset", "reference-code",
        "--output", str(output), *more,
    ])  # fmt: skip


def test_every_row_gets_its_reward_in_order(place, tmp_path):
    assert _score(place, "good.jsonl", tmp_path / "out.jsonl") == 0
    from rlt.models.loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(str(place / "student"))
    student, teacher = ((tokenizer, load_model(str(place / name), device="cpu")) for name in ("student", "teacher"))
    pairs = zip(read_rows(place / "good.jsonl"), read_rows(tmp_path / "out.jsonl"), strict=True)
    for (_, given), (_, got) in pairs:
        assert list(got) == ["id", *COLUMNS]
        assert (got["id"], got["error"]) == (given["id"], None)
        item = explanation_of(given, "row", "0", FMT)
        expected = plain_reward(FMT, student, teacher, item.problem, item.text, item.closed)
        assert (got["r_ss"], got["r_kl"]) == pytest.approx(expected, abs=1e-3)
        penalty = 0.0 if item.closed else -1.0
        assert got["reward"] == pytest.approx(expected[0] - 3 * expected[1] + penalty, abs=1e-3)


def test_rows_that_cannot_be_scored_are_named_and_the_others_scored(place, tmp_path, capsys):
    assert _score(place, "bad.jsonl", tmp_path / "out.jsonl") == 1
    rows = [row for _, row in read_rows(tmp_path / "out.jsonl")]
    assert [row["error"] is None for row in rows] == [True] * 3 + [False] * 4
    said = capsys.readouterr().out
    assert "bad.jsonl line 4: column `solution` is empty" in said
    assert "bad.jsonl line 5: column `question` contains the format's tag <|begin_of_thought|>" in said
    assert "tokens, but the context of" in rows[5]["error"]
    assert "has neither `explanation` nor `completion`" in rows[6]["error"]
    assert "\nscore: 7 rows, 4 with errors" in said


def test_what_is_wrong_with_everything_ends_before_any_weights_are_loaded(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rlt.models.loading.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    assert _score(place, "no_column.jsonl", tmp_path / "out.jsonl") == 2
    assert "no_column.jsonl line 1: column `solution` is missing" in capsys.readouterr().err
    for student, words in (("drops", "+++ rendered by the template"), ("good.jsonl", "not a model folder")):
        assert _score(place, "good.jsonl", tmp_path / "out.jsonl", "--student", str(place / student)) == 2
        assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(place, tmp_path, monkeypatch):
    monkeypatch.setattr(score, "WINDOW", 4)
    monkeypatch.setattr(score, "CHARACTERS_A_TOKEN", 0)  # chunks of one row
    assert _score(place, "bad.jsonl", tmp_path / "whole.jsonl", "--placebos", "true") == 1
    config = ScoreConfig(
        student=[str(place / "student")], teacher=str(place / "teacher"), data=place / "bad.jsonl",
        format=str(place / "format.yaml"), temperature=0.7, output=tmp_path / "cut.jsonl", placebos=True,
    )  # fmt: skip
    score_chunk, calls = score._score_chunk, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score_chunk(*arguments)

    monkeypatch.setattr(score, "_score_chunk", stops)
    with pytest.raises(KeyboardInterrupt):
        score.run(config)
    with (tmp_path / "cut.jsonl").open("ab") as file:
        file.write(b'{"half a li')
    monkeypatch.setattr(score, "_score_chunk", score_chunk)
    score.run(config)
    whole, cut = ([row for _, row in read_rows(tmp_path / f"{name}.jsonl")] for name in ("whole", "cut"))
    assert [row["error"] for row in whole] == [row["error"] for row in cut]
    for one, two in zip(whole, cut, strict=True):
        assert one["reward"] == pytest.approx(two["reward"], abs=1e-4)
        assert one["lift_over_shuffled"] == pytest.approx(two["lift_over_shuffled"], abs=1e-4)


def test_several_students_and_parquet(place, tmp_path):
    arguments = ["--student", str(place / "student"), "--student", str(place / "second")]
    assert main([
        "score", *arguments, "--data", str(place / "good.jsonl"), "--format", str(place / "format.yaml"),
        "--output", str(tmp_path / "two.parquet"), "--aggregate", "min",
    ]) == 0  # fmt: skip
    rows = pyarrow.parquet.read_table(tmp_path / "two.parquet").to_pylist()
    for row in rows:
        parts = row["students"].values()
        assert row["reward"] == min(part["reward"] for part in parts)
        assert row["r_kl"] is None
    assert list(tmp_path.glob("*.rows.jsonl")) == []


@pytest.mark.slow
def test_the_plain_trl_example_trains(tmp_path):
    fmt = load_format("stratos")
    tokenizer = byte_tokenizer(tags=fmt.tags.all())
    folders = [save(tmp_path / name, tiny_model(tokenizer, seed), tokenizer) for seed, name in enumerate(("t", "s"))]
    _write(tmp_path / "p.jsonl", [{"question": f"What is {i}?", "solution": f"It is {i}."} for i in range(8)])
    example = ROOT / "examples" / "plain_trl.py"
    assert len(example.read_text().splitlines()) < 40
    command = [sys.executable, str(example), *folders, str(tmp_path / "p.jsonl"), str(tmp_path / "out"), "1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rewards/rlt/mean" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").is_file()
