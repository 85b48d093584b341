"""Write word problems with worked steps, made by reasoning-gym's `gsm_symbolic` (100 templates of GSM8K questions).

    pip install reasoning-gym==0.1.25
    python recipes/laptop/get_problems.py [FILE [COUNT]]    (default: models/gsm_symbolic.jsonl 600)

Of the first 20,000 problems, those in whose question and steps all numbers are whole and at most 30, each question once; of
these, the COUNT with the fewest characters, in the generator's order. The sentence that asks for a bare number is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

GENERATED, LARGEST = 20_000, 30
ASKED = " Give the result as your final answer. Do not include units."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=Path("models/gsm_symbolic.jsonl"), metavar="FILE")
    parser.add_argument("count", nargs="?", type=int, default=600, metavar="COUNT")
    given = parser.parse_args()
    path, count = given.path, given.count
    if path.is_file():
        print(f"{path}: is there already")
        return 0
    try:
        from reasoning_gym import create_dataset
    except ImportError:
        print("missing: reasoning-gym: pip install reasoning-gym==0.1.25", file=sys.stderr)
        return 2
    rows: dict[str, dict[str, str]] = {}
    for number, made in enumerate(create_dataset("gsm_symbolic", size=GENERATED, seed=1)):
        steps, _, answer = made["metadata"]["answer_cot"].rpartition("####")
        answer = answer.strip()
        question = made["question"].removesuffix(ASKED)
        numbers = re.findall(r"[\d.,/%]*\d[\d.,/%]*", f"{question} {steps} {answer}")
        if all(re.fullmatch(r"\d+[.,]?", number) and int(number.strip(".,")) <= LARGEST for number in numbers):
            said = {"solution": f"The answer is {answer}.", "answer": answer, "explanation": steps.strip()}
            rows.setdefault(question, {"id": str(number), "question": question, **said})
    shortest = sorted(rows.values(), key=lambda row: len(row["question"]) + len(row["explanation"]))[:count]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in sorted(shortest, key=lambda row: int(row["id"])):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{path}: {len(shortest)} problems")
    return 0


if __name__ == "__main__":
    sys.exit(main())
