"""Everything of rlt that depends on a GPU, in blocks of under nine minutes; each leaves a JSON file.

    make gpu-check                               # all blocks, one after the other
    python benchmarks/gpu_check.py --list        # the blocks, and what is known of each
    python benchmarks/gpu_check.py rl-step       # one block (or several)

What a block measures is in gpu_blocks.py. A case that needs what the machine lacks is skipped with the reason; cases that are
complete are kept when a later one fails or time runs out. One GPU is used, the first that is visible. Files:
`benchmarks/results/gpu/BLOCK.json`, without a GPU `benchmarks/results/gpu-script/BLOCK.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
# cuDNN's attention plans every new length, which a decoder has at each token; 0 measures it all the same.
os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")

import psutil
import torch
from gpu_blocks import BLOCKS, GPU, HERE, Skipped

from rlt.outputs import versions

RESULTS = HERE / "results" / ("gpu" if GPU else "gpu-script")
SECONDS = 540  # of one block
Entry = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blocks", nargs="*", metavar="BLOCK", help=", ".join(BLOCKS))
    parser.add_argument("--list", action="store_true", help="show the blocks and their last outcome, and run nothing")
    parser.add_argument("--inside", metavar="BLOCK", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.blocks if name not in BLOCKS]
    if unknown:
        parser.error(f"unknown block {unknown[0]!r}; expected one of {', '.join(BLOCKS)}")
    if options.inside:
        return _inside(options.inside)
    outcomes = []
    for name in options.blocks or BLOCKS:
        entry = _known(name) if options.list else _block(name)
        outcomes.append(entry["outcome"])
        about = (BLOCKS[name].__doc__ or "").splitlines()[0]
        print(f"{name:<17} {entry['outcome']:<9} {about if options.list else _told(entry)}", flush=True)
    return int("failed" in outcomes)


def _block(name: str) -> Entry:
    """Run the block in a process of its own, so that none leaves memory behind or runs for ever."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, "--inside", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    why = None
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        # Not the process group: torch's launcher starts its workers in sessions of their own.
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
        out, err = process.communicate()
        why = f"not done within {SECONDS} s"
    lines = out.splitlines()
    entry: Entry = json.loads(lines[-1]) if lines else {"cases": {}}
    if why or process.returncode:
        entry |= {"outcome": "failed", "why": why or err[-1500:]}
    entry = {"outcome": _outcome(entry), **entry, "seconds": round(time.perf_counter() - begin, 1), **_machine()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    return entry


def _machine() -> Entry:
    if not GPU:
        return {"versions": versions()}
    cudnn = {"cudnn": torch.backends.cudnn.version(), "deprioritized": os.environ["TORCH_CUDNN_SDPA_DEPRIORITIZED"]}
    return {"gpu": torch.cuda.get_device_name(0), **cudnn, "versions": versions()}


def _outcome(entry: Entry) -> str:
    outcomes = {case["outcome"] for case in entry["cases"].values()}
    return next((one for one in ("failed", "done") if one in outcomes), "skipped")


def _inside(name: str) -> int:
    """Prints what is known after every case, as a line of JSON."""
    cases: dict[str, Entry] = {}
    try:
        for case, measure in BLOCKS[name]():
            try:
                cases[case] = {"outcome": "done", **measure()}
            except Skipped as reason:
                cases[case] = {"outcome": "skipped", "why": str(reason)}
            except Exception:  # reported as failed, with the reason; the next case may work
                cases[case] = {"outcome": "failed", "why": traceback.format_exc()[-1500:]}
            print(json.dumps({"cases": cases}), flush=True)
    except Skipped as reason:
        print(json.dumps({"cases": cases, "why": str(reason)}))
    return 0


def _known(name: str) -> Entry:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"outcome": "not run"}


def _told(entry: Entry) -> str:
    cases = ", ".join(f"{name}: {case['outcome']}" for name, case in entry["cases"].items())
    return f"{entry['seconds']:.0f} s  {cases}{'; ' if cases and 'why' in entry else ''}{entry.get('why', '')[-300:]}"


if __name__ == "__main__":
    sys.exit(main())
