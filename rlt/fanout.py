"""Work spread over a Ray cluster: one actor a replica, jobs of whole problems, a dead actor's jobs done again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

from rlt.config import EngineOptions
from rlt.errors import ConfigError, DependencyError, RltError, RunError
from rlt.generation import Completion, Engine, Request, Sampling, build_engine
from rlt.models import context_length, load_config

Job = TypeVar("Job")
Answer = TypeVar("Answer")
# Jobs that wait at an actor while it works on one, so that it never waits for the driver.
QUEUED = 1
# Actors that may die one after another without a job done in between before the run gives up.
DEATHS = 4


def spread(
    make: Callable[[], Callable[[Job], Answer]],
    jobs: Iterable[Job],
    *,
    address: str,
    workers: int,
    gpus: float = 0.0,
) -> Iterator[tuple[int, Answer]]:
    """`(number, answer)` of each job, as they are done, in any order; jobs are drawn as actors become free.

    Each of `workers` actors calls `make()` once and the function it returns for each job. When an actor dies (its
    process, or its machine) another takes its place and its jobs are done again; a job is answered once. `address` is a
    cluster's, or `local` for one of this machine that ends with the work and listens on 127.0.0.1. Raises
    DependencyError without Ray, RunError when actors die without doing any job, and what a job raises.
    """
    ray = _ray()
    with _cluster(ray, address, workers):
        actor_of = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(_Worker)
        pool = _Pool(ray, lambda: actor_of.remote(make), workers)
        try:
            yield from pool.run(enumerate(jobs))
        finally:
            pool.close()


def in_order(answers: Iterable[tuple[int, Answer]]) -> Iterator[Answer]:
    """The answers of `spread` in the order of their jobs; those that come early wait."""
    early: dict[int, Answer] = {}
    due = 0
    for number, answer in answers:
        early[number] = answer
        while due in early:
            yield early.pop(due)
            due += 1


class _Worker:
    """What lives in an actor."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self.make = make
        self.work: Callable[[Any], Any] | None = None

    def do(self, job: Any) -> Any:
        try:
            self.work = self.work or self.make()
            return self.work(job)
        except RltError as error:
            return error  # raised by Ray it would come back with a traceback for a message


class _Pool:
    """Actors and the jobs that each has; `deaths` in a row are counted."""

    def __init__(self, ray: Any, start: Callable[[], Any], workers: int) -> None:
        self.ray, self.start = ray, start
        self.actors = [start() for _ in range(workers)]
        self.under_way: dict[Any, tuple[Any, tuple[int, Any]]] = {}  # reference -> actor, job
        self.deaths = 0

    def run(self, jobs: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        again: list[tuple[int, Any]] = []
        while True:
            for actor in self.actors:
                while sum(a is actor for a, _ in self.under_way.values()) <= QUEUED:
                    job = again.pop() if again else next(jobs, None)
                    if job is None:
                        break
                    self.under_way[actor.do.remote(job[1])] = (actor, job)
            if not self.under_way:
                return
            (reference, *_), _ = self.ray.wait(list(self.under_way))
            actor, job = self.under_way.pop(reference)
            try:
                answer = self.ray.get(reference)
            except self.ray.exceptions.RayActorError as error:
                again += [job, *self._replace(actor, error)]
                continue
            self.deaths = 0
            if isinstance(answer, RltError):
                raise answer
            yield job[0], answer

    def _replace(self, actor: Any, error: Exception) -> list[tuple[int, Any]]:
        """The other jobs of a dead actor, once another has taken its place."""
        if actor not in self.actors:
            return []
        self.deaths += 1
        if self.deaths > DEATHS:
            reason = " ".join(str(error).split())[:300]
            raise RunError(f"Ray: {self.deaths} workers died one after another: {reason}") from error
        self.actors[self.actors.index(actor)] = self.start()
        lost = [reference for reference, (owner, _) in self.under_way.items() if owner is actor]
        return [self.under_way.pop(reference)[1] for reference in lost]

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)


class RayEngine:
    """An engine whose replicas are actors on a Ray cluster, `options.ray_workers` of them.

    Requests are shared out by problem: those with one prompt go to one replica. Their seeds travel along, so that the
    completions are those of one engine on one machine wherever that engine is repeatable.
    """

    def __init__(
        self, options: EngineOptions, model: str, *, dtype: str = "auto", trust_remote_code: bool = False
    ) -> None:
        _ray()  # what is missing is told before anything is loaded
        self.options = options
        alone = EngineOptions.model_validate(
            {**{key: getattr(options, key) for key in EngineOptions.model_fields}, "ray": None}
        )
        self._make = partial(_replica, alone, model, dtype, trust_remote_code)
        self.context_length = context_length(load_config(model, trust_remote_code))
        self.name = f"{options.engine} on Ray"
        self.seeded = options.engine == "transformers" or options.send_seeds is not False

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `rlt.generation.Engine`; completions come a job at a time."""
        options = self.options
        size = options.batch_size if options.engine == "transformers" else 4 * options.max_in_flight
        gpus = (
            0.0
            if options.engine == "openai"
            else gpus_of_replica(options.engine_options.get("tensor_parallel_size", 1))
        )
        jobs = ((job, sampling) for job in by_problem(requests, size))
        for _, completions in spread(
            self._make, jobs, address=options.ray or "local", workers=options.ray_workers, gpus=gpus
        ):
            yield from completions

    def close(self) -> None:
        """Nothing: actors end with `generate`."""


def by_problem(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    """Jobs of at least `size` requests (the last: what is left); neighbours with the same prompt stay together."""
    job: list[Request] = []
    for _, group in groupby(requests, key=lambda request: request.prompt):
        job += group
        if len(job) >= size:
            yield job
            job = []
    if job:
        yield job


def _replica(
    options: EngineOptions, model: str, dtype: str, trust_remote_code: bool
) -> Callable[[tuple[list[Request], Sampling]], list[Completion]]:
    engine: Engine = build_engine(options, model, dtype=dtype, trust_remote_code=trust_remote_code)
    return lambda job: list(engine.generate(*job))


def gpus_of_replica(count: int = 1) -> float:
    """GPUs that an actor asks for, `count` of them; none where this machine has none."""
    import torch

    return float(count) if torch.cuda.is_available() else 0.0


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise DependencyError("--ray needs Ray: pip install 'rlt[ray]'") from error
    return ray


@contextlib.contextmanager
def _on_loopback(ray: Any) -> Iterator[None]:
    """While open, a cluster that is started takes 127.0.0.1 as its address, and therefore listens on nothing else.

    Ray has no option for that on Linux (`_node_ip_address="127.0.0.1"` is replaced by the outer address); this is what
    it does on a desktop, where a cluster of several machines is off.
    """
    constants = ray._private.ray_constants
    name, before = constants.ENABLE_RAY_CLUSTERS_ENV_VAR, constants.ENABLE_RAY_CLUSTER
    known = os.environ.get(name)
    os.environ[name], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(name) if known is None else os.environ.__setitem__(name, known)


@contextlib.contextmanager
def _cluster(ray: Any, address: str, workers: int) -> Iterator[None]:
    """A connection to the cluster; `local` starts one with room for the workers, and ends it."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"address": "local", "num_cpus": workers, "include_dashboard": False}
    else:
        options["address"] = address
    try:
        with _on_loopback(ray) if address == "local" else contextlib.nullcontext():
            ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"`ray`: no cluster at {address!r} ({reason}). `ray: local` starts one here.") from error
    try:
        yield
    finally:
        ray.shutdown()
