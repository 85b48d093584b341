"""The HTTP application: `/score`, other engines' reward endpoints, health, metrics and information."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlt.config import ServeConfig
from rlt.errors import DataError, RltError, ScoringError, ServerError
from rlt.reward.items import ScoredRow
from rlt.reward.sides import Side
from rlt.serve.queue import QueueFull, RewardQueue
from rlt.serve.rows import Reader, after_prompt, label_row, policy_tokens
from rlt.types import Explanation, JsonRow, RewardParts

# Bytes of a request in addition to its rows' characters, which take up to 6 bytes each in JSON.
OVERHEAD = 2**20
# A request this many times too large is cut off before its end.
DRAINED = 8
# Seconds between two checks whether a client is still connected.
LOOK_EVERY = 0.5

Prepared = tuple[Explanation, Side | None]


@dataclass
class Service:
    """What the application serves, once it is loaded."""

    reader: Reader
    queue: RewardQueue
    info: JsonRow
    close: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        """A hash of everything that affects rewards: format, options, students and teacher with their weights."""
        decides = {key: value for key, value in self.info.items() if key not in ("version", "versions")}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Metrics:
    """Prometheus metrics of one application."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        own = self.registry
        self.rows = Counter("rlt_rows", "Rows scored", registry=own)
        self.errors = Counter("rlt_row_errors", "Rows that could not be scored", registry=own)
        self.tokens = Counter("rlt_tokens", "Explanation and solution tokens scored", registry=own)
        self.refused = Counter("rlt_requests_refused", "Requests answered 4xx or 5xx", ["status"], registry=own)
        self.waiting = Gauge("rlt_queue_rows", "Rows waiting", registry=own)
        self.latency = Histogram("rlt_request_seconds", "Seconds from a request to its answer", registry=own)

    def scored(self, rows: Sequence[ScoredRow]) -> None:
        """Count a batch."""
        self.rows.inc(len(rows))
        self.errors.inc(sum(row.parts.error is not None for row in rows))
        self.tokens.inc(sum((row.parts.solution_tokens or 0) + (row.parts.explanation_tokens or 0) for row in rows))


