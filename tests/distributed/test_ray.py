"""A real local Ray cluster of two workers, one of which is killed in the middle: the same results as without Ray."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import psutil
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'rlt[ray]'")

from byte_models import byte_tokenizer, save, tiny_model  # noqa: E402

from rlt.config import CollectConfig, EngineOptions, EvaluateConfig, ScoreConfig  # noqa: E402
from rlt.data.rows import read_rows, write_rows  # noqa: E402
from rlt.engines import cluster as on_cluster  # noqa: E402
from rlt.engines.base import Request, Sampling  # noqa: E402
from rlt.engines.build import build_engine  # noqa: E402
from rlt.engines.cluster import Pool, cluster, import_ray, spread  # noqa: E402
from rlt.errors import RunError, ScoringError  # noqa: E402
from rlt.stages import collect, evaluate, score  # noqa: E402

pytestmark = pytest.mark.slow


# Workers cannot import this file: its functions travel as they are.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module", autouse=True)
def local_cluster():
    """The cluster that `ray: local` starts, once for all tests here."""
    with cluster(import_ray(), "local", 2):
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

    with pytest.raises(RunError, match="workers died in a row"):
        list(spread(make, range(4), address="local", workers=1))


def test_what_a_job_raises_comes_back_as_it_is():
    def make():
        def work(job: int) -> int:
            raise ScoringError("no token left")

        return work

    with pytest.raises(ScoringError, match=r"^no token left$"):
        list(spread(make, [1], address="local", workers=1))


def test_a_defect_in_a_job_comes_back_with_its_traceback():
    with pytest.raises(ZeroDivisionError, match="in <lambda>"):
        list(spread(lambda: lambda job: 1 // job, [0], address="local", workers=1))


def telling_worker(mark: str):
    """The worker of an actor, which writes `mark` once it has taken back what was given to it and not begun."""

    class Telling(on_cluster._Worker):
        def end(self) -> None:
            super().end()
            Path(mark).write_text("")

    return Telling


def test_what_is_under_way_comes_before_an_error_and_what_waits_is_not_begun(tmp_path, monkeypatch):
    begun, ended = str(tmp_path / "begun"), str(tmp_path / "ended")
    monkeypatch.setattr(on_cluster, "_Worker", telling_worker(ended))

    def make():
        def work(job: int) -> int:
            if job == 0:
                wait_for(begun)
                raise ScoringError("no token left")
            Path(begun).write_text("")
            wait_for(ended)
            return job

        return work

    answers = []
    with pytest.raises(ScoringError, match=r"^no token left$"):
        answers.extend(spread(make, range(20), address="local", workers=2))
    assert len(answers) == 1  # of the other worker, which had a second job waiting


def wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.01)


@pytest.fixture
def pool():
    made: list[Pool] = []

    def start(make):
        made.append(Pool(import_ray(), make, 2, 0.0))
        return made[-1]

    yield start
    for one in made:
        one.close()


def make_late():
    """Work that answers item 0 after all others of its actor, and says which process did it."""

    def work(items):
        late = []
        for key, item in items:
            if item == 0:
                late.append((key, os.getpid()))
            else:
                yield key, os.getpid()
        yield from late

    return work


def items(count: int):
    return ([(number, number)] for number in range(count))


def test_answers_come_as_they_are_done_and_a_late_one_keeps_nothing_waiting(pool):
    order = [key for key, _ in pool(make_late).run(items(40), 2, 2)]
    assert sorted(order) == list(range(40))
    assert order.index(0) > 20


def test_little_work_is_shared_out_evenly(pool):
    done = [pid for _, pid in pool(make_late).run(items(40), 1000, 10)]
    assert sorted(Counter(done).values()) == [20, 20]


def test_actors_keep_what_they_loaded(pool):
    engine = pool(make_late)
    first, second = ({pid for _, pid in engine.run(items(40), 2, 2)} for _ in range(2))
    assert first == second
    assert len(first) == 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = byte_tokenizer()
    return save(tmp_path_factory.mktemp("model"), tiny_model(tokenizer, 0), tokenizer)


def test_collecting_with_a_killed_worker_gives_the_files_of_one_process(model, tmp_path, monkeypatch):
    data = tmp_path / "problems.jsonl"
    write_rows(data, ({"question": f"What is {i}?", "solution": f"{i}."} for i in range(24)))
    common = {"model": model, "data": str(data), "samples": 2, "max_tokens": 24, "batch_size": 4, "temperature": 1.0}
    collect.run(CollectConfig(output=tmp_path / "alone", **common))

    from rlt.engines import ray as on_ray

    monkeypatch.setattr(on_ray, "_Replica", dying_engine(on_ray._Replica, str(tmp_path / "died")))
    collect.run(CollectConfig(output=tmp_path / "ray", ray="local", ray_workers=2, **common))
    assert (tmp_path / "died").exists()
    alone, spread_out = ([row for _, row in read_rows(tmp_path / name)] for name in ("alone", "ray"))
    assert {row.pop("engine") for row in spread_out} == {f"{alone[0]['engine']} on Ray"}
    for ours, theirs in zip(alone, spread_out, strict=True):
        del ours["engine"]
        assert theirs.pop("logprob_sum") == pytest.approx(ours.pop("logprob_sum"), abs=1e-3)
        assert theirs == ours


def dying_engine(replica, mark: str):
    """`replica`, but the first whose third completion is about to be handed on is killed there."""

    class Dying:
        def __init__(self, *arguments):
            self.engine = replica(*arguments)
            self.about = self.engine.about

        def __call__(self, requests, sampling):
            for number, answer in enumerate(self.engine(requests, sampling)):
                if number == 2 and not Path(mark).exists():
                    Path(mark).write_text("")
                    os.kill(os.getpid(), signal.SIGKILL)
                yield answer

    return Dying


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
    expected = {c.key: (c.token_ids, c.seed) for c in alone.generate(requests, sampling)}
    with closing(engine):
        for _ in range(2):  # the second time by the same actors
            assert {c.key: (c.token_ids, c.seed) for c in engine.generate(requests, sampling)} == expected
    assert engine.context_length == 2048


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

    from rlt.engines import ray as on_ray

    monkeypatch.setattr(on_ray, "_Replica", dying_engine(on_ray._Replica, str(tmp_path / "died")))
    evaluate.run(EvaluateConfig(output=tmp_path / "ray", ray="local", ray_workers=2, **common))
    assert (tmp_path / "died").exists()
    alone, spread_out = (
        {(row["question"], row["sample"]): row["response"] for _, row in read_rows(tmp_path / name / "responses.jsonl")}
        for name in ("alone", "ray")
    )
    assert len(alone) == 48
    assert spread_out == alone
