"""Work spread over a Ray cluster: one actor a replica, each with a bounded part of the work, a dead one's part done again."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from rlt.errors import ConfigError, DependencyError, RltError, RunError

Job = TypeVar("Job")
Answer = TypeVar("Answer")
# Jobs that wait at an actor while it works on one, so that it never waits for the driver.
QUEUED = 1
# Actors that may die one after another without anything done in between before the run gives up.
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

    Each of `workers` actors calls `make()` once and the function it returns for each job; it asks for `gpus` where the
    cluster has any. When an actor dies (its process, or its machine) another takes its place and its jobs are done
    again; a job is answered once. `address` is a cluster's, or `local` for one of this machine that ends with the work
    and listens on 127.0.0.1. Raises DependencyError without Ray, RunError when actors die without doing any job, and,
    after what is under way, what a job raises.
    """
    ray = import_ray()
    with cluster(ray, address, workers):
        pool = Pool(ray, partial(_one_by_one, make), workers, gpus)
        try:
            yield from pool.run(([(number, job)] for number, job in enumerate(jobs)), 1, QUEUED)
        finally:
            pool.close()


def _one_by_one(make: Callable[[], Callable[[Job], Answer]]) -> _Work:
    work = make()
    return lambda jobs: ((number, work(job)) for number, job in jobs)


def in_order(answers: Iterable[tuple[int, Answer]]) -> Iterator[Answer]:
    """The answers of `spread` in the order of their jobs; those that come early wait."""
    early: dict[int, Answer] = {}
    due = 0
    for number, answer in answers:
        early[number] = answer
        while due in early:
            yield early.pop(due)
            due += 1


# -- actors ------------------------------------------------------------------------------------------------------------

# From items with their keys, drawn as they come, to answers with those keys, in any order; and further arguments.
_Work = Callable[..., Iterator[tuple[Any, Any]]]


