"""A stage's output: begun, complete, refused; rows that survive a cut."""

import json
import os
import resource
import time
from datetime import date
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import rlt
from rlt.config import DistillConfig, EvaluateConfig, ProblemsConfig, ScoreConfig, TrainConfig, WarmupConfig
from rlt.data import fingerprints
from rlt.data.rows import JsonlWriter, read_rows, write_rows
from rlt.errors import ConfigError, DataError, RunError
from rlt.outputs import begin, changed_keys, differences, read_state, remove_output, writing
from rlt.provenance import format_of, prepared
from rlt.stages import problems
from rlt.text import clock
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
    with pytest.raises(RunError, match="contains files that rlt did not create"):
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
    begin("pretrain", config(tmp_path / "base")).finish({})
    taught = EvaluateConfig(output=tmp_path / "e", model=str(tmp_path / "base"), benchmark="math500")
    begin("evaluate", taught).finish({})
    assert begin("evaluate", taught).result is not None
    (tmp_path / "base" / "stage.json").unlink()
    begin("pretrain", config(tmp_path / "base")).finish({})
    with pytest.raises(RunError, match=r"its input .*base has been regenerated or removed since"):
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


# -- inputs ------------------------------------------------------------------------------------------------------------


def warmup(folder, data, **keys):
    return WarmupConfig(output=folder / "w", model="m", data=str(data), **keys)


