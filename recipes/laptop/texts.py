"""Print what explanations look like as texts, with no model: for files of explanations or folders that `rlt collect` wrote.

    python recipes/laptop/texts.py NAME=PATH[@SCORES] ...        PATH: a .jsonl file, or a folder of them

- different: number of different texts
- tokens: words and signs, split at blanks and punctuation, on average
- says solution: share that contain the solution, word for word
- answer first: share that name the answer (and the question does not) before their first equation's right-hand side
- equations right: share of all `a op b = c` that are true, and of explanations in which all are
- ends in answer: share whose last number is the answer
- shared: rows (by question and sample) that the first file has as well
- distinct: different groups of 2 and of 3 tokens, as a share of all, over the whole file

With the scores of the same rows, a second table: mean rewards of the explanations in which all equations are right, and of the
others that end in the answer; and a third: of all pairs of one with all equations right and one without, the share in which the right
one has the higher reward, r_ss, r_kl and so on (1/2 where they are equal), for pairs of the same question and for all.
"""

from __future__ import annotations

import ast
import json
import operator
import re
import sys
from collections.abc import Iterable, Iterator
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


def keys(rows: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(one["question"], str(one.get("sample"))) for one in rows}


def row(name: str, rows: list[dict[str, str]], others: list[dict[str, str]]) -> list[str]:
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
        name, str(len(rows)), str(len(set(texts))), str(len(keys(rows) & keys(others))), f"{fmean(map(len, tokens)):.1f}",
        f"{fmean(one['solution'] in one['explanation'] for one in rows):.2f}", f"{fmean(first):.2f}",
        f"{fmean(every):.2f}" if every else "-", f"{fmean(bool(each) and all(each) for each in checked):.2f}",
        f"{fmean(ends):.2f}", *(f"{len(set(groups[n])) / max(1, len(groups[n])):.2f}" for n in (2, 3)),
    ]  # fmt: skip


def by_truth(name: str, rows: list[dict[str, str]], scores: list[dict[str, float]]) -> list[list[str]]:
    """A row of cells for the right explanations, and one for those that end in the answer all the same."""
    right, wrong = [], []
    for one, score in zip(rows, scores, strict=True):
        checked = list(equations(one["explanation"]))
        if checked and all(checked):
            right.append(score)
        elif numbers(one["explanation"])[-1:] == [one["answer"]]:
            wrong.append(score)
    found = []
    for what, group in (("all right", right), ("some wrong, ends in answer", wrong)):
        known = [one for one in group if one["reward"] is not None]
        means = [f"{fmean(one[part] for one in known):.2f}" if known else "-" for part in ("reward", "r_ss", "r_kl")]
        found.append([name, what, str(len(known)), *means])
    return found


def ranked_right(rows: list[dict[str, str]], scores: list[dict[str, float]]) -> list[list[str]]:
    """For each column, how often an explanation with all equations right has the higher value than one without."""
    found = []
    for part in ("reward", "r_ss", "r_kl", "explanation_log_prob", "rank_surprisal", "accuracy", "explanation_tokens"):
        groups: dict[str, tuple[list[float], list[float]]] = {}
        for one, score in zip(rows, scores, strict=True):
            checked, place = list(equations(one["explanation"])), groups.setdefault(one["question"], ([], []))
            if score.get(part) is not None:
                place[not (checked and all(checked))].append(score[part])
        everywhere = ([value for of in groups.values() for value in of[truth]] for truth in (0, 1))
        same, all_pairs = above(groups.values()), above([tuple(everywhere)])
        if all_pairs[1]:
            found.append([part, *(f"{share:.2f} of {count}" if count else "-" for share, count in (same, all_pairs))])
    return found


def above(groups: Iterable[tuple[list[float], ...]]) -> tuple[float, int]:
    """Of all pairs within a group, the share in which the right one has the higher value (1/2 where equal), and their number."""
    higher, count = 0.0, 0
    for right, wrong in groups:
        higher += sum((a > b) + (a == b) / 2 for a in right for b in wrong)
        count += len(right) * len(wrong)
    return higher / max(1, count), count


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    head = ["explanations", "rows", "different", "shared", "tokens", "says solution", "answer first", "equations right", "all right",
            "ends in answer", "distinct-2", "distinct-3"]  # fmt: skip
    given = []
    for argument in sys.argv[1:]:
        name, _, rest = argument.partition("=")
        path, _, scored = rest.partition("@")
        given.append((name, rows_of(Path(path)), rows_of(Path(scored)) if scored else None))
    print(table(head, [row(name, rows, given[0][1]) for name, rows, _ in given]))
    truth = [line for name, rows, scores in given if scores for line in by_truth(name, rows, scores)]  # type: ignore[arg-type]
    if truth:
        print("\n" + table(["explanations", "equations", "rows", "reward", "r_ss", "r_kl"], truth) + "\n")
    for name, rows, scores in given:
        if scores:
            head = [f"{name}: the right one is higher in", "pairs of the same question", "all pairs"]
            print(table(head, ranked_right(rows, scores)) + "\n")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
