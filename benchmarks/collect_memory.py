"""Peak memory of `rlt collect` with 1,000 and 200,000 problems and an engine that costs nothing: does it grow?

python benchmarks/collect_memory.py
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "collect_memory.json"
SIZES = (1_000, 200_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, help="collect for so many problems and print the peak, in bytes")
    wanted = parser.parse_args()
    if wanted.one:
        print(peak(wanted.one))
        return
    rows = []
    for size in SIZES:
        output = subprocess.check_output([sys.executable, __file__, "--one", str(size)], stderr=subprocess.DEVNULL)
        rows.append({"problems": size, "peak_mib": round(int(output.split()[-1]) / 2**20, 1)})
        print(f"{size:>8,} problems: {rows[-1]['peak_mib']:8.1f} MiB at most")
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def peak(problems: int) -> int:
    """Bytes of memory that the process had at most while it collected explanations of 2 kB for `problems` problems."""
    from rlt.config import CollectConfig
    from rlt.engines.base import Completion, Request, Sampling
    from rlt.models.tiny import tiny_llama, word_tokenizer
    from rlt.stages import collect
    from rlt.tasks import arithmetic
    from rlt.text.formats import load_format

    class FakeEngine:
        context_length, name, window = None, "fake", 1

        def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
            for request in requests:
                yield Completion(request.key, "so " * 700 + sampling.stop[0], "stop", 20, 701, (), -1.0, request.seed)

        def close(self) -> None:
            pass

    collect.build_engine = lambda *args, **options: FakeEngine()  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = word_tokenizer(arithmetic.vocabulary(), load_format("words"))
        tokenizer.save_pretrained(folder)
        tiny_llama(tokenizer, 0).save_pretrained(folder)
        data = Path(folder) / "problems.jsonl"
        with data.open("w") as file:
            for number in range(problems):
                file.write(json.dumps({"question": f"{number} ?", "solution": "2 " * 50}) + "\n")
        options = {"model": folder, "data": str(data), "format": "words", "max_tokens": 64}
        collect.run(CollectConfig(output=Path(folder) / "out", **options))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
