"""The evaluation stage with an engine whose truth is known, and once with a real model."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlt.config import DistillConfig, EvaluateConfig, GradeConfig
from rlt.data.rows import read_rows
from rlt.engines.base import Completion, Request, Sampling
from rlt.errors import ConfigError, DataError, ModelError, RunError
from rlt.outputs import begin, read_state
from rlt.results.comparison import compare
from rlt.stages import evaluate, grade
from rlt.tasks.benchmarks import load_benchmark, load_questions
from tests.words import make_model

ANSWERS = {question.question: question.answer for question in load_questions(load_benchmark("arithmetic")[0])}


class Coin:
    """An engine that knows the answers of `arithmetic` and gives the right one with probability `truth`.

    Which ones are right depends on each request's seed alone. After `dies_after` responses it fails, as when killed.
    """

    context_length: int | None = 512
    name = "coin"

    def __init__(self, truth: float, dies_after: int | None = None, backwards: bool = False) -> None:
        self.truth, self.dies_after, self.backwards = truth, dies_after, backwards
        self.asked: list[str] = []

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        wanted = list(requests)
        for request in reversed(wanted) if self.backwards else wanted:
            if self.dies_after is not None and len(self.asked) >= self.dies_after:
                raise KeyboardInterrupt
            self.asked.append(request.key)
            answer = next(a for q, a in ANSWERS.items() if q in request.prompt)
            given = answer if random.Random(request.seed).random() < self.truth else str((int(answer) + 1) % 10)
            text = f"<think> so </think> <answer>{given}</answer>"
            yield Completion(request.key, text, "stop", 20, 6)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def with_engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RLT_QUIET", "1")

    def use(engine: Coin) -> Coin:
        monkeypatch.setattr(evaluate, "build_engine", lambda *args, **options: engine)
        return engine

    return use


def config(model: str, output: Path, **more: Any) -> EvaluateConfig:
    values = {
        "model": model, "output": output, "format": "words", "max_tokens": 40, "benchmark": "arithmetic",
        "temperature": 0.6, **more,
    }  # fmt: skip
    return EvaluateConfig.model_validate(values)


def test_every_response_is_kept_with_its_verdict(model: str, with_engine: Any, tmp_path: Path) -> None:
    with_engine(Coin(0.5))
    result = evaluate.run(config(model, tmp_path / "e", samples=4, limit=50, seed=3))
    rows = [row for _, row in read_rows(tmp_path / "e" / "responses.jsonl")]
    assert len(rows) == len({row["key"] for row in rows}) == 200
    assert set(rows[0]) >= {
        "question_id", "sample", "seed", "prompt_sha256", "response", "prompt_tokens", "completion_tokens",
        "finish_reason", "extracted", "correct", "answer", "task", "benchmark", "version",
    }  # fmt: skip
    numbers = result.metrics["benchmarks"]["arithmetic"]
    assert numbers["pass@1"] == sum(row["correct"] for row in rows) / 200
    assert numbers["interval"][0] < 0.5 < numbers["interval"][1]
    assert (numbers["questions"], numbers["samples"], numbers["seed"]) == (50, 4, 3)
    assert numbers["pass@k"]["4"] > numbers["pass@k"]["2"] > numbers["pass@1"]
    assert (numbers["unfinished"], numbers["unreadable"], numbers["not_graded"]) == (0, 0, 0)
    written = json.loads((tmp_path / "e" / "results.json").read_text())
    assert written["benchmarks"]["arithmetic"] == numbers
    assert written["sampling"] | {"temperature": 0.6, "top_p": 1.0, "top_k": None} == written["sampling"]


@pytest.mark.parametrize("dies_after", [0, 1, 37, 199])
def test_a_killed_run_goes_on_and_leaves_the_same_file(
    model: str, with_engine: Any, tmp_path: Path, dies_after: int
) -> None:
    with_engine(Coin(0.5))
    evaluate.run(config(model, tmp_path / "whole", samples=2, limit=100))
    first = with_engine(Coin(0.5, dies_after=dies_after))
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(config(model, tmp_path / "cut", samples=2, limit=100))
    path = tmp_path / "cut" / "responses.jsonl"
    with path.open("ab") as file:
        file.write(b'{"key": "arithmetic/20250610-9')  # and a line that was being written
    second = with_engine(Coin(0.5, backwards=True))
    evaluate.run(config(model, tmp_path / "cut", samples=2, limit=100))
    assert sorted(first.asked + second.asked) == sorted({*first.asked, *second.asked})  # nothing asked twice
    assert len(first.asked + second.asked) == 200
    assert path.read_bytes() == (tmp_path / "whole" / "responses.jsonl").read_bytes()
    third = with_engine(Coin(0.5))
    evaluate.run(config(model, tmp_path / "cut", samples=2, limit=100))
    assert third.asked == []


def test_pass_at_1_does_not_move_with_the_number_of_samples(model: str, with_engine: Any, tmp_path: Path) -> None:
    with_engine(Coin(0.6))
    for samples in (1, 2, 8):
        result = evaluate.run(config(model, tmp_path / str(samples), samples=samples))
        numbers = result.metrics["benchmarks"]["arithmetic"]
        assert abs(numbers["pass@1"] - 0.6) < 4 * numbers["standard_error"]


def test_always_right_is_1_with_standard_error_0(model: str, with_engine: Any, tmp_path: Path) -> None:
    with_engine(Coin(1.0))
    numbers = evaluate.run(config(model, tmp_path / "e", samples=4)).metrics["benchmarks"]["arithmetic"]
    assert (numbers["pass@1"], numbers["standard_error"], numbers["interval"][1]) == (1, 0, 1)
    assert set(numbers["majority@k"].values()) == {1.0}


def test_intervals_of_a_known_coin_cover_the_truth(model: str, with_engine: Any, tmp_path: Path) -> None:
    """1,000 simulated evaluations: 1,000 samples of 30 questions each are asked once, sample by sample."""
    with_engine(Coin(0.7))
    evaluate.run(config(model, tmp_path / "e", samples=1000, limit=30))
    by_sample: dict[int, list[dict[str, Any]]] = {}
    for _, row in read_rows(tmp_path / "e" / "responses.jsonl"):
        by_sample.setdefault(row["sample"], []).append(row)
    intervals = [evaluate.numbers(rows, "arithmetic")["interval"] for rows in by_sample.values()]
    covered = sum(low <= 0.7 <= high for low, high in intervals)
    assert len(intervals) == 1000
    assert 935 <= covered <= 995


def test_two_models_are_compared_by_question(model: str, with_engine: Any, tmp_path: Path) -> None:
    for seed, (name, truth) in enumerate([("a", 0.3), ("b", 0.7), ("c", 0.7)]):
        with_engine(Coin(truth))
        evaluate.run(config(model, tmp_path / name, limit=200, seed=seed))
    far = compare(tmp_path / "a", tmp_path / "b")
    assert far.differences["arithmetic"].low > 0.2
    assert "B is better than A, beyond noise" in str(far)
    near = str(compare(tmp_path / "b", tmp_path / "c"))
    assert "within noise" in near
    assert "temperature 0.6, top-p 1; samples 1 and 1 (A and B), seeds 1 and 2" in near
    with pytest.raises(RunError, match="not an output of `rlt evaluate`"):
        compare(tmp_path / "a", tmp_path / "nothing")


def test_private_questions_are_in_no_file(
    model: str, with_engine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "Which made-up particle is heaviest"
    row = {"Record ID": "r1", "Question": f"{secret}?", "Correct Answer": "bright", "Incorrect Answer 1": "up",
           "Incorrect Answer 2": "odd", "Incorrect Answer 3": "wet"}  # fmt: skip
    (tmp_path / "gpqa.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with_engine(Coin(1.0))
    monkeypatch.setattr(Coin, "generate", lambda self, requests, sampling: (
        Completion(r.key, r"\boxed{A}", "length", 9, 3) for r in requests
    ))  # fmt: skip
    monkeypatch.delenv("RLT_QUIET")
    out = tmp_path / "e"
    evaluate.run(config(model, out, benchmark="gpqa-diamond", data=str(tmp_path / "gpqa.jsonl")))
    (response,) = [row for _, row in read_rows(out / "responses.jsonl")]
    assert response["extracted"] == "A"
    assert "question" not in response
    printed = capsys.readouterr()
    files = [path for path in out.rglob("*") if path.is_file()]
    texts = [path.read_text() for path in files if path.suffix != ".eval"] + [printed.out, printed.err]
    (log,) = (zipfile.ZipFile(path) for path in files if path.suffix == ".eval")
    texts += [log.read(name).decode() for name in log.namelist()]
    assert not [text for text in texts if secret in text]


def test_wrong_input_is_told_before_a_token_is_generated(model: str, with_engine: Any, tmp_path: Path) -> None:
    engine = with_engine(Coin(1.0))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "Q", "answer": "7"}\n{"question": "R", "answer": "\\\\frac{1}{"}\n', encoding="utf-8")
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ConfigError, "did you mean arithmetic", {"benchmark": "aritmetic"}),
        (ConfigError, "set `benchmark`", {"benchmark": []}),
        (ConfigError, "neither `format`, `none` nor a text file", {"system_prompt": "nowhere.txt"}),
        (DataError, "bad.jsonl line 2: column `answer`", {"benchmark": str(bad)}),
        (DataError, "the context of 512 tokens is too short for a prompt of", {"max_tokens": 512}),
        (DataError, "the context of 512 tokens is too short", {"max_tokens": None, "preset": "paper"}),
        (
            ConfigError,
            "`samples: 4` at temperature 0 would give the same response",
            {"samples": 4, "temperature": None},
        ),
        (ModelError, "not a model folder", {"model": str(tmp_path / "none")}),
    ]
    for error, words, more in cases:
        with pytest.raises(error, match=words):
            evaluate.run(config(**{"model": model, "output": tmp_path / "e", **more}))
        assert read_state(tmp_path / "e") is None  # the corrected command may use the folder
    assert engine.asked == []
    evaluate.run(config(model, tmp_path / "e", limit=3))


def test_changed_data_is_refused_on_resume(model: str, with_engine: Any, tmp_path: Path) -> None:
    data = tmp_path / "q.jsonl"
    questions = list(ANSWERS)
    data.write_text("".join(json.dumps({"question": q, "answer": ANSWERS[q]}) + "\n" for q in questions[:5]))
    with_engine(Coin(1.0, dies_after=2))
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(config(model, tmp_path / "e", benchmark=str(data), task="arithmetic"))
    data.write_text("".join(json.dumps({"question": q, "answer": ANSWERS[q]}) + "\n" for q in questions[5:10]))
    with_engine(Coin(1.0))
    with pytest.raises(RunError, match=r"its input .*q\.jsonl has been edited since"):
        evaluate.run(config(model, tmp_path / "e", benchmark=str(data), task="arithmetic"))
    # A dataset of the hub has no file to compare; its responses have.
    state = json.loads((tmp_path / "e" / "stage.json").read_text())
    (tmp_path / "e" / "stage.json").write_text(json.dumps({**state, "files": {}}))
    with pytest.raises(RunError, match="answers a different prompt than the data has now"):
        evaluate.run(config(model, tmp_path / "e", benchmark=str(data), task="arithmetic"))


def test_a_real_model_is_evaluated_and_graded_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLT_QUIET", "1")
    evaluate.run(config(model, tmp_path / "one", limit=12, samples=2, batch_size=5))
    evaluate.run(config(model, tmp_path / "two", limit=12, samples=2, batch_size=24))
    kept = (tmp_path / "one" / "responses.jsonl").read_bytes()
    assert kept == (tmp_path / "two" / "responses.jsonl").read_bytes()  # the batch changes nothing
    regraded = GradeConfig(
        data=tmp_path / "one" / "responses.jsonl", output=tmp_path / "graded.jsonl", format="words", task="math"
    )
    metrics = grade.run(regraded).metrics  # each row names its task
    assert (metrics["rows"], metrics["agree"]) == (24, 1.0)


def test_no_chat_template_is_told(model: str, tmp_path: Path) -> None:
    from rlt.models.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = None
    folder = make_model(tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="has no chat template"):
        evaluate.run(config(folder, tmp_path / "e"))


# -- how is said, and what was learned is not asked --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0.0, 1.0, 1)),
        ({"temperature": 0.7}, (0.7, 1.0, 1)),
        ({"temperature": 0.7, "samples": 4}, (0.7, 1.0, 4)),
        ({"preset": "robust"}, (0.6, 0.95, 8)),
        ({"preset": "robust", "samples": 4}, (0.6, 0.95, 4)),
        ({"preset": "robust", "top_p": 1}, (0.6, 1.0, 8)),
    ],
)
def test_sampling_is_what_was_given_or_named_by_the_preset_whatever_the_other_options(
    given: dict[str, Any], expected: tuple[float, float, int]
) -> None:
    sampling, samples, _ = evaluate._sampling(EvaluateConfig.model_validate({"model": "m", "output": "o", **given}))
    assert (sampling.temperature, sampling.top_p, samples) == expected


def test_the_table_names_temperature_and_top_p(
    model: str, with_engine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_engine(Coin(1.0))
    monkeypatch.delenv("RLT_QUIET")
    monkeypatch.setenv("COLUMNS", "100")
    evaluate.run(config(model, tmp_path / "e", limit=3, temperature=0.7, top_p=0.9))
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("benchmark"))
    head, _, row = lines[start : start + 3]
    assert row.split()[2:6] == ["3", "1", "0.7", "0.9"]
    assert head.split()[1:5] == ["questions", "samples", "temperature", "top-p"]


@pytest.fixture
def taught(tmp_path: Path) -> tuple[Path, Path]:
    """A student that rlt distilled from three of five held-out questions, and the file of those five."""
    questions = list(ANSWERS)[:5]
    held_out, data = tmp_path / "held_out.jsonl", tmp_path / "explained.jsonl"
    held_out.write_text("".join(json.dumps({"question": q, "answer": ANSWERS[q]}) + "\n" for q in questions))
    rows = [{"question": q, "solution": "4", "explanation": "so"} for q in ["other ?", *questions[2:]]]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = begin("distill", DistillConfig(output=tmp_path / "student", model="m", data=str(data), format="words"))
    make_model(folder.path)
    folder.finish({})
    return folder.path, held_out


def test_a_model_is_not_evaluated_on_a_file_with_questions_that_it_learned_from(
    taught: tuple[Path, Path], with_engine: Any, tmp_path: Path
) -> None:
    student, held_out = taught
    engine = with_engine(Coin(1.0))
    asked = {"benchmark": str(held_out), "task": "arithmetic"}
    with pytest.raises(
        DataError,
        match=r"held_out\.jsonl: 3 of its questions are in the training data .*explained\.jsonl, the first at "
        r"held_out\.jsonl line 3 and explained\.jsonl line 2",
    ):
        evaluate.run(config(str(student), tmp_path / "e", **asked))
    assert engine.asked == []
    evaluate.run(config(str(student), tmp_path / "e", limit=2, **asked))  # the two that it has not seen
    evaluate.run(config(str(student), tmp_path / "all", allow_overlap=True, **asked))


def test_an_overlap_with_a_public_benchmark_is_told_and_does_not_end_the_evaluation(
    taught: tuple[Path, Path], with_engine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_engine(Coin(1.0))
    evaluate.run(config(str(taught[0]), tmp_path / "e", limit=4))
    assert "evaluate: 2 of 4 questions of arithmetic are in the training data" in capsys.readouterr().out


@pytest.mark.parametrize(("unreadable", "warned"), [(1.0, True), (0.9, False)])
def test_a_format_in_which_nothing_can_be_read_is_questioned(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], unreadable: float, warned: bool
) -> None:
    evaluate._warn_unreadable(config(model, tmp_path / "e"), "arithmetic", unreadable)
    assert ("no answer can be read in 100% of the responses" in capsys.readouterr().out) is warned


def test_rows_of_one_file_are_graded_each_by_its_own_task(model: str, with_engine: Any, tmp_path: Path) -> None:
    class Same(Coin):
        def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
            for request in requests:
                yield Completion(request.key, "<think> so </think> <answer>\\boxed{B}</answer>", "stop", 20, 6)

    rows = [
        {"question": "q1", "answer": "B", "task": "multiple_choice"}, {"question": "q2", "answer": "5", "task": "arithmetic"},
        {"question": "q3", "answer": "B"},
    ]  # fmt: skip
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with_engine(Same(1.0))
    files = {"benchmark": str(tmp_path / "mixed.jsonl"), "temperature": 0}
    numbers = evaluate.run(config(model, tmp_path / "e", **files)).metrics["benchmarks"]["mixed"]
    assert numbers["task"] == "arithmetic + math + multiple_choice"
    by_task = {task: its["pass@1"] for task, its in numbers["by_task"].items()}
    assert by_task == {"arithmetic": 0.0, "math": 1.0, "multiple_choice": 1.0}
    assert numbers["pass@1"] == pytest.approx(2 / 3)
    # A task that is given grades all rows.
    given = evaluate.run(config(model, tmp_path / "f", task="multiple_choice", limit=1, **files)).metrics["benchmarks"][
        "mixed"
    ]
    assert (given["task"], "by_task" in given) == ("multiple_choice", False)


def test_parts_of_a_point_are_a_column_and_a_mean(model: str, with_engine: Any, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")

    class Half(Coin):
        def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
            for request in requests:
                text = "Ann is a knight, and Bob is a knight."
                yield Completion(request.key, f"<think> so </think> <answer>{text}</answer>", "stop", 20, 6)

    answer = json.dumps({"answer": "Ann is a knight, and Bob is a knave.", "metadata": {}})
    row = {"question": "q", "answer": answer, "task": "reasoning_gym/knights_knaves"}
    (tmp_path / "logic.jsonl").write_text(json.dumps(row) + "\n")
    with_engine(Half(1.0))
    files = {"benchmark": str(tmp_path / "logic.jsonl"), "temperature": 0}
    numbers = evaluate.run(config(model, tmp_path / "e", **files)).metrics["benchmarks"]["logic"]
    (written,) = (row for _, row in read_rows(tmp_path / "e" / "responses.jsonl"))
    assert (written["correct"], numbers["pass@1"]) == (False, 0.0)
    assert written["score"] == numbers["mean_score"] == pytest.approx(0.3 + 0.7 * 0.5)
