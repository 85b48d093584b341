"""`rlt collect` with an engine that costs nothing: killed anywhere, out of room on the disk, read by `datasets`."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import datasets
import pytest
from byte_models import byte_tokenizer, save, tiny_model

from rlt.config import CollectConfig
from rlt.data.rows import read_rows
from rlt.engines.base import Completion, Request, Sampling
from rlt.errors import DataError, ModelError, RltError, RunError
from rlt.stages import collect

CLOSE = "\n\n<|end_of_explanation|>"
ROOT = Path(__file__).resolve().parents[2]


class FakeEngine:
    """Completions that depend on the seed alone, in an order that depends on who asks."""

    context_length = None
    name = "fake"

    def __init__(self, pause: float = 0.0, started: int | None = None) -> None:
        self.pause, self.started, self.random = pause, started, random.Random(os.getpid())

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        source = iter(requests)
        while window := list(islice(source, 7)):
            self.random.shuffle(window)
            for request in window:
                if self.started is not None:
                    os.write(self.started, b"x")
                    self.started = None
                time.sleep(self.pause)
                text = f"{request.seed} " * (1 + request.seed % 5) + (CLOSE if request.seed % 3 else "")
                reason = "stop" if request.seed % 3 else "length"
                yield Completion(request.key, text, reason, 9, 4, (1, 2), -0.5, request.seed)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = byte_tokenizer()
    return save(tmp_path_factory.mktemp("model"), tiny_model(tokenizer, 0), tokenizer)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "build_engine", lambda *args, **options: FakeEngine())
    monkeypatch.setattr("rlt.data.explanations.SHARD_ROWS", 12)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("RLT_QUIET", "1")


def config(folder: Path, model: str, count: int = 50, **options: object) -> CollectConfig:
    data = folder.parent / f"problems-{count}.jsonl"
    rows = [
        {"question": f"What is {i}?", "solution": str(i), **({"answer": str(i)} if i > 40 else {})}
        for i in range(count)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CollectConfig(output=folder, model=model, data=str(data), **{"samples": 3, **options})


def files(folder: Path) -> dict[str, bytes]:
    """All that a finished run leaves, but its state file with times in it, and what a killed one could not take away."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if not name.endswith(("stage.json", ".stage.lock", ".partial"))}


def test_every_problem_has_its_samples_in_the_order_of_the_data(model, tmp_path):
    result = collect.run(config(tmp_path / "out", model))
    rows = [row for _, row in read_rows(tmp_path / "out")]
    assert [(row["problem"], row["sample"]) for row in rows] == [(str(i), s) for i in range(50) for s in range(3)]
    assert result.metrics["explanations"] == 150
    assert result.metrics["unclosed"] == sum(row["seed"] % 3 == 0 for row in rows)


def test_a_complete_collection_is_not_collected_again(model, tmp_path, monkeypatch):
    first = collect.run(config(tmp_path / "out", model))
    monkeypatch.setattr(collect, "build_engine", lambda *args, **options: pytest.fail("an engine was built"))
    assert collect.run(config(tmp_path / "out", model)).metrics == first.metrics


