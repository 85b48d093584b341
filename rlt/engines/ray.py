"""An engine whose replicas are actors on a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import cast

from rlt.config import EngineOptions
from rlt.engines.base import Completion, Engine, Request, Sampling
from rlt.engines.cluster import Pool, cluster, import_ray
from rlt.errors import ConfigError


class RayEngine:
    """`options.ray_workers` replicas of an engine, as actors on a Ray cluster that stay loaded until `close`.

    Completions are returned as they finish. Requests with the same prompt go to the same replica. Each request carries
    its seed, so a repeatable engine gives the same completions as on one machine. `max_in_flight` is divided among the
    replicas. Each worker reads a server's key from its own environment, so Ray's messages never contain it.
    """

    def __init__(
        self,
        options: EngineOptions,
        model: str,
        build: Callable[..., Engine],
        *,
        dtype: str = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        ray = import_ray()  # first, so that a missing package is reported before anything is loaded
        parallel = options.engine_options.get("tensor_parallel_size", 1)
        gpus = 0.0 if options.engine == "openai" else float(parallel)
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            stack.enter_context(cluster(ray, options.ray or "local", options.ray_workers))
            make = partial(_Replica, build, of_replica(options), model, dtype, trust_remote_code)
            self._pool = Pool(ray, make, options.ray_workers, gpus)
            stack.callback(self._pool.close)
            name, self.context_length, self.window = cast(tuple[str, int | None, int], self._pool.about())
            self._stack = stack.pop_all()
        self.name = f"{name} on Ray"

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `rlt.engines.base.Engine`."""
        groups = ([(request.key, request) for request in group] for group in by_problem(requests))
        for _, completion in self._pool.run(groups, self.window, max(1, self.window // 4), sampling):
            yield cast(Completion, completion)

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        self._stack.close()


def of_replica(options: EngineOptions) -> EngineOptions:
    """The options of one replica: no cluster, and its share of the requests in flight."""
    values = {key: getattr(options, key) for key in EngineOptions.model_fields}
    shared = max(1, options.max_in_flight // options.ray_workers)
    return EngineOptions.model_validate({**values, "ray": None, "max_in_flight": shared})


class _Replica:
    """An engine in an actor."""

    def __init__(
        self, build: Callable[..., Engine], options: EngineOptions, model: str, dtype: str, trust_remote_code: bool
    ) -> None:
        variable = options.api_key_env
        if variable is not None and not os.environ.get(variable):
            raise ConfigError(
                f"`api_key_env`: {variable} is not set for the Ray worker on {socket.gethostname()}. Workers read the key from "
                "their own environment: set it before `ray start` on each machine."
            )
        self.engine = build(options, model, dtype=dtype, trust_remote_code=trust_remote_code)
        self.about = self.engine.name, self.engine.context_length, self.engine.window

    def __call__(self, items: Iterator[tuple[str, Request]], sampling: Sampling) -> Iterator[tuple[str, Completion]]:
        requests = (request for _, request in items)
        return ((completion.key, completion) for completion in self.engine.generate(requests, sampling))


def by_problem(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Consecutive requests with the same prompt, grouped."""
    return (list(group) for _, group in groupby(requests, key=lambda request: request.prompt))
