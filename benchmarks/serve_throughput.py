"""Rewards per second of `rlt serve` with many clients of one row each, against `rlt score` on the same rows in one call.

    python benchmarks/serve_throughput.py [--model FOLDER] [--rows 256] [--clients 64] [--turns 3]

Both run in this one program's time, in turns, so that their ratio holds on a machine whose speed drifts. Without `--model`
a random model of 20M parameters with a vocabulary of 49,152 stands in for a small real one.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import queue
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlt.data.rows import write_rows
from rlt.models.tiny import word_tokenizer
from rlt.text.formats import load_format


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a student's folder (format r1)")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model, fmt = (options.model, "r1") if options.model else (make_model(place / "student"), "words")
        rows = make_rows(options.rows)
        write_rows(place / "rows.jsonl", rows)
        process, url = start(model, fmt)
        try:
            ask_all(url, rows[: options.clients], options.clients)  # the first passes of a process are slow
            results = []
            for turn in range(options.turns):
                served, latencies = ask_all(url, rows, options.clients)
                results.append((options.rows / score(model, fmt, place, turn), options.rows / served, latencies))
        finally:
            process.terminate()
            process.wait()
    ratios = [served / scored for scored, served, _ in results]
    slowest = sorted(seconds for *_, latencies in results for seconds in latencies)
    summary = {
        "model": options.model or "random, 20M parameters", "rows": options.rows, "clients": options.clients,
        "score_rows_per_second": [round(scored, 2) for scored, _, _ in results],
        "serve_rows_per_second": [round(served, 2) for _, served, _ in results],
        "ratio_median": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios],
        "latency_p50_seconds": round(slowest[len(slowest) // 2], 3),
        "latency_p95_seconds": round(slowest[int(0.95 * len(slowest))], 3),
    }  # fmt: skip
    print(json.dumps(summary, indent=1))
    kept = Path(__file__).parent / "results" / "serve_throughput.json"
    kept.write_text(json.dumps(summary, indent=1) + "\n")


def make_model(folder: Path) -> str:
    fmt = load_format("words")
    tokenizer = word_tokenizer([f"w{i}" for i in range(49_000)], fmt)
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, tie_word_embeddings=True, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_rows(count: int) -> list[dict[str, str]]:
    """Rows of 100 to 300 words."""
    rng = random.Random(0)

    def words(number: int) -> str:
        return " ".join(f"w{rng.randrange(49_000)}" for _ in range(number))

    return [
        {"question": words(30), "solution": words(20), "explanation": words(rng.randint(50, 250))} for _ in range(count)
    ]


def start(model: str, fmt: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "rlt.cli", "serve", "--student", model, "--format", fmt, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    found = re.search(r"http://([\d.:]+)", process.stdout.readline())
    assert found is not None
    while call(found[1], "GET", "/health", None)[0] != 200:
        time.sleep(0.2)
    return process, found[1]


def call(address: str, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
    try:
        connection = http.client.HTTPConnection(address, timeout=600)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except ConnectionError:
        return 0, b""


def ask_all(address: str, rows: list[dict[str, str]], clients: int) -> tuple[float, list[float]]:
    """Seconds until all rows are answered, each in its own request, and each request's latency."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for row in rows:
        waiting.put(json.dumps({"rows": [row]}).encode())
    latencies: list[float] = []

    def client() -> None:
        connection = http.client.HTTPConnection(address, timeout=600)
        while True:
            try:
                body = waiting.get_nowait()
            except queue.Empty:
                return
            began = time.monotonic()
            connection.request("POST", "/score", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            latencies.append(time.monotonic() - began)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - began, latencies


def score(model: str, fmt: str, place: Path, turn: int) -> float:
    """Seconds that `rlt score` takes for the rows, loading aside: by its own engine in this process."""
    from rlt.config import ScoreConfig
    from rlt.stages import score as stage

    output = place / f"scores-{turn}.jsonl"
    config = ScoreConfig(student=[model], data=str(place / "rows.jsonl"), format=fmt, output=output)
    fmt_loaded = load_format(fmt)
    engine = stage.load_engine(config, fmt_loaded, *stage.open_models(config, fmt_loaded))
    items = [row.explanation for row in stage.numbered(config, fmt_loaded) if row.explanation is not None]
    engine.score(items[:8])
    began = time.monotonic()
    engine.score(items)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
