"""The reward in the plainest way: one row, all logits, a loop over tokens. Only the rendered text is rlt's."""

from __future__ import annotations

import itertools

import torch

from rlt.text.formats import Format, render_student, teacher_prompt
from rlt.text.tokens import with_whole_offsets
from rlt.types import Problem


def encoded(tokenizer, text):
    """`(ids, offsets)` of a text."""
    row = with_whole_offsets(tokenizer)(text, add_special_tokens=False, return_offsets_mapping=True)
    return row["input_ids"], row["offset_mapping"]


def continued(tokenizer, prompt: str, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """`(ids, offsets)` of what a model samples behind a prompt, offsets counted from the prompt's end."""
    ids, offsets = encoded(tokenizer, prompt + text)
    before, _ = encoded(tokenizer, prompt)
    if ids[: len(before)] == before:
        return ids[len(before) :], [(a - len(prompt), b - len(prompt)) for a, b in offsets[len(before) :]]
    return encoded(tokenizer, text)


@torch.no_grad()
def logprobs(model, ids: list[int], temperature: float, start: int) -> list[float]:
    """The log-prob of each token from `start` on, given all before it: from the model's own logits."""
    kept = len(ids) - start + 1
    logits = model(torch.tensor([ids]), logits_to_keep=kept).logits[0, :-1].float() / temperature
    return [(row[token] - row.logsumexp(-1)).item() for row, token in zip(logits, ids[start:], strict=True)]


def teacher_side(fmt: Format, tokenizer, model, problem: Problem, written: str, closed: bool, temperature: float):
    """The teacher's tokens wholly inside the explanation, by their ends; first the explanation's edge."""
    prompt = teacher_prompt(fmt, tokenizer, problem)
    before, _ = encoded(tokenizer, prompt)
    ids, offsets = continued(tokenizer, prompt, written + fmt.tags.explanation.close * closed)
    values = logprobs(model, before + ids, temperature, len(before))
    inside = [(b, i, v) for i, (_, b), v in zip(ids, offsets, values, strict=True) if b <= len(written)]
    return [(0, None, 0.0), *inside]


def student_sides(fmt: Format, tokenizer, model, problem: Problem, written: str, temperature: float):
    """The student's tokens wholly inside the explanation (first its edge), and the log-probs of the solution's."""
    text = render_student(fmt, tokenizer, problem, written).text
    tags = fmt.tags
    opened = tags.thought.open + fmt.padding
    between = tags.thought.close + fmt.delimiter + tags.solution.open
    start = text.rindex(opened + written + between + problem.solution + tags.solution.close) + len(opened)
    ids, offsets = encoded(tokenizer, text)
    skipped = next(i for i, (_, b) in enumerate(offsets) if b > start - len(fmt.padding))
    values = [0.0] * skipped + logprobs(model, ids, temperature, skipped)

    def inside(begin: int, end: int):
        return [(b - begin, i, v) for i, (a, b), v in zip(ids, offsets, values, strict=True) if begin <= a and b <= end]

    first = next((k for k, (a, _) in enumerate(offsets) if a >= start), len(ids))
    edge = (max(0, offsets[first - 1][1] - start), None, 0.0)
    solution = start + len(written + between)
    solved = [value for *_, value in inside(solution, solution + len(problem.solution))]
    return [edge, *inside(start, start + len(written))], solved


def differences(theirs, ours):
    """Differences of log-probs over each shortest stretch that ends at a token's end on both sides, by its tokens."""
    edges = sorted({end for end, *_ in theirs} & {end for end, *_ in ours})
    for low, high in itertools.pairwise(edges):
        a, b = ([token for token in side[1:] if low < token[0] <= high] for side in (theirs, ours))
        if [token[1] for token in a] == [token[1] for token in b]:
            yield from (x[2] - y[2] for x, y in zip(a, b, strict=True))
        else:
            yield sum(token[2] for token in a) - sum(token[2] for token in b)


def plain_reward(fmt, student, teacher, problem, written, closed=True, temperature=0.7, alpha=0.01):
    """`(r_ss, r_kl)` for `(tokenizer, model)` of student and teacher; None for a term without tokens."""
    theirs = teacher_side(fmt, *teacher, problem, written, closed, temperature)
    ours, solution = student_sides(fmt, *student, problem, written, temperature)
    kl = list(differences(theirs, ours))
    r_ss = sum(solution) / len(solution) + alpha * min(solution) if solution else None
    return r_ss, sum(kl) / len(kl) + alpha * max(kl) if kl else None