def test_killed_at_thirty_random_points_it_leaves_what_it_would_have_left(model, tmp_path):
    expected = tmp_path / "whole"
    collect.run(config(expected, model))
    dice, kills, number = random.Random(0), 0, 0
    folder = tmp_path / "0"
    while kills < 30:
        pid, started = fork_collect(config(folder, model))
        if dice.random() < 0.8:
            os.read(started, 1)  # the first explanation is about to be written
        time.sleep(dice.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(started)
        if os.WIFSIGNALED(status):
            kills += 1
        else:
            assert os.WEXITSTATUS(status) == 0
            assert files(folder) == files(expected)
            number += 1
            folder = tmp_path / str(number)
        check_visible(folder)
    collect.run(config(folder, model))
    assert files(folder) == files(expected)


def fork_collect(config: CollectConfig) -> tuple[int, int]:
    """The process that collects, and a pipe that has a byte when its engine begins (or ends when the process does)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    status = 1
    try:
        os.close(reader)
        collect.build_engine = lambda *args, **options: FakeEngine(0.0005, writer)  # type: ignore[assignment]
        collect.run(config)
        status = 0
    finally:
        os._exit(status)


def check_visible(folder: Path) -> None:
    """Whatever a reader could see is whole shards of whole problems."""
    for path in folder.glob("explanations-*"):
        shard, rows = int(path.stem[-5:]), [row for _, row in read_rows(path)]
        problems = range(4 * shard, min(4 * shard + 4, 50))
        assert [(row["problem"], row["sample"]) for row in rows] == [(str(i), s) for i in problems for s in range(3)]


def test_a_full_disk_is_a_clear_error_and_what_was_written_stays(model, tmp_path):
    folder = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))  # a shard of 12 rows does not fit in one file
    try:
        with pytest.raises(DataError, match=r"cannot be written \(File too large\)") as error:
            collect.run(config(folder, model))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    kept = [row for _, row in read_rows(folder / "state" / "journal-00000.jsonl")]
    assert len(kept) > 3
    collect.run(config(folder, model))
    assert len([row for _, row in read_rows(folder)]) == 150


def test_a_folder_that_cannot_be_written_is_a_clear_error(model, tmp_path):
    (tmp_path / "file").write_text("")
    made = config(tmp_path / "out", model).model_copy(update={"output": tmp_path / "file" / "out"})
    with pytest.raises(RltError, match=r"cannot be created \(Not a directory\)"):
        collect.run(made)


def test_changed_problems_are_refused(model, tmp_path, monkeypatch):
    class Dies(FakeEngine):
        def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
            yield from islice(super().generate(requests, sampling), 20)
            raise KeyboardInterrupt

    monkeypatch.setattr(collect, "build_engine", lambda *args, **options: Dies())
    with pytest.raises(KeyboardInterrupt):
        collect.run(config(tmp_path / "out", model))
    cut = config(tmp_path / "out", model)
    data = Path(cut.data.path)
    data.write_text(data.read_text().replace("What is 7?", "What is 77?"))
    with pytest.raises(RunError, match="has been edited since"):
        collect.run(cut)


def with_a_long_problem(made: CollectConfig, on_invalid: str) -> CollectConfig:
    """The same with a fourth problem whose prompt does not fit into the model's context of 2,048 tokens."""
    rows = [{"id": name, "question": f"What is {name}?", "solution": "So."} for name in ("a", "b", "c")]
    rows.append({"id": "long", "question": "x?! " * 1200, "solution": "So."})
    Path(made.data.path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made.model_copy(update={"data": made.data.model_copy(update={"on_invalid": on_invalid})})


def test_a_problem_whose_prompt_fills_the_context_is_named_and_the_corrected_command_leaves_it_out(
    model, tmp_path, monkeypatch, capsys
):
    with pytest.raises(DataError, match=r"problem long: its prompt of \d+ tokens fills the context of 2048"):
        collect.run(with_a_long_problem(config(tmp_path / "out", model, max_tokens=16), "error"))
    result = collect.run(with_a_long_problem(config(tmp_path / "out", model, max_tokens=16), "skip"))
    assert [row["problem"] for _, row in read_rows(tmp_path / "out")] == [*"aaabbbccc"]
    assert (result.metrics["without_room"], result.metrics["problems"]) == (1, 3)
    assert "1 of 4 problems skipped; the first: " in capsys.readouterr().out


def test_a_context_that_leaves_fewer_tokens_than_were_asked_for_is_said_and_counted(model, tmp_path, capsys):
    result = collect.run(config(tmp_path / "out", model, max_tokens=1990))
    assert 0 < result.metrics["short_of_room"] <= 50
    assert "room for fewer than `max_tokens` 1990 tokens in the context of 2048" in capsys.readouterr().out
    result = collect.run(config(tmp_path / "other", model, max_tokens=16))
    assert result.metrics["short_of_room"] == 0


def test_an_engine_with_a_shorter_context_than_at_the_beginning_is_refused(model, tmp_path, monkeypatch):
    class Shorter(FakeEngine):
        context_length = 5

        def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
            return (Completion(request.key, "", "length", 9, 0, ()) for request in requests)

    monkeypatch.setattr(collect, "build_engine", lambda *args, **options: Shorter())
    with pytest.raises(RunError, match="fills the engine's context of 5 tokens"):
        collect.run(config(tmp_path / "out", model))


def test_rows_have_the_seed_that_was_used_or_none(model, tmp_path, monkeypatch):
    class Unseeded(FakeEngine):
        def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
            return (replace(completion, seed=None) for completion in super().generate(requests, sampling))

    collect.run(config(tmp_path / "seeded", model))
    assert all(isinstance(row["seed"], int) for _, row in read_rows(tmp_path / "seeded"))
    monkeypatch.setattr(collect, "build_engine", lambda *args, **options: Unseeded())
    collect.run(config(tmp_path / "unseeded", model))
    assert {row["seed"] for _, row in read_rows(tmp_path / "unseeded")} == {None}


def test_what_never_closes_its_tag_is_collected_too(model, tmp_path):
    metrics = collect.run(config(tmp_path / "out", model)).metrics
    rows = [row for _, row in read_rows(tmp_path / "out")]
    assert metrics["explanations"] == len(rows) == 150
    assert metrics["unclosed"] == sum(not row["closed"] for row in rows) > 0


def test_a_problem_that_the_chat_template_rewrites_is_named_before_anything_is_generated(model, tmp_path, monkeypatch):
    def prompt(fmt, tokenizer, problem):
        if problem.id == "b":
            raise ModelError("the chat template rewrites the user's message")
        return problem.question

    monkeypatch.setattr("rlt.data.prompts.teacher_prompt", prompt)
    made = config(tmp_path / "out", model)
    rows = [{"id": name, "question": f"What is {name}?", "solution": "So."} for name in "abc"]
    Path(made.data.path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"problem b: the chat template rewrites[\s\S]*`data.on_invalid: skip`"):
        collect.run(made)
    assert not (tmp_path / "out").exists()
    metrics = collect.run(made.model_copy(update={"data": made.data.model_copy(update={"on_invalid": "skip"})})).metrics
    assert [row["problem"] for _, row in read_rows(tmp_path / "out")] == [*"aaaccc"]
    assert (metrics["invalid_rows"], metrics["problems"]) == (1, 2)


def test_repeated_ids_are_refused_before_anything_is_written(model, tmp_path):
    made = config(tmp_path / "out", model)
    row = json.dumps({"id": "a", "question": "Why?", "solution": "So."}) + "\n"
    Path(made.data.path).write_text(row * 2)
    with pytest.raises(DataError, match="column `id` has duplicates"):
        collect.run(made)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_datasets_opens_the_folder(model, tmp_path, file_format, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "out"
    collect.run(config(folder, model, file_format=file_format))
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["sample"][:4] == [0, 1, 2, 0]
    assert rows["answer"][-1] == "49"
    assert len(rows) == 150


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_problems():
    # The first collection leaves the peak of everything that is loaded once; in one process the second can only raise it.
    code = "from collect_memory import peak; print(peak(500), peak(5000))"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    small, large = map(int, done.stdout.splitlines()[-1].split())
    # 4,500 rows of 2 kB are 9 MB; what stays is the ids' hashes, 8 bytes a problem.
    assert large - small < 4 * 2**20
