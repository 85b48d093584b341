"""What the sandbox costs: one program in it against the same program in a bare subprocess.

    python benchmarks/sandbox_speed.py --output benchmarks/results/sandbox_speed.json

The program prints one line. `bare`: `python -S -c` and its exit. `first`: a new sandbox, one program, its end.
`next`: each further program of the same sandbox, as the tests of one response are run. `asserts`: a response with assert
statements, which takes two sandboxes. Medians; ratios are against `bare`, so that machines can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rlt.tasks.sandbox import Box, check_available, tests_pass

PROGRAM = "print(sum(range(100)))"


def median(action: Callable[[], object], repeats: int) -> float:
    """Median seconds of `action`."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def bare() -> None:
    subprocess.run([sys.executable, "-s", "-S", "-P", "-B", "-c", PROGRAM], capture_output=True, check=True)


def first() -> None:
    with Box() as box:
        assert box.run(PROGRAM, "", 10.0)["output"] == "4950\n"


def asserts() -> None:
    assert tests_pass("def f(n): return n + 1", "", "assert f(1) == 2\nassert f(2) == 3", None, 10.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    check_available()
    seconds = {"bare": median(bare, options.repeats), "first": median(first, options.repeats)}
    with Box() as box:
        box.run(PROGRAM, "", 10.0)
        seconds["next"] = median(lambda: box.run(PROGRAM, "", 10.0), options.repeats)
    seconds["asserts"] = median(asserts, options.repeats)
    result = {
        "repeats": options.repeats,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "milliseconds": {name: round(1000 * value, 2) for name, value in seconds.items()},
        "ratio_to_bare": {name: round(value / seconds["bare"], 2) for name, value in seconds.items()},
        "tests_per_second_in_one_sandbox": round(1 / seconds["next"], 1),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
