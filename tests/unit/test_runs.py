"""A stage's output: begun, complete, refused; rows that survive a cut."""

import json

import pytest

from rlt.config import ProblemsConfig
from rlt.errors import DataError, RunError
from rlt.rows import JsonlWriter, read_rows, write_rows
from rlt.runs import begin
from rlt.stages import problems


def config(path, **keys):
    return ProblemsConfig(output=path, task="arithmetic", **{"count": 3, **keys})


def test_a_complete_stage_is_not_run_again(tmp_path):
    first = problems.run(config(tmp_path / "p.jsonl"))
    stamp = (tmp_path / "p.jsonl").stat().st_mtime_ns
    assert problems.run(config(tmp_path / "p.jsonl")) == first
    assert (tmp_path / "p.jsonl").stat().st_mtime_ns == stamp


def test_another_configuration_is_refused_with_the_keys_and_two_ways_out(tmp_path):
    problems.run(config(tmp_path / "p.jsonl"))
    with pytest.raises(RunError) as caught:
        problems.run(config(tmp_path / "p.jsonl", count=4))
    assert "`count`: 3 there, 4 now" in str(caught.value)
    assert "--name" in str(caught.value)
    assert "--restart" in str(caught.value)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="holds files that rlt did not make"):
        begin("warmup", config(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_the_output_of_another_stage_is_refused(tmp_path):
    problems.run(config(tmp_path / "p.jsonl"))
    with pytest.raises(RunError, match="made by the stage `problems`, not `score`"):
        begin("score", config(tmp_path / "p.jsonl"))


def test_half_a_last_line_is_cut_off_when_writing_goes_on(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    with JsonlWriter(path) as writer:
        writer.write([{"a": 3}])
    assert [row for _, row in read_rows(path)] == [{"a": 1}, {"a": 3}]


def test_a_last_line_longer_than_a_block_is_cut_off_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "' + b"x" * 200_000)
    JsonlWriter(path).close()
    assert path.read_bytes() == b'{"a": 1}\n'


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        JsonlWriter(tmp_path / "file" / "rows.jsonl")


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path):
    def rows():
        yield {"a": 1}
        raise ValueError("half-way")

    write_rows(tmp_path / "r.jsonl", [{"a": 0}])
    with pytest.raises(ValueError, match="half-way"):
        write_rows(tmp_path / "r.jsonl", rows())
    assert json.loads((tmp_path / "r.jsonl").read_text()) == {"a": 0}