class _Worker:
    """What lives in an actor of two threads: one works in `run`, the other takes what it is given meanwhile."""

    def __init__(self, make: Callable[[], _Work]) -> None:
        self.make, self.work, self.making = make, None, threading.Lock()
        self.given: queue.SimpleQueue[tuple[Any, Any] | None] = queue.SimpleQueue()

    def give(self, items: list[tuple[Any, Any] | None]) -> None:
        """More items; None after the last one."""
        for item in items:
            self.given.put(item)

    def end(self) -> None:
        """Take back what was given and not begun."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.given.get_nowait()
        self.given.put(None)

    def about(self) -> Any:
        """What the work says of itself, once it is made."""
        try:
            return self._made().about  # type: ignore[attr-defined]
        except RltError as error:
            return error

    def run(self, *arguments: Any) -> Iterator[Any]:
        """`(key, answer)` of each item as it is done; an RltError ends it, as the last answer."""
        try:
            # Not `yield from`: Ray sends values into its generators, which other iterators cannot take.
            for answer in self._made()(iter(self.given.get, None), *arguments):  # noqa: UP028
                yield answer
        except RltError as error:
            yield error  # raised by Ray it would come back with a traceback for a message

    def _made(self) -> _Work:
        with self.making:  # both threads may ask, and a model must not be loaded twice
            self.work = self.work or self.make()  # type: ignore[assignment]
        return self.work  # type: ignore[return-value]


@dataclass(eq=False)
class _Member:
    """One actor, its stream of answers, and the items that it has and has not answered."""

    actor: Any
    stream: Any
    held: dict[Any, Any] = field(default_factory=dict)
    ended: bool = False


class Pool:
    """Actors that keep what they loaded from one `run` to the next, until `close`."""

    def __init__(self, ray: Any, make: Callable[[], _Work], workers: int, gpus: float) -> None:
        self.ray, self.workers, self.deaths = ray, workers, 0
        share, warning = resources(ray.cluster_resources(), workers, gpus)
        if warning:
            print(warning, file=sys.stderr)
        actor_of = ray.remote(num_cpus=1, num_gpus=share, max_restarts=0, max_concurrency=2)(_Worker)
        self._start = lambda: actor_of.remote(make)
        self.actors: list[Any] = []

    def about(self) -> Any:
        """What the first actor that is ready says of its work; raises what kept it from being made."""
        self._fill()
        asked = {actor.about.remote(): actor for actor in self.actors}
        while True:
            (reference, *_), _ = self.ray.wait(list(asked))
            actor = asked.pop(reference)
            try:
                answer = self.ray.get(reference)
            except self.ray.exceptions.RayActorError as error:
                other = self._replace(actor, error)
                asked[other.about.remote()] = other
                continue
            if isinstance(answer, RltError):
                raise answer
            return answer

    def run(
        self, groups: Iterator[list[tuple[Any, Any]]], drawn: int, reserve: int, *arguments: Any
    ) -> Iterator[tuple[Any, Any]]:
        """`(key, answer)` of every item. Items of a group go to one actor.

        An actor has up to `drawn` items, which its work may draw before the first answer, and a `reserve`, so that it
        does not wait for the driver. After a run that did not go through, the next one begins with new actors.
        """
        self._fill()
        members = [self._member(actor, arguments) for actor in self.actors]
        again: list[list[tuple[Any, Any]]] = []
        failure: Exception | None = None
        try:
            while members:
                if failure is None:
                    _deal(members, groups, again, drawn, reserve)
                (stream, *_), _ = self.ray.wait([member.stream for member in members])
                member = next(member for member in members if member.stream is stream)
                members.remove(member)
                try:
                    answer = self.ray.get(next(stream))
                except StopIteration:
                    if member.held and failure is None:
                        raise RunError(
                            f"Ray: a worker left {len(member.held)} items out; run the command again."
                        ) from None
                    continue
                except (self.ray.exceptions.RayActorError, self.ray.exceptions.ObjectLostError) as error:
                    if failure is None and (member.held or not member.ended):
                        again += [[item] for item in member.held.items()]
                        members.append(self._member(self._replace(member.actor, error), arguments))
                    continue
                except self.ray.exceptions.RayTaskError as error:
                    answer = error
                members.append(member)  # behind the others, which `ray.wait` would otherwise keep waiting
                if isinstance(answer, Exception):
                    failure = failure or answer
                    for other in members:
                        other.actor.end.remote()
                    continue
                self.deaths = 0
                key, value = answer
                del member.held[key]
                yield key, value
            if failure is not None:
                raise failure
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors = []

    def _fill(self) -> None:
        self.actors += [self._start() for _ in range(self.workers - len(self.actors))]

    def _member(self, actor: Any, arguments: tuple[Any, ...]) -> _Member:
        return _Member(actor, actor.run.options(num_returns="streaming").remote(*arguments))

    def _replace(self, actor: Any, error: Exception) -> Any:
        """Another actor in the place of a dead one."""
        self.deaths += 1
        if self.deaths > DEATHS:
            reason = " ".join(str(error).split())[:300]
            raise RunError(f"Ray: {self.deaths} workers died one after another: {reason}") from error
        self.ray.kill(actor)  # where only an answer was lost with another machine
        other = self._start()
        self.actors[self.actors.index(actor)] = other
        return other


def _deal(
    members: list[_Member],
    groups: Iterator[list[tuple[Any, Any]]],
    again: list[list[tuple[Any, Any]]],
    drawn: int,
    reserve: int,
) -> None:
    """Fill up, in turns so that each gets its part of what is left, the actors that have used half of their reserve."""
    hungry = [m for m in members if not m.ended and 2 * (len(m.held) - drawn) <= reserve]
    new: dict[_Member, list[tuple[Any, Any] | None]] = {member: [] for member in hungry}
    while hungry:
        for member in hungry:
            group = again.pop() if again else next(groups, None)
            if group is None:
                member.ended = True
                new[member].append(None)
            else:
                member.held.update(group)
                new[member] += group
        hungry = [m for m in hungry if not m.ended and len(m.held) < drawn + reserve]
    for member, items in new.items():
        member.actor.give.remote(items)


def resources(cluster: Mapping[str, float], workers: int, gpus: float) -> tuple[float, str | None]:
    """GPUs that each worker asks for (none where the cluster has none), and a warning where some will have to wait."""
    share = gpus if cluster.get("GPU") else 0.0
    short = [
        f"{workers * wanted:g} {what}s of {cluster.get(what, 0):g}"
        for what, wanted in (("CPU", 1.0), ("GPU", share))
        if workers * wanted > cluster.get(what, 0)
    ]
    if not short:
        return share, None
    return share, (
        f"Ray: `ray_workers` {workers} ask for {' and '.join(short)} that the cluster has; some wait until it has more."
    )


# -- an engine on a cluster --------------------------------------------------------------------------------------------


def import_ray() -> Any:
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
def cluster(ray: Any, address: str, workers: int) -> Iterator[None]:
    """A connection to the cluster; `local` starts one with room for the workers, and ends it."""
    if address.startswith("ray://"):
        raise ConfigError(
            f"`ray`: {address!r} is for Ray's client, which cannot stream. Run the command on a machine of the cluster with "
            "`ray: auto`, or hand it in with `ray job submit`."
        )
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
