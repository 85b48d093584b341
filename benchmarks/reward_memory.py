"""Peak memory beyond the weights of scoring one row, against its length, at a vocabulary of 151,936.

    python benchmarks/reward_memory.py

Each case runs in its own process. On a CPU: the growth of the resident set over that of a short row; a thin model,
because only the vocabulary matters here. On a GPU: torch's peak, with Qwen2.5-7B's shape. The table is also
kept as `results/reward_memory.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import plain
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlt.models.tiny import word_tokenizer
from rlt.outputs import versions
from rlt.text.formats import load_format

RESULTS = Path(__file__).parent / "results" / "reward_memory.json"
LENGTHS = (1024, 2048, 4096, 8192, 16384)
PLAIN_UP_TO = {"cpu": 4096, "cuda": 8192}  # longer ones need more than such a machine has


def main() -> None:
    """Measure every length both ways, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=3, metavar=("DEVICE", "WAY", "LENGTH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        device, way, length = arguments.case
        print(json.dumps(measure(device, way, int(length))))
        return
    results: dict[str, Any] = {"versions": versions()}
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            results[device] = {"not measured": "no GPU"}
            print("gpu: not measured, no GPU")
            continue
        results[device] = table(device)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def table(device: str) -> dict[str, Any]:
    """MiB of every case, and how the engine's grow: bytes per token, compared with one token's logits."""
    print(f"{device}: MiB beyond the weights\n{'tokens':>8}{'engine':>10}{'plain':>10}{'share':>8}")
    rows = []
    for length in LENGTHS:
        engine = in_process(device, "engine", length)
        theirs = in_process(device, "plain", length) if length <= PLAIN_UP_TO[device] else None
        rows.append({"tokens": length, "engine_mib": engine, "plain_mib": theirs})
        rest = "not measured" if theirs is None else f"{theirs:10.0f}{engine / theirs:8.3f}"
        print(f"{length:8}{engine:10.0f}{rest:>18}", flush=True)
    growth = (rows[-1]["engine_mib"] - rows[0]["engine_mib"]) * 2**20 / (LENGTHS[-1] - LENGTHS[0])
    print(f"growth: {growth / 1024:.0f} KiB a token; the logits of one token are {plain.VOCABULARY * 4 / 1024:.0f} KiB")
    return {"rows": rows, "growth_bytes_per_token": growth, "logits_bytes_per_token": plain.VOCABULARY * 4}


def in_process(device: str, way: str, length: int) -> float:
    """`measure` in a process of its own. Raises RuntimeError with what it said, if it failed."""
    command = [sys.executable, __file__, "--case", device, way, str(length)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-1500:])
    return float(done.stdout.strip().splitlines()[-1])


def measure(device: str, way: str, length: int) -> float:
    """MiB at the peak of scoring one row of so many tokens, beyond what a short row leaves behind."""
    if device == "cuda":
        engine, items = plain.qwen_7b([64, length], "cuda")
    else:
        fmt = load_format("words")
        tokenizer = word_tokenizer([f"w{i}" for i in range(2000)], fmt)
        shape = {
            "vocab_size": plain.VOCABULARY, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": True,
        }  # fmt: skip
        models = [LlamaForCausalLM(LlamaConfig(**shape)).eval() for _ in range(2)]
        engine, items = plain.engine_of(*models, tokenizer, fmt), plain.word_items(fmt, [110, length], 0)
    run = engine.score if way == "engine" else lambda rows: plain.score(engine, rows)
    run(items[:1])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(items[1:])
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident set
    before = _status("VmRSS")
    run(items[1:])
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError("/proc/self/status: the resident set can be measured on Linux only")
    return int(match[1])


if __name__ == "__main__":
    main()
