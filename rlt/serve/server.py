"""Running the service: loading models, binding a port, one process per replica."""

from __future__ import annotations

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
from importlib import metadata
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rlt import __version__
from rlt.config import ServeConfig
from rlt.errors import ConfigError, DependencyError
from rlt.provenance import date_of, format_for
from rlt.text.clock import VARIABLE, pin_date, pinned_date
from rlt.text.formats import load_format, prints_date
from rlt.types import JsonRow

if TYPE_CHECKING:
    from torch import nn

    from rlt.serve.application import Metrics, Service

VERSIONED = ("torch", "transformers")
# Values per weight in a student's hash: training changes nearly all of them.
SAMPLED_VALUES = 4096
RESTARTS = 3  # of each replica, before the service stops


def serve(config: ServeConfig) -> int:
    """The exit status, after serving until SIGTERM or SIGINT, which let requests in flight finish.

    Before any weights are read, raises DependencyError without the extra `serve`, ConfigError for a port in use or a token
    that is not set, and errors of loading the tokenizers.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise DependencyError("rlt serve needs its extra: pip install 'rlt[serve]'") from error
    token(config)
    config = dated(config)
    check_models(config)
    listener = listen(config)
    host, port = listener.getsockname()[:2]
    replicas = f", {config.replicas} replicas" if config.replicas > 1 else ""
    print(
        f"serve: http://{host}:{port} is loading {', '.join(config.student)}{replicas}; `/health` says when it is ready",
        flush=True,
    )
    if config.replicas == 1:
        run_replica(config, listener, 0)
        return 0
    return _watch(config, listener)


def token(config: ServeConfig) -> str | None:
    """The bearer token that clients must send, or None; raises ConfigError if its variable is not set."""
    if config.token_env is None:
        return None
    value = os.environ.get(config.token_env)
    if not value:
        raise ConfigError(
            "serve: the environment variable named by `token_env` is not set. Set it, or omit `token_env`."
        )
    return value


def dated(config: ServeConfig) -> ServeConfig:
    """The configuration with the date that chat templates print, which is pinned for this process and its children.

    The first of: `date`, the environment's, that of the first model made by a stage, today's.
    """
    models = [config.policy, config.teacher, *config.student]
    paths = [Path(model.rpartition("#")[2]) for model in models if model is not None]
    day = config.date or date_of([], os.environ.get(VARIABLE), paths)
    try:
        pin_date(day)
    except ValueError as error:
        raise ConfigError(f"serve: `date` is {day!r}; it must be written as 2026-01-31.") from error
    return config.model_copy(update={"date": day})


def check_models(config: ServeConfig) -> None:
    """Check students, teacher and format, as far as possible before weights are read."""
    from rlt.reward.students import checked_tokenizer, close_students, open_students

    fmt = load_format(format_for("serve", config))
    teacher = None if config.teacher is None else checked_tokenizer(config.teacher, fmt, config)
    close_students(open_students(fmt, config, config, config, teacher).values())


def listen(config: ServeConfig) -> socket.socket:
    """The bound socket; raises ConfigError if the address is not available."""
    try:
        return socket.create_server((config.host, config.port), backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"serve: cannot listen on {config.host}:{config.port} ({error.strerror}). Choose another `--port` or `--host`."
        ) from error


def run_replica(config: ServeConfig, listener: socket.socket, number: int) -> None:
    """Load the models in this process and answer on `listener` until a signal."""
    import uvicorn

    from rlt.serve.application import build_app

    os.environ.setdefault("LOCAL_RANK", str(number))  # its GPU
    for name in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises it again once it is done; ignoring it ends quietly
        signal.signal(name, lambda signum, frame: None)
    app = build_app(config, lambda metrics: load_service(config, metrics), token(config))
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


def load_service(config: ServeConfig, metrics: Metrics) -> Service:
    """The service with all models loaded, behind a queue."""
    from rlt.models.loading import default_device, load_tokenizer
    from rlt.models.logprobs import DEFAULT_BATCH_TOKENS
    from rlt.reward.scoring import RewardEngine
    from rlt.reward.students import LocalModel, checked_tokenizer, load_students, open_students
    from rlt.serve.application import Service
    from rlt.serve.queue import RewardQueue
    from rlt.serve.rows import Reader

    fmt = load_format(format_for("serve", config))
    teacher_tokenizer = None if config.teacher is None else checked_tokenizer(config.teacher, fmt, config)
    students = load_students(open_students(fmt, config, config, config, teacher_tokenizer), config, config)
    teacher = None
    if config.teacher is not None and teacher_tokenizer is not None:
        teacher = LocalModel.from_tokenizer(config.teacher, teacher_tokenizer, config, config)
    policy = teacher_tokenizer or students[0].tokenizer
    if config.policy is not None:
        policy = load_tokenizer(config.policy, config.trust_remote_code)
    engine = RewardEngine(students, fmt, config, teacher, teacher_tokenizer=policy)
    tokens = config.batch_tokens or DEFAULT_BATCH_TOKENS[default_device().type]
    queue = RewardQueue(
        engine,
        batch_tokens=tokens,
        max_wait=config.max_wait_ms / 1000,
        max_rows=config.max_queue,
        scored=metrics.scored,
    )
    options = engine.options
    tokenizers = [student.tokenizer for student in students]
    info: JsonRow = {
        "version": __version__,
        "versions": {name: metadata.version(name) for name in VERSIONED},
        "format": config.format,
        "options": {name: getattr(options, name) for name in type(options).model_fields if name in REWARD_KEYS},
        "students": [_about(student) for student in students],
        "teacher": None if teacher is None else _about(teacher),
        "policy_tokenizer": policy.name_or_path,
        "date": pinned_date() if any(map(prints_date, [policy, *tokenizers])) else None,
    }
    reader = Reader(fmt, policy, engine.temperature, engine.estimator, config.max_characters)
    return Service(reader, queue, info, engine.close)


REWARD_KEYS = ("preset", "alpha", "alpha_kl", "kl_coef", "mean_coef", "score_temperature", "estimator", "unclosed_penalty",
               "floor", "aggregate")  # fmt: skip


def _about(scorer: object) -> JsonRow:
    model = getattr(scorer, "model", None)
    about: JsonRow = {"name": getattr(scorer, "name", "")}
    return about | ({"served_model": model} if isinstance(model, str) else {"weights": weights_hash(model)})


def weights_hash(model: nn.Module | None) -> str | None:
    """A hash of a model's loaded weights: names, shapes and about SAMPLED_VALUES values of each."""
    if model is None:
        return None
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        values = weight.detach().flatten()
        sample = values[:: max(1, len(values) // SAMPLED_VALUES)].float().cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} ".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _watch(config: ServeConfig, listener: socket.socket) -> int:
    """Run replicas that share the socket; restart those that die; a signal stops all of them. The exit status."""
    context = multiprocessing.get_context("spawn")

    def start(number: int) -> BaseProcess:
        process = context.Process(target=run_replica, args=(config, listener, number), daemon=True)
        process.start()
        return process

    replicas = {number: start(number) for number in range(config.replicas)}
    deaths = dict.fromkeys(replicas, 0)
    stopping = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for process in replicas.values():
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while any(process.is_alive() for process in replicas.values()):
        multiprocessing.connection.wait([process.sentinel for process in replicas.values() if process.is_alive()], 1.0)
        for number, process in replicas.items():
            if process.is_alive() or stopping:
                continue
            deaths[number] += 1
            if deaths[number] > RESTARTS:
                stop(signal.SIGTERM, None)
                print(f"serve: replica {number} exited {deaths[number]} times; stopping", flush=True)
                return 1
            print(f"serve: replica {number} exited with status {process.exitcode}; restarting it", flush=True)
            replicas[number] = start(number)
    return 0
