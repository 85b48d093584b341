"""Running the service: models loaded, a port bound, one process per replica."""

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
# Values of each weight that go into a student's hash: training changes nearly all of them.
SAMPLED_VALUES = 4096
START_LIMIT = 3  # consecutive exits after which a replica is given up


def serve(config: ServeConfig) -> int:
    """Serve until SIGTERM or SIGINT, which let requests under way finish. The exit status.

    Raises DependencyError without the extra `serve`, ConfigError for a port that is taken or a token that is not set, and
    what loading the tokenizers raises: all before any weights are read.
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
        f"serve: http://{host}:{port} loads {', '.join(config.student)}{replicas}; `/health` says when ready",
        flush=True,
    )
    if config.replicas == 1:
        run_replica(config, listener, 0)
        return 0
    return _watch(config, listener)


def token(config: ServeConfig) -> str | None:
    """The bearer token that clients must send, or None; raises ConfigError where its variable is not set."""
    if config.token_env is None:
        return None
    value = os.environ.get(config.token_env)
    if not value:
        raise ConfigError(
            "serve: `token_env` names an environment variable that is not set. Set it, or leave the key out."
        )
    return value


def dated(config: ServeConfig) -> ServeConfig:
    """The configuration with the date that chat templates print, which is pinned for this process and those it starts.

    It is `date`, else that of the environment, else that of the first model here that a stage made, else today's.
    """
    models = [config.policy, config.teacher, *config.student]
    paths = [Path(model.rpartition("#")[2]) for model in models if model is not None]
    day = config.date or date_of([], os.environ.get(VARIABLE), paths)
    try:
        pin_date(day)
    except ValueError as error:
        raise ConfigError(f"serve: `date` is {day!r}; write it as 2026-01-31.") from error
    return config.model_copy(update={"date": day})


def check_models(config: ServeConfig) -> None:
    """Raise what can be known of students, teacher and format before weights are read."""
    from rlt.reward.students import checked_tokenizer, close_students, open_students

    fmt = load_format(format_for("serve", config))
    teacher = None if config.teacher is None else checked_tokenizer(config.teacher, fmt, config)
    close_students(open_students(fmt, config, config, config, teacher).values())


def listen(config: ServeConfig) -> socket.socket:
    """The bound socket; raises ConfigError where the address cannot be had."""
    try:
        return socket.create_server((config.host, config.port), backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"serve: {config.host}:{config.port} cannot be listened on ({error.strerror}). Choose another `--port` or `--host`."
        ) from error


def run_replica(config: ServeConfig, listener: socket.socket, number: int) -> None:
    """Answer on `listener` from this process's models until a signal."""
    import uvicorn

    from rlt.serve.application import build_app

    os.environ.setdefault("LOCAL_RANK", str(number))  # its GPU
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            name, lambda signum, frame: None
        )  # uvicorn raises it again when all is done: then it ends quietly
    app = build_app(config, lambda metrics: load_service(config, metrics), token(config))
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


def load_service(config: ServeConfig, metrics: Metrics) -> Service:
    """Every model loaded, behind a queue."""
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
    """A hash of a model's weights, as loaded: of names, shapes and up to SAMPLED_VALUES values of each."""
    if model is None:
        return None
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        values = weight.detach().flatten()
        sample = values[:: max(1, len(values) // SAMPLED_VALUES)].float().cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} ".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _watch(config: ServeConfig, listener: socket.socket) -> int:
    """Replicas that share the socket; one that dies is started again, and a signal ends all of them."""
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
            if deaths[number] > START_LIMIT:
                stop(signal.SIGTERM, None)
                print(f"serve: replica {number} ended {deaths[number]} times; stopping", flush=True)
                return 1
            print(f"serve: replica {number} ended with status {process.exitcode}; starting it again", flush=True)
            replicas[number] = start(number)
    return 0