def test_data_edited_after_a_stage_was_complete_is_refused(tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text('{"question": 1}')
    begin("warmup", warmup(tmp_path, data)).finish({})
    assert begin("warmup", warmup(tmp_path, data)).result is not None
    data.write_text('{"question": 2}')  # of the same size
    with pytest.raises(RunError, match=r"its input .*d\.jsonl has been edited since"):
        begin("warmup", warmup(tmp_path, data))


def test_a_file_that_was_only_touched_is_the_same(tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text("{}")
    begin("warmup", warmup(tmp_path, data)).finish({})
    os.utime(data, (1, 1))
    assert begin("warmup", warmup(tmp_path, data)).result is not None


def test_a_data_folder_with_another_file_is_edited(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_text("{}")
    begin("warmup", warmup(tmp_path, folder)).finish({})
    (folder / "README.md").write_text("not data")
    assert begin("warmup", warmup(tmp_path, folder)).result is not None
    (folder / "b.jsonl").write_text("{}")
    with pytest.raises(RunError, match=r"its input .*data has been edited since"):
        begin("warmup", warmup(tmp_path, folder))


def test_rows_edited_inside_another_stages_output_are_edited(tmp_path):
    rows = tmp_path / "p.jsonl"
    problems.run(config(rows))
    scored = ScoreConfig(output=tmp_path / "s.jsonl", data=rows, student="m")
    begin("score", scored)
    rows.write_text(rows.read_text() + '{"question": "one more"}\n')
    with pytest.raises(RunError, match=r"its input .*p\.jsonl has been edited since"):
        begin("score", scored)


def test_a_large_file_is_fingerprinted_by_blocks_with_the_first_and_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "WHOLE", 8)
    monkeypatch.setattr(fingerprints, "BLOCK", 2)
    monkeypatch.setattr(fingerprints, "BLOCKS", 3)
    file = tmp_path / "big.safetensors"
    file.write_bytes(b"aa....bb....cc")
    known = fingerprints.fingerprint(file)
    for content, same in ((b"aa~~~~bb~~~~cc", True), (b"aa....bb....cd", False), (b"ab....bb....cc", False)):
        file.write_bytes(content)
        os.utime(file, (1, 1))
        assert fingerprints.unchanged(file, known) is same


def test_a_renamed_run_resumes(tmp_path):
    def train(run):
        return TrainConfig(output=tmp_path / run / "train", model=str(tmp_path / run / "base"), data="d", student="s")

    (tmp_path / "old" / "base").mkdir(parents=True)
    begin("pretrain", config(tmp_path / "old" / "base")).finish({})
    begin("train", train("old")).finish({})
    (tmp_path / "old").rename(tmp_path / "new")
    assert begin("train", train("new")).result is not None


# -- a state that cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"x"', "[" * 100_000])
def test_a_garbled_state_is_refused_in_one_line_and_restart_recovers(tmp_path, content):
    output = tmp_path / "w"
    begin("warmup", warmup(tmp_path, "d.jsonl")).finish({})
    (output / "stage.json").write_text(content)
    with pytest.raises(RunError, match=r"stage\.json: cannot be read .* Start over") as caught:
        begin("warmup", warmup(tmp_path, "d.jsonl"))
    assert len(str(caught.value).splitlines()) == 1
    assert "cannot be read" in differences(read_state(output), warmup(tmp_path, "d.jsonl"))[0]
    remove_output(output)  # what --restart does
    begin("warmup", warmup(tmp_path, "d.jsonl")).finish({})


# -- the date of chat templates ----------------------------------------------------------------------------------------


@pytest.fixture
def today(monkeypatch):
    """Sets today's date."""
    monkeypatch.delenv(clock.VARIABLE, raising=False)

    def set_day(day):
        monkeypatch.setenv(clock.VARIABLE, "")  # another start; restored after the test
        monkeypatch.setattr(
            clock, "date", type("Day", (date,), {"today": classmethod(lambda cls: date.fromisoformat(day))})
        )

    return set_day


def test_a_stage_that_resumes_the_next_day_prints_the_date_of_its_begin(tmp_path, today):
    today("2025-01-31")
    begin("warmup", prepared("warmup", warmup(tmp_path, "d.jsonl")))
    today("2025-02-01")
    prepared("warmup", warmup(tmp_path, "d.jsonl"))
    assert clock.strftime_now("%d %b %Y") == "31 Jan 2025"
    begin("warmup", prepared("warmup", warmup(tmp_path, "d.jsonl"))).finish({})
    assert read_state(tmp_path / "w")["date"] == "2025-01-31"


def test_what_is_made_from_a_model_prints_the_models_date(tmp_path, today):
    today("2025-01-31")
    begin("warmup", prepared("warmup", warmup(tmp_path, "d.jsonl"))).finish({})
    today("2025-02-01")
    prepared("evaluate", EvaluateConfig(output=tmp_path / "e", model=str(tmp_path / "w"), benchmark="math500"))
    assert clock.pinned_date() == "2025-01-31"
    today("2025-02-01")
    prepared("evaluate", EvaluateConfig(output=tmp_path / "e", model="hub/model", benchmark="math500"))
    assert clock.pinned_date() == "2025-02-01"


# -- the format of a model ---------------------------------------------------------------------------------------------


def evaluated(folder, **keys):
    return EvaluateConfig(output=folder / "e", model=str(folder / "w"), benchmark="math500", **keys)


def test_a_model_says_with_which_format_it_was_made(tmp_path):
    begin("warmup", prepared("warmup", warmup(tmp_path, "d.jsonl", format="words"))).finish({})
    assert format_of(str(tmp_path / "w")) == "words"
    assert format_of("hub/model") is None
    assert prepared("evaluate", evaluated(tmp_path)).format == "words"
    assert prepared("evaluate", evaluated(tmp_path, format="words")).format == "words"
    with pytest.raises(ConfigError, match=r"was trained with the format `words`, not `r1`, .* set it to `words`"):
        prepared("evaluate", evaluated(tmp_path, format="r1"))


def test_a_stage_that_teaches_a_format_may_change_it(tmp_path):
    begin("warmup", prepared("warmup", warmup(tmp_path, "d.jsonl", format="words"))).finish({})
    student = DistillConfig(output=tmp_path / "d", model=str(tmp_path / "w"), data="d.jsonl", format="r1")
    assert prepared("distill", student).format == "r1"


def test_rl_may_give_its_teacher_a_prompt_in_other_words_but_no_other_tags(tmp_path):
    begin("warmup", prepared("warmup", warmup(tmp_path, "d.jsonl", format="words"))).finish({})
    words = (Path(rlt.__file__).parent / "shipped" / "formats" / "words.yaml").read_text()
    (tmp_path / "short.yaml").write_text(
        words.replace("teacher_system_prompt: null", "teacher_system_prompt: Be brief.")
    )
    (tmp_path / "tags.yaml").write_text(words.replace("<explain>", "<why>"))
    keys = {"output": tmp_path / "t", "model": str(tmp_path / "w"), "student": ["s"], "data": "d.jsonl"}
    short = str(tmp_path / "short.yaml")
    assert prepared("train", TrainConfig(**keys, format=short)).format == short
    with pytest.raises(ConfigError, match=r"was trained with the format `words`"):
        prepared("train", TrainConfig(**keys, format=str(tmp_path / "tags.yaml")))


def test_teacher_and_student_of_two_formats_are_refused(tmp_path):
    for name, fmt in (("w", "words"), ("r", "r1")):
        model = WarmupConfig(output=tmp_path / name, model="m", data="d.jsonl", format=fmt)
        begin("warmup", prepared("warmup", model)).finish({})
    both = TrainConfig(output=tmp_path / "t", model=str(tmp_path / "w"), student=str(tmp_path / "r"), data="d.jsonl")
    with pytest.raises(ConfigError, match=r"was trained with the format `r1`, not `words`, .*Use models of one format"):
        prepared("train", both)


def test_the_format_that_was_found_is_no_difference_when_resuming(tmp_path):
    begin("warmup", prepared("warmup", warmup(tmp_path, "d.jsonl"))).finish({})
    assert read_state(tmp_path / "w")["config"]["format"] == "stratos"
    assert differences(read_state(tmp_path / "w"), warmup(tmp_path, "d.jsonl")) == []


# -- a disk that is full -----------------------------------------------------------------------------------------------


SAVED = torch.zeros(300_000)


@pytest.mark.parametrize(
    "save",
    [
        lambda folder: save_file({"weight": SAVED}, folder / "model.safetensors"),
        lambda folder: torch.save(SAVED, folder / "optimizer.pt"),
        lambda folder: (folder / "big.txt").write_text("x" * 300_000),
    ],
)
def test_a_full_disk_is_told_in_one_line(tmp_path, save):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with (
            pytest.raises(RunError, match=r"cannot be written .*the same command resumes") as caught,
            writing(tmp_path),
        ):
            save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(str(caught.value).splitlines()) == 1


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
