"""Print what explanations look like as texts, with no model: for files of explanations or folders that `rlt collect` wrote.

    python recipes/laptop/texts.py NAME=PATH ...        PATH: a .jsonl file, or a folder of them

- tokens: words and signs, split at blanks and punctuation, on average
- says solution: share that contain the solution, word for word
- answer first: share that name the answer (and the question does not) before their first equation's right-hand side
- equations right: share of all `a op b = c` that are true, and of explanations in which all are
- ends in answer: share whose last number is the answer
- distinct: different groups of 2 and of 3 tokens, as a share of all, over the whole file
"""

from __future__ import annotations

import ast
import json
import operator
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
EQUATION = re.compile(r"([\d.]+(?:\s*[-+*/x]\s*[\d.]*\d)+)\s*=\s*([\d.]*\d)")
CURRENCY = re.compile(r"[$€£]")


def rows_of(path: Path) -> list[dict[str, str]]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def value(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp):
        return float(SIGNS[type(node.op)](value(node.left), value(node.right)))
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    raise ValueError(ast.dump(node))


def equations(text: str) -> Iterator[bool]:
    """Whether each equation of the text is true."""
    for left, right in EQUATION.findall(CURRENCY.sub("", text)):
        try:
            yield abs(value(ast.parse(left.replace("x", "*"), mode="eval").body) - float(right)) < 1e-6
        except (SyntaxError, ValueError, ZeroDivisionError):
            yield False


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?", text)


def row(name: str, rows: list[dict[str, str]]) -> list[str]:
    texts = [one["explanation"] for one in rows]
    tokens = [re.findall(r"\w+|[^\w\s]", text) for text in texts]
    groups = {n: [tuple(words[i : i + n]) for words in tokens for i in range(len(words) - n + 1)] for n in (2, 3)}
    checked = [list(equations(text)) for text in texts]
    every = [one for each in checked for one in each]
    first = [
        one["answer"] in numbers(one["explanation"].partition("=")[0]) and one["answer"] not in numbers(one["question"])
        for one in rows
    ]
    ends = [numbers(one["explanation"])[-1:] == [one["answer"]] for one in rows]
    return [
        name, str(len(rows)), f"{fmean(map(len, tokens)):.1f}",
        f"{fmean(one['solution'] in one['explanation'] for one in rows):.2f}", f"{fmean(first):.2f}",
        f"{fmean(every):.2f}" if every else "-", f"{fmean(bool(each) and all(each) for each in checked):.2f}",
        f"{fmean(ends):.2f}", *(f"{len(set(groups[n])) / max(1, len(groups[n])):.2f}" for n in (2, 3)),
    ]  # fmt: skip


def main() -> None:
    head = ["explanations", "rows", "tokens", "says solution", "answer first", "equations right", "all right",
            "ends in answer", "distinct-2", "distinct-3"]  # fmt: skip
    print("|" + "|".join(f" {name} " for name in head) + "|\n|" + "---|" * len(head))
    for argument in sys.argv[1:]:
        name, _, path = argument.rpartition("=")
        print("|" + "|".join(f" {cell} " for cell in row(name or path, rows_of(Path(path)))) + "|")


if __name__ == "__main__":
    main()
