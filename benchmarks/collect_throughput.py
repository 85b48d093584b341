"""Explanations per second: `rlt collect` against a vLLM server, compared with a bare load generator with the same requests.

    make vllm-server
    python benchmarks/collect_throughput.py

Both run in turns against one server on this machine. The load generator sends requests whose JSON was made beforehand,
as many at once, and throws the answers away; `rlt collect` renders, tokenizes, checks, writes and counts as always,
timed from the moment its engine is ready.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from rlt.config import CollectConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
RESULTS = ROOT / "benchmarks" / "results" / "collect_throughput.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=512, help="in each turn")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of one explanation")
    parser.add_argument("--turns", type=int, default=5, help="of each of the two")
    parser.add_argument("--in-flight", type=int, default=64)
    wanted = parser.parse_args()
    os.environ["RLT_QUIET"] = "1"
    from vllm_process import ABSENT, PYTHON, make_qwen, vllm_process

    if not PYTHON.exists():
        raise SystemExit(ABSENT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_qwen(folder / "model")
        # Without a prefix cache: whoever comes second would find the first one's prompts in it.
        with vllm_process(model, folder / "log.txt", ["--no-enable-prefix-caching"]) as url:
            turns = [turn(folder / str(i), model, url, i, wanted) for i in range(-1, wanted.turns)][1:]
    ratio = statistics.median(row["collect"] / row["bare"] for row in turns)
    print(f"\n{'turn':>4} {'bare, 1/s':>10} {'rlt collect, 1/s':>17} {'ratio':>6}")
    for number, row in enumerate(turns, 1):
        print(f"{number:>4} {row['bare']:>10.1f} {row['collect']:>17.1f} {row['collect'] / row['bare']:>6.1%}")
    print(f"median ratio {ratio:.1%}")
    RESULTS.write_text(
        json.dumps({**vars(wanted), "cpus": os.cpu_count(), "median_ratio": round(ratio, 4), "turns": turns}) + "\n"
    )


def turn(folder: Path, model: Path, url: str, number: int, wanted: argparse.Namespace) -> dict[str, float]:
    """Requests per second of both, with the same requests, now one first and now the other."""
    folder.mkdir()
    data = folder / "problems.jsonl"
    data.write_text(
        "".join(
            json.dumps({"question": f"What is {number} + {i}?", "solution": f"It is {number + i}."}) + "\n"
            for i in range(wanted.requests)
        )
    )
    config = CollectConfig(
        output=folder / "out", model=str(model), data=str(data), engine="openai", url=url, max_tokens=wanted.tokens,
        max_in_flight=wanted.in_flight,
    )  # fmt: skip
    bodies = bodies_of(config, wanted.requests)
    rates = {}
    for name in ("bare", "collect")[:: 1 if number % 2 else -1]:
        started = time.perf_counter()
        if name == "bare":
            bare(url, bodies, wanted.in_flight)
        else:
            started = collect_from_ready(config)
        rates[name] = round(wanted.requests / (time.perf_counter() - started), 2)
    return rates


def collect_from_ready(config: CollectConfig) -> float:
    """When the engine was ready, after all was collected: loading a tokenizer does not count."""
    from rlt.stages import collect

    ready: list[float] = []

    def build(*arguments: object, **options: object) -> object:
        engine = build_engine(*arguments, **options)
        ready.append(time.perf_counter())
        return engine

    collect.build_engine, build_engine = build, collect.build_engine
    try:
        collect.run(config)
    finally:
        collect.build_engine = build_engine
    return ready[0]


def bodies_of(config: object, count: int) -> list[bytes]:
    """The JSON of every request that `rlt collect` will send."""
    from rlt.engines.base import Sampling, budget
    from rlt.engines.openai import OpenAIEngine
    from rlt.models.loading import load_tokenizer
    from rlt.stages.collect import _requests
    from rlt.text.formats import load_format

    fmt, tokenizer = load_format(config.format), load_tokenizer(config.model)  # type: ignore[attr-defined]
    engine = OpenAIEngine(config, config.model)  # type: ignore[arg-type, attr-defined]
    missing = ((i, 0) for i in range(count))
    sampling = Sampling(
        config.max_tokens,
        config.temperature,
        config.top_p,
        stop=(fmt.tags.explanation.close,),  # type: ignore[attr-defined]
    )
    bodies = []
    for request in _requests(config, fmt, tokenizer, missing, {}):  # type: ignore[arg-type]
        ids = tokenizer.encode(request.prompt, add_special_tokens=False)
        bodies.append(
            json.dumps(engine.body(request, ids, budget(len(ids), sampling, engine.context_length), sampling))
        )
    engine.close()
    return [body.encode() for body in bodies]


def bare(url: str, bodies: list[bytes], in_flight: int) -> None:
    """Send all, `in_flight` at once, each on a connection of its own that stays open; nothing is read into an object."""
    source, address = iter(bodies), urlsplit(url)

    def send(connection: http.client.HTTPConnection, body: bytes) -> http.client.HTTPResponse:
        connection.request("POST", f"{address.path}/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response

    def worker() -> None:
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        for body in source:
            try:
                response = send(connection, body)
            except (ConnectionError, http.client.HTTPException):  # closed by a server that thought it idle
                connection.close()
                response = send(connection, body)
            if response.status != 200:
                raise SystemExit(f"the server answers {response.status}")
        connection.close()

    with ThreadPoolExecutor(in_flight) as pool:
        for future in [pool.submit(worker) for _ in range(in_flight)]:
            future.result()


if __name__ == "__main__":
    main()
