"""How often the quickstart's claims hold: its recipe over many seeds, also as on processors with less than this one has.

    python benchmarks/quickstart_seeds.py                        # seeds 0-4 here, 5-7 as with AVX2, 8 and 9 as with SSE4.1
    python benchmarks/quickstart_seeds.py --pairs avx2:0-2 --jobs 1

A processor is emulated by what torch and oneDNN are told not to use. Other instructions add in another order, so every sum
is rounded otherwise, and after some hundred steps of training the models are different ones. Seeds above 2 start from the
three shipped bases in turn; their data, their initial order and all sampling are their own.

Prints a row a seed with every claim's number, and how many hold. Runs are kept, and a complete one is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlt.results.tables import text_table

RECIPE = Path("recipes/quickstart/recipe.yaml")
SHIPPED = 3  # bases
PAIRS = "native:0-4 avx2:5-7 sse41:8-9"
STARTS = ("student", "warmup", "distill")  # steps whose model is a base
PROCESSORS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "sse41": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}


@dataclass(frozen=True)
class Claim:
    """`name` of a difference, and what it must exceed."""

    name: str
    least: float


CLAIMS = (
    Claim("reward", 0.0),
    Claim("rlt - warmup", 0.5),
    Claim("rlt - original", 0.5),
    Claim("rlt - token-matched", 0.5),
    Claim("rlt - greedy", 0.1),
    Claim("quarters", 0.0),
)


def differences(results: Mapping[str, Any]) -> list[float]:
    """The number of each of CLAIMS in the `results.json` of one seed: held-out reward after less before RL, solve rates at
    T 0.7 of RLT's students less those of the others', and of the highest quarter less the lowest."""
    rate = {arm: rows["seeds"][0]["solve_rate_t07"] for arm, rows in results["arms"].items()}
    (teacher,), (quarters,) = results["teacher"]["seeds"], results["quarters"]["seeds"]
    return [
        teacher["reward_after"] - teacher["reward_before"],
        *(rate["rlt"] - rate[arm] for arm in ("warmup", "original", "original_token_matched", "warmup_greedy")),
        quarters["solve_rate_t07"][-1] - quarters["solve_rate_t07"][0],
    ]


def table(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    """A row a run, and a last one that counts the runs of which each claim holds. Numbers that miss their claim get a `!`."""
    head = ["processor", "seed", "rlt", "greedy control", *(f"{claim.name} > {claim.least:g}" for claim in CLAIMS)]
    rows, held = [], [0] * len(CLAIMS)
    for (processor, seed), numbers in results.items():
        found = differences(numbers)
        holds = [value > claim.least for value, claim in zip(found, CLAIMS, strict=True)]
        held = [count + one for count, one in zip(held, holds, strict=True)]
        shown = [f"{value:.3f}{'' if one else ' !'}" for value, one in zip(found, holds, strict=True)]
        arms = [f"{numbers['arms'][arm]['seeds'][0]['solve_rate_t07']:.3f}" for arm in ("rlt", "warmup_greedy")]
        rows.append([processor, str(seed), *arms, *shown])
    rows.append(["hold", "", "", "", *(f"{count} of {len(results)}" for count in held)])
    return text_table(head, rows, width=100)


def numbers_of(text: str) -> list[int]:
    """`0-2,7` as [0, 1, 2, 7]."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def run(processor: str, seed: int, folder: Path, more: list[str]) -> dict[str, Any]:
    """The `results.json` of the quickstart with one seed; its lines go to a log beside the run's folder."""
    name = f"{processor}-{seed}"
    alone = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "RLT_QUIET": "1"}
    base = RECIPE.parent / "bases" / str(seed % SHIPPED)
    command = [sys.executable, "-m", "rlt.cli", "run", str(RECIPE), "--folder", str(folder), "--name", name]
    command += ["--seeds", str(seed), "--jobs", "1"]
    for step in STARTS:
        command += [f"--{step}.model", str(base)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.log").open("a", encoding="utf-8") as log:
        environment = {**os.environ, **alone, **PROCESSORS[processor]}
        subprocess.run([*command, *more], env=environment, stdout=log, stderr=log, check=True)
    results: dict[str, Any] = json.loads((folder / name / "results.json").read_text(encoding="utf-8"))
    return results


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", default=PAIRS, help="PROCESSOR:SEEDS, several separated by spaces (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time, each with one thread")
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart-seeds"))
    arguments, more = parser.parse_known_args()
    pairs = [
        (processor, seed)
        for processor, _, seeds in (part.partition(":") for part in arguments.pairs.split())
        for seed in numbers_of(seeds)
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda pair: run(pair[0], pair[1], arguments.folder, more), pairs))
    print(table(dict(zip(pairs, results, strict=True))))


if __name__ == "__main__":
    main()