def build_app(
    config: ServeConfig, load: Callable[[Metrics], Service], token: str | None = None, wait: bool = False
) -> FastAPI:
    """The application. `load` builds its Service in a thread; `/health` already answers, unless `wait`.

    `token`: what clients must send as `Authorization: Bearer ...`.
    """
    metrics = Metrics()
    state = _State(config, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = threading.Thread(target=state.load, args=(load,), daemon=True)
        loading.start()
        if wait:
            await asyncio.to_thread(loading.join)
            state.ready()
        yield
        await asyncio.to_thread(state.close)

    app = FastAPI(title="rlt serve", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(_Guard, token=token, metrics=metrics, state=state)

    @app.exception_handler(RltError)
    async def told(request: Request, error: RltError) -> JSONResponse:
        if isinstance(error, QueueFull):
            return JSONResponse({"detail": str(error)}, 429, {"Retry-After": str(max(1, round(error.retry_after)))})
        status = 422 if isinstance(error, DataError) else 502 if isinstance(error, ServerError) else 500
        return JSONResponse({"detail": str(error)}, status)

    @app.get("/health")
    async def health() -> JSONResponse:
        if state.error is not None:
            return JSONResponse({"status": "failed", "detail": state.error}, 500)
        ready = state.service is not None
        return JSONResponse({"status": "ready" if ready else "loading"}, 200 if ready else 503)

    @app.get("/info")
    async def info() -> JsonRow:
        return state.ready().info

    @app.get("/metrics")
    async def counted() -> Response:
        metrics.waiting.set(0 if state.service is None else len(state.service.queue))
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/score")
    async def score(request: Request) -> Response:
        body = await state.body(request)
        rows = body.get("rows")
        if not isinstance(rows, list) or body.keys() != {"rows"}:
            raise DataError('the body must be {"rows": [...]}')
        futures = state.submit(rows)
        if "application/x-ndjson" in request.headers.get("accept", ""):
            return StreamingResponse(_as_done(request, futures), media_type="application/x-ndjson")
        return JSONResponse({"rows": [row.to_row() for row in await _all(request, futures)]})

    _add_engines(app, state)
    return app


def _add_engines(app: FastAPI, state: _State) -> None:
    """Reward endpoints of other engines: OpenRLHF, slime and NeMo Gym (`/seed_session` and `/verify`)."""

    @app.post("/openrlhf")
    async def openrlhf(request: Request) -> JsonRow:
        body = await state.body(request)
        parts = [_listed(body, name) for name in ("query", "prompts", "labels")]
        if len({len(part) for part in parts}) != 1:
            raise DataError("`query`, `prompts` and `labels` must have the same number of rows")
        triples = enumerate(zip(*parts, strict=True))
        rows = [label_row(label, after_prompt(q, p, f"row {i}"), f"row {i}") for i, (q, p, label) in triples]
        scored = await _all(request, state.submit(rows))
        rewards = [state.number(row, i) for i, row in enumerate(scored)]
        return {"rewards": rewards, "scores": rewards, "extra_logs": _columns(scored)}

    @app.post("/slime")
    async def slime(request: Request) -> JsonRow:
        body = await state.body(request)
        row = label_row(body.get("label"), _response(body), "row 0")
        (scored,) = await _all(request, state.submit([row]))
        return {**scored.to_row(), "reward": state.number(scored, 0)}

    @app.post("/seed_session")
    async def seed_session() -> JsonRow:
        return {}

    @app.post("/verify")
    async def verify(request: Request) -> JsonRow:
        body = await state.body(request)
        response = body.get("response")
        output = response.get("output") if isinstance(response, dict) else None
        if not isinstance(output, list) or not all(isinstance(item, dict) for item in output):
            raise DataError("row 0: `response.output` must be a list of objects")
        row = {name: body[name] for name in ("question", "solution", "answer", "system") if body.get(name) is not None}
        tokens = policy_tokens(output)
        if tokens.get("logprobs") is not None:
            asked = body.get("responses_create_params")
            tokens["temperature"] = asked.get("temperature") if isinstance(asked, dict) else None
        text = "".join(
            part.get("text", "") for item in output for part in item.get("content") or [] if isinstance(part, dict)
        )
        (scored,) = await _all(request, state.submit([{**row, **(tokens or {"completion": text})}]))
        return {**body, **scored.to_row(), "reward": state.number(scored, 0)}


class _Guard:
    """Checks the bearer token, except on `/health`, and counts. Plain ASGI: starlette's middleware hides disconnects."""

    def __init__(self, app: ASGIApp, token: str | None, metrics: Metrics, state: _State) -> None:
        self.app, self.token, self.metrics, self.state = app, token, metrics, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, statuses = time.monotonic(), []

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                if self.state.service is not None:
                    # Lets a client notice a different service.
                    message["headers"] = [*message["headers"], (b"rlt-service", self.state.service.name.encode())]
            await send(message)

        sent = Headers(scope=scope).get("authorization", "")
        app = self.app
        known = self.token is None or hmac.compare_digest(sent.encode(), f"Bearer {self.token}".encode())
        if not known and scope["path"] != "/health":
            app = JSONResponse({"detail": "missing or invalid bearer token"}, 401)
        await app(scope, receive, watched)
        if scope["method"] == "POST":
            self.metrics.latency.observe(time.monotonic() - started)
        if statuses and statuses[0] >= 400:
            self.metrics.refused.labels(statuses[0]).inc()
        return None


class _State:
    def __init__(self, config: ServeConfig, metrics: Metrics) -> None:
        self.config, self.metrics = config, metrics
        self.service: Service | None = None
        self.error: str | None = None

    def load(self, load: Callable[[Metrics], Service]) -> None:
        try:
            self.service = load(self.metrics)
        except RltError as error:
            self.error = str(error)
            print(f"rlt: error: {error}", flush=True)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            raise

    def close(self) -> None:
        if self.service is not None:
            self.service.queue.close()
            self.service.close()

    def ready(self) -> Service:
        if self.service is None:
            raise HTTPException(500 if self.error else 503, self.error or "the students are still loading")
        return self.service

    async def body(self, request: Request) -> JsonRow:
        """The JSON object of a request of bounded size."""
        self.ready()
        limit, sent = 6 * self.config.max_characters + OVERHEAD, 0
        data = bytearray()
        async for piece in request.stream():
            sent += len(piece)
            if sent <= limit:
                data += piece
            elif sent > DRAINED * limit:
                break
        if sent > limit:
            # Read to the end, so that a client that is still sending gets this answer, not a closed connection.
            raise HTTPException(413, f"the request has more than {limit} bytes; send fewer rows per request")
        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"not JSON: {str(error)[:200]}") from error
        if not isinstance(body, dict):
            raise DataError("the body must be a JSON object")
        return body

    def submit(self, rows: Sequence[object]) -> list[Future[ScoredRow]]:
        """A future for each row. An invalid row gets its own error; raises DataError if all are invalid by the caller."""
        service = self.ready()
        if not 0 < len(rows) <= self.config.max_rows:
            raise DataError(f"{len(rows)} rows in one request; 1 to {self.config.max_rows} are allowed")
        read: list[Prepared | DataError | ScoringError] = []
        for number, row in enumerate(rows):
            try:
                read.append(service.reader.read(row, number))
            except (DataError, ScoringError) as error:
                read.append(error)
        refused = [one for one in read if isinstance(one, DataError)]
        if len(refused) == len(read):
            raise refused[0]
        good = [one for one in read if not isinstance(one, (DataError, ScoringError))]
        scored = iter(service.queue.submit(good) if good else [])
        return [_failed(one) if isinstance(one, (DataError, ScoringError)) else next(scored) for one in read]

    def number(self, row: ScoredRow, number: int) -> float:
        """The reward of a row for an engine that takes only numbers; raises DataError if the row failed."""
        if row.parts.reward is not None:
            return row.parts.reward
        if self.config.failed_reward is not None:
            return self.config.failed_reward
        raise DataError(f"row {number}: {row.parts.error}")


def _failed(error: RltError) -> Future[ScoredRow]:
    future: Future[ScoredRow] = Future()
    future.set_result(ScoredRow.failed(str(error)))
    return future


async def _all(request: Request, futures: list[Future[ScoredRow]]) -> list[ScoredRow]:
    """The rows in order. If the client disconnects, rows not scored yet leave the queue."""
    waiting = [asyncio.wrap_future(future) for future in futures]
    try:
        while True:
            _, pending = await asyncio.wait(waiting, timeout=LOOK_EVERY)
            if not pending:
                return [one.result() for one in waiting]
            if await request.is_disconnected():
                raise HTTPException(499, "the client disconnected")
    finally:
        for one in waiting:
            one.cancel()


async def _as_done(request: Request, futures: list[Future[ScoredRow]]) -> AsyncIterator[str]:
    """A JSON line with its `row` number for each row, as soon as it is scored."""
    waiting = {asyncio.wrap_future(future): number for number, future in enumerate(futures)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, timeout=LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                number = waiting.pop(one)
                error = one.exception()
                row = RewardParts(error=str(error)).to_row() if error is not None else one.result().to_row()
                yield json.dumps({"row": number, **row}) + "\n"
            if not done and await request.is_disconnected():
                return
    finally:
        for one in waiting:
            one.cancel()


def _listed(body: JsonRow, name: str) -> list[str]:
    values = body.get(name)
    if not isinstance(values, list) or (name != "labels" and not all(isinstance(value, str) for value in values)):
        raise DataError(f"`{name}` must be a list of strings")
    return values


def _response(body: JsonRow) -> str:
    response = body.get("response")
    if not isinstance(response, str):
        raise DataError("row 0: `response` must be a string")
    return response


def _columns(rows: Sequence[ScoredRow]) -> dict[str, list[float]]:
    """Each part that all rows have, as a list for the engine's logs."""
    columns: dict[str, list[float]] = {}
    for name in ("r_ss", "r_kl", "explanation_kl_max", "format_penalty"):
        values = [getattr(row.parts, name) for row in rows]
        if None not in values:
            columns[name] = values
    return columns
