"""A real local Ray cluster of two workers, one of which is killed in the middle: the same results as without Ray."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'rlt[ray]'")

from byte_models import byte_tokenizer, save, tiny_model  # noqa: E402

from rlt.config import CollectConfig, EngineOptions, EvaluateConfig, ScoreConfig  # noqa: E402
from rlt.errors import RunError, ScoringError  # noqa: E402
from rlt.fanout import _cluster, _ray, by_problem, spread  # noqa: E402
from rlt.generation import Request, Sampling, build_engine  # noqa: E402
from rlt.rows import read_rows, write_rows  # noqa: E402
from rlt.stages import collect, evaluate, score  # noqa: E402

pytestmark = pytest.mark.slow


# Workers cannot import this file: its functions travel as they are.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """The cluster that `ray: local` starts, once for all tests here."""
    with _cluster(_ray(), "local", 2):
        yield


def test_a_local_cluster_listens_on_loopback_only():
    running = spread(lambda: lambda job: job, range(50), address="local", workers=2)
    next(running)
    listening = {ip.removeprefix("::ffff:") for process in psutil.Process().children(True) for ip in addresses(process)}
    running.close()
    assert listening == {"127.0.0.1"}


def addresses(process: psutil.Process) -> list[str]:
    try:
        return [c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
    except psutil.NoSuchProcess:
        return []


def make_doubler(folder: str):
    """A worker that dies, once, when it is given a 7."""

    def double(job: int) -> int:
        mark = Path(folder) / "died"
        if job == 7 and not mark.exists():
            mark.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * job

    return double


def test_a_killed_workers_jobs_are_done_again_and_none_twice(tmp_path):
    answers = list(spread(lambda: make_doubler(str(tmp_path)), range(20), address="local", workers=2))
    assert (tmp_path / "died").exists()
    assert sorted(answers) == [(i, 2 * i) for i in range(20)]


def test_workers_that_only_die_end_the_run():
    def make():
        return lambda job: os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RunError, match="workers died one after another"):
        list(spread(make, range(4), address="local", workers=1))


def test_what_a_job_raises_comes_back_as_it_is():
    def make():
        def work(job: int) -> int:
            raise ScoringError("no token left")

        return work

    with pytest.raises(ScoringError, match=r"^no token left$"):
        list(spread(make, [1], address="local", workers=1))


def test_requests_of_one_prompt_stay_together():
    requests = [Request(f"{p}/{s}", p, s) for p in "abcd" for s in range(3)]
    assert [[r.key for r in job] for job in by_problem(requests, 4)] == [
        ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2"], ["c/0", "c/1", "c/2", "d/0", "d/1", "d/2"],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = byte_tokenizer()
    return save(tmp_path_factory.mktemp("model"), tiny_model(tokenizer, 0), tokenizer)


def test_collecting_with_a_killed_worker_gives_the_files_of_one_process(model, tmp_path, monkeypatch):
    data = tmp_path / "problems.jsonl"
    write_rows(data, ({"question": f"What is {i}?", "solution": f"{i}."} for i in range(24)))
    common = {"model": model, "data": str(data), "samples": 2, "max_tokens": 24, "batch_size": 4, "temperature": 1.0}
    collect.run(CollectConfig(output=tmp_path / "alone", **common))

    from rlt import fanout

    monkeypatch.setattr(fanout, "_replica", dying_replica(fanout._replica, str(tmp_path / "died")))
    collect.run(CollectConfig(output=tmp_path / "ray", ray="local", ray_workers=2, **common))
    assert (tmp_path / "died").exists()
    alone, spread_out = ([row for _, row in read_rows(tmp_path / name)] for name in ("alone", "ray"))
    assert [row.pop("engine") for row in spread_out] == ["transformers on Ray"] * 48
    for ours, theirs in zip(alone, spread_out, strict=True):
        del ours["engine"]
        assert theirs.pop("logprob_sum") == pytest.approx(ours.pop("logprob_sum"), abs=1e-3)
        assert theirs == ours


def dying_replica(replica, mark: str):
    """`replica`, but the first that reaches its third job is killed there."""

    def make(*arguments):
        engine, jobs = replica(*arguments), []

        def work(job):
            jobs.append(job)
            if len(jobs) == 3 and not Path(mark).exists():
                Path(mark).write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
            return engine(job)

        return work

    return make


def test_a_ray_engine_is_built_by_the_option(model):
    engine = build_engine(EngineOptions(ray="local", ray_workers=2, batch_size=2), model)
    alone = build_engine(EngineOptions(batch_size=2), model)
    requests = [Request(str(i), f"What is {i}?", i) for i in range(6)]
    sampling = Sampling(8, temperature=1.0)
    assert {c.key: c.token_ids for c in engine.generate(requests, sampling)} == {
        c.key: c.token_ids for c in alone.generate(requests, sampling)
    }


def test_scoring_with_a_killed_worker_gives_the_rows_of_one_process(model, tmp_path, monkeypatch):
    data = tmp_path / "explained.jsonl"
    write_rows(
        data, ({"question": f"{i}?", "solution": f"It is {i}.", "explanation": "So. " * (i % 7)} for i in range(40))
    )
    monkeypatch.setattr(score, "WINDOW", 5)
    common = {"student": [model], "teacher": model, "data": data, "placebos": True}
    score.run(ScoreConfig(output=tmp_path / "alone.jsonl", **common))
    monkeypatch.setattr(score, "_replica", dying_replica(score._replica, str(tmp_path / "died")))
    score.run(ScoreConfig(output=tmp_path / "ray.jsonl", ray="local", ray_workers=2, **common))
    assert (tmp_path / "died").exists()
    alone, spread_out = ([row for _, row in read_rows(tmp_path / f"{name}.jsonl")] for name in ("alone", "ray"))
    assert len(spread_out) == 40
    for ours, theirs in zip(alone, spread_out, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)


def test_evaluating_with_a_killed_worker_gives_the_responses_of_one_process(model, tmp_path, monkeypatch):
    data = tmp_path / "held_out.jsonl"
    write_rows(data, ({"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(24)))
    common = {
        "model": model, "benchmark": [str(data)], "task": "math", "samples": 2, "temperature": 1.0, "max_tokens": 16,
        "batch_size": 4,
    }  # fmt: skip
    evaluate.run(EvaluateConfig(output=tmp_path / "alone", **common))

    from rlt import fanout

    monkeypatch.setattr(fanout, "_replica", dying_replica(fanout._replica, str(tmp_path / "died")))
    evaluate.run(EvaluateConfig(output=tmp_path / "ray", ray="local", ray_workers=2, **common))
    assert (tmp_path / "died").exists()
    alone, spread_out = (
        {(row["question"], row["sample"]): row["response"] for _, row in read_rows(tmp_path / name / "responses.jsonl")}
        for name in ("alone", "ray")
    )
    assert len(alone) == 48
    assert spread_out == alone
