"""Explanations a second: `rlt collect` against a vLLM server, beside a bare load generator with the same requests.

    make vllm-server
    python benchmarks/collect_throughput.py

Both run in turns against one server on this machine. The load generator sends requests whose JSON was made beforehand,
as many at once, and throws the answers away; `rlt collect` renders, tokenizes, checks, writes and counts as always.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

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
        json.dumps({**vars(wanted), "cpus": os.cpu_count(), "median_ratio": ratio, "turns": turns}) + "\n"
    )


def turn(folder: Path, model: Path, url: str, number: int, wanted: argparse.Namespace) -> dict[str, float]:
    """Requests a second of both, with the same requests, now one first and now the other."""
    from rlt.config import CollectConfig
    from rlt.stages import collect

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
            asyncio.run(bare(url, bodies, wanted.in_flight))
        else:
            collect.run(config)
        rates[name] = round(wanted.requests / (time.perf_counter() - started), 2)
    return rates


def bodies_of(config: object, count: int) -> list[bytes]:
    """The JSON of every request that `rlt collect` will send."""
    from rlt.engines.served import ServedEngine
    from rlt.formats import load_format
    from rlt.generation import Sampling, budget
    from rlt.models import load_tokenizer
    from rlt.stages.collect import _requests

    fmt, tokenizer = load_format(config.format), load_tokenizer(config.model)  # type: ignore[attr-defined]
    engine = ServedEngine(config, config.model)  # type: ignore[arg-type, attr-defined]
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


async def bare(url: str, bodies: list[bytes], in_flight: int) -> None:
    """Send all, `in_flight` at once."""
    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight, keepalive_expiry=2.0)
    async with httpx.AsyncClient(timeout=None, limits=limits, headers={"content-type": "application/json"}) as client:
        source = iter(bodies)

        async def worker() -> None:
            for body in source:
                (await client.post(f"{url}/completions", content=body)).raise_for_status()

        await asyncio.gather(*(worker() for _ in range(in_flight)))


if __name__ == "__main__":
    main()
