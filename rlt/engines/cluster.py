"""Spread work over a Ray cluster: one actor per replica; the share of a dead actor is redone."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar, cast

from rlt.errors import ConfigError, DependencyError, RltError, RunError
from rlt.text.clock import pin_date, pinned_date
from rlt.types import JsonRow

if TYPE_CHECKING:
    from ray import ObjectRefGenerator
    from ray.actor import ActorHandle

Job = TypeVar("Job")
Answer = TypeVar("Answer")
# Jobs queued at an actor while it works on one, so that it never waits for the driver.
QUEUED = 1
# The run fails after more than this many deaths of actors in a row, with no job done in between.
DEATHS = 4


def spread(
    make: Callable[[], Callable[[Job], Answer]],
    jobs: Iterable[Job],
    *,
    address: str,
    workers: int,
    gpus: float = 0.0,
) -> Iterator[tuple[int, Answer]]:
    """`(number, answer)` of each job as it is done, in any order; jobs are drawn as actors become free.

    Each of `workers` actors calls `make()` once, then the function it returns once per job. An actor asks for `gpus` GPUs
    if the cluster has any. A dead actor is replaced, and its unanswered jobs are redone; every job is answered once.
    `address` is a cluster's, or `local`: a cluster on this machine that ends with the work and listens on 127.0.0.1.
    Raises DependencyError without Ray, RunError if actors keep dying without doing a job, and whatever a job raises, once
    the jobs in flight are done.
    """
    ray = import_ray()
    with cluster(ray, address, workers):
        pool = Pool(ray, partial(_one_by_one, make), workers, gpus)
        try:
            answers = pool.run(([(number, job)] for number, job in enumerate(jobs)), 1, QUEUED)
            yield from cast(Iterator[tuple[int, Answer]], answers)
        finally:
            pool.close()


def _one_by_one(make: Callable[[], Callable[[Job], Answer]]) -> _Work:
    work = make()
    return lambda jobs: ((number, work(job)) for number, job in jobs)


def in_order(answers: Iterable[tuple[int, Answer]]) -> Iterator[Answer]:
    """The answers of `spread` in the order of their jobs; early ones are held back."""
    early: dict[int, Answer] = {}
    due = 0
    for number, answer in answers:
        early[number] = answer
        while due in early:
            yield early.pop(due)
            due += 1


# -- actors ------------------------------------------------------------------------------------------------------------

Item = tuple[Hashable, object]  # a key, and a job or its answer
# From an iterator of items, drawn as needed, and further arguments to answers with the same keys, in any order.
_Work = Callable[..., Iterator[Item]]


class _Worker:
    """The code of an actor with two threads: one works in `run`, the other takes new items."""

    def __init__(self, make: Callable[[], _Work], day: str) -> None:
        pin_date(day)  # the cluster may be older than this run, without its environment
        self.make, self.work, self.making = make, None, threading.Lock()
        self.given: queue.SimpleQueue[Item | None] = queue.SimpleQueue()

    def give(self, items: list[Item | None]) -> None:
        """More items; None after the last one."""
        for item in items:
            self.given.put(item)

    def end(self) -> None:
        """Drop the items not yet started."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.given.get_nowait()
        self.given.put(None)

    def about(self) -> object:
        """The work's `about`, once `make` is done, or the error it raised."""
        try:
            return self._made().about  # type: ignore[attr-defined]
        except RltError as error:
            return error

    def run(self, *arguments: object) -> Iterator[Item | RltError]:
        """`(key, answer)` of each item as it is done; an RltError is the last answer."""
        try:
            # Not `yield from`: Ray sends values into its generators, which other iterators cannot take.
            for answer in self._made()(iter(self.given.get, None), *arguments):  # noqa: UP028
                yield answer
        except RltError as error:
            yield error  # raised through Ray, its message would be a traceback

    def _made(self) -> _Work:
        with self.making:  # both threads may ask; the model must be loaded once
            self.work = self.work or self.make()  # type: ignore[assignment]
        return self.work  # type: ignore[return-value]


@dataclass(eq=False)
class _Member:
    """One actor, its stream of answers, and its unanswered items."""

    actor: ActorHandle
    stream: ObjectRefGenerator
    held: dict[Hashable, object] = field(default_factory=dict)
    ended: bool = False


