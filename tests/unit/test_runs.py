"""A stage's output: begun, complete, refused; rows that survive a cut."""

import json
import os
import time

import pytest

from rlt.config import EvaluateConfig, ProblemsConfig, TrainConfig
from rlt.data.rows import JsonlWriter, read_rows, write_rows
from rlt.errors import DataError, RunError
from rlt.outputs import begin, changed_keys, read_state
from rlt.stages import problems
from tests.processes import another_process_writing


class AnyOutput(ProblemsConfig):
    """A stage's configuration whose output may be a file or a folder."""

    @property
    def writes(self):
        return "file" if self.output.suffix else "folder"


def config(path, **keys):
    return AnyOutput(output=path, task="arithmetic", **{"count": 3, **keys})


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


def test_a_run_that_did_not_fit_the_memory_goes_on_with_smaller_settings(tmp_path):
    def train(**trainer):
        return TrainConfig(output=tmp_path / "t", model="m", data="d", student="s", trainer={"max_steps": 5, **trainer})

    def evaluate(**options):
        return EvaluateConfig(output=tmp_path / "e", model="m", benchmark="math500", engine_options=options)

    begin("train", train(vllm_gpu_memory_utilization=0.9))
    assert begin("train", train(vllm_gpu_memory_utilization=0.4, vllm_tensor_parallel_size=2, save_steps=5)).resumed
    begin("evaluate", evaluate(gpu_memory_utilization=0.9))
    assert begin("evaluate", evaluate(gpu_memory_utilization=0.5, tensor_parallel_size=2)).resumed
    with pytest.raises(
        RunError, match=r"`trainer.max_steps`: 5 there, 6 now; `trainer.temperature`: None there, 0.5 now"
    ):
        begin("train", train(max_steps=6, temperature=0.5))


def test_keys_that_differ_are_named_at_their_depth():
    there, now = {"a": {"b": 1, "c": {"d": 2}}, "e": 3, "f": {}}, {"a": {"b": 1, "c": {"d": 4}}, "e": 3, "f": None}
    assert changed_keys(there, now) == ["`a.c.d`: 2 there, 4 now", "`f`: {} there, None now"]


def test_starting_over_by_hand_names_all_that_has_to_go(tmp_path):
    output = tmp_path / "p.jsonl"
    problems.run(config(output))
    with pytest.raises(RunError) as caught:
        problems.run(config(output, count=4))
    assert f"remove {output} and {output}.stage.json)" in str(caught.value)
    for file in (output, tmp_path / "p.jsonl.stage.json"):
        file.unlink()
    assert problems.run(config(output, count=4)).metrics["problems"] == 4


def test_a_complete_file_that_was_removed_is_made_again_with_any_configuration(tmp_path):
    output = tmp_path / "p.jsonl"
    problems.run(config(output))
    output.unlink()
    assert read_state(output) is None
    assert problems.run(config(output, count=4)).metrics["problems"] == 4
    assert len(output.read_text().splitlines()) == 4


def test_an_output_whose_input_was_made_anew_is_refused(tmp_path):
    (tmp_path / "base").mkdir()
    begin("base", config(tmp_path / "base")).finish({})
    taught = EvaluateConfig(output=tmp_path / "e", model=str(tmp_path / "base"), benchmark="math500")
    begin("evaluate", taught).finish({})
    assert begin("evaluate", taught).result is not None
    (tmp_path / "base" / "stage.json").unlink()
    begin("base", config(tmp_path / "base")).finish({})
    with pytest.raises(RunError, match=r"its input .*base was made anew or removed since"):
        begin("evaluate", taught)


def test_a_file_inside_an_output_is_of_that_output(tmp_path):
    folder = begin("select", config(tmp_path / "quarters"))
    (tmp_path / "quarters" / "band-1.jsonl").touch()
    folder.finish({})
    used = config(tmp_path / "p.jsonl", exclude=[tmp_path / "quarters" / "band-1.jsonl"])
    assert list(begin("problems", used).inputs) == [str(tmp_path / "quarters")]


# -- time --------------------------------------------------------------------------------------------------------------


def test_the_time_of_a_killed_start_counts_until_the_last_file_it_wrote(tmp_path):
    """Killed twice: 100 s and 50 s, by the newest file of each start."""
    for seconds in (100, 50):
        begin("warmup", config(tmp_path / "w"))
        (tmp_path / "w" / "metrics.jsonl").touch()
        later = time.time() + seconds
        os.utime(tmp_path / "w" / "metrics.jsonl", (later, later))
    assert begin("warmup", config(tmp_path / "w")).finish({}).metrics["seconds"] == pytest.approx(150, abs=2)


# -- one writer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.jsonl", "folder"])
def test_two_processes_cannot_write_one_output(tmp_path, name):
    output = tmp_path / name
    output.parent.mkdir(exist_ok=True)
    if name == "folder":
        output.mkdir()
    with (
        another_process_writing(output) as pid,
        pytest.raises(RunError, match=rf"{name}: process {pid} on .* is writing it"),
    ):
        begin("problems", config(output))
    begin("problems", config(output)).finish({})  # the other one was killed
    assert not list(tmp_path.rglob("*.lock"))


def test_only_the_first_of_processes_launched_together_holds_the_lock(tmp_path, monkeypatch):
    (tmp_path / "o").mkdir()
    with another_process_writing(tmp_path / "o"):
        monkeypatch.setenv("RANK", "1")
        assert begin("warmup", config(tmp_path / "o")).lock is None


def test_a_process_forked_off_the_writer_does_not_keep_the_lock(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # a writer that forks a worker and is killed
        try:
            begin("warmup", config(tmp_path / "o"))
            worker = os.fork()
            if worker == 0:
                os.write(writing, str(os.getpid()).encode())
                time.sleep(60)
        finally:
            os._exit(0)
    worker = int(os.read(reading, 20))
    os.waitpid(child, 0)
    try:
        assert begin("warmup", config(tmp_path / "o")).resumed
    finally:
        os.kill(worker, 9)


# -- rows --------------------------------------------------------------------------------------------------------------


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