class Pool:
    """Actors that stay loaded across runs, until `close`."""

    def __init__(self, ray: ModuleType, make: Callable[[], _Work], workers: int, gpus: float) -> None:
        self.ray, self.workers, self.deaths = ray, workers, 0
        share, warning = resources(ray.cluster_resources(), workers, gpus)
        if warning:
            print(warning, file=sys.stderr)
        actor_of = ray.remote(num_cpus=1, num_gpus=share, max_restarts=0, max_concurrency=2)(_Worker)
        self._start = lambda: actor_of.remote(make, pinned_date())
        self.actors: list[ActorHandle] = []

    def about(self) -> object:
        """The `about` of the first actor that is ready; raises the error of its `make`."""
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

    def run(self, groups: Iterator[Sequence[Item]], drawn: int, reserve: int, *arguments: object) -> Iterator[Item]:
        """`(key, answer)` of every item. The items of a group go to one actor.

        An actor holds up to `drawn` items, which its work may draw before its first answer, plus a `reserve`, so that it
        does not wait for the driver. After a failed run, the next one starts new actors.
        """
        self._fill()
        members = [self._member(actor, arguments) for actor in self.actors]
        again: list[list[Item]] = []
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
                            f"Ray: a worker skipped {len(member.held)} items. Run the command again."
                        ) from None
                    continue
                except (self.ray.exceptions.RayActorError, self.ray.exceptions.ObjectLostError) as error:
                    if failure is None and (member.held or not member.ended):
                        again += [[item] for item in member.held.items()]
                        members.append(self._member(self._replace(member.actor, error), arguments))
                    continue
                except self.ray.exceptions.RayTaskError as error:
                    answer = error
                members.append(member)  # last, so that `ray.wait` does not starve the others
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

    def _member(self, actor: ActorHandle, arguments: tuple[object, ...]) -> _Member:
        return _Member(actor, actor.run.options(num_returns="streaming").remote(*arguments))

    def _replace(self, actor: ActorHandle, error: Exception) -> ActorHandle:
        """A new actor in place of a dead one."""
        self.deaths += 1
        if self.deaths > DEATHS:
            reason = " ".join(str(error).split())[:300]
            raise RunError(f"Ray: {self.deaths} workers died in a row: {reason}") from error
        self.ray.kill(actor)  # it may be alive: perhaps only its answer was lost with another machine
        other = self._start()
        self.actors[self.actors.index(actor)] = other
        return other


def _deal(
    members: list[_Member],
    groups: Iterator[Sequence[Item]],
    again: list[list[Item]],
    drawn: int,
    reserve: int,
) -> None:
    """Refill the actors that have used half of their reserve, in turns, so that each gets a share of the rest."""
    hungry = [m for m in members if not m.ended and 2 * (len(m.held) - drawn) <= reserve]
    new: dict[_Member, list[Item | None]] = {member: [] for member in hungry}
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
    """GPUs per worker (0 if the cluster has none), and a warning if some workers will have to wait."""
    share = gpus if cluster.get("GPU") else 0.0
    short = [
        f"{workers * wanted:g} {what}s, of {cluster.get(what, 0):g}"
        for what, wanted in (("CPU", 1.0), ("GPU", share))
        if workers * wanted > cluster.get(what, 0)
    ]
    if not short:
        return share, None
    return share, (
        f"Ray: `ray_workers: {workers}` needs {' and '.join(short)} in the cluster; some workers wait until it has more."
    )


# -- an engine on a cluster --------------------------------------------------------------------------------------------


def import_ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise DependencyError("--ray needs Ray: pip install 'rlt[ray]'") from error
    return ray


@contextlib.contextmanager
def _on_loopback(ray: ModuleType) -> Iterator[None]:
    """A context in which a new cluster listens only on 127.0.0.1.

    Ray has no option for that on Linux: `_node_ip_address="127.0.0.1"` is replaced by the outer address. Ray does so on
    desktop systems, where clusters of several machines are disabled.
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
def cluster(ray: ModuleType, address: str, workers: int) -> Iterator[None]:
    """A context with a connection to the cluster; `local` starts one for `workers` actors and ends it afterwards."""
    if address.startswith("ray://"):
        raise ConfigError(
            f"`ray`: {address!r} is an address for Ray's client, which cannot stream. Run the command on a machine of the "
            "cluster with `ray: auto`, or submit it with `ray job submit`."
        )
    if ray.is_initialized():
        yield
        return
    options: JsonRow = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"address": "local", "num_cpus": workers, "include_dashboard": False}
    else:
        options["address"] = address
    try:
        with _on_loopback(ray) if address == "local" else contextlib.nullcontext():
            ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"`ray`: no cluster at {address!r} ({reason}). Use `ray: local` to start one here."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
