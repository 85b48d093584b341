"""The accuracy reward: how often a student gets the answer right after reading the explanation.

Early reports of RLT describe the reward this way; the published code rejects it. It costs `samples` generations per
explanation; the dense reward costs one forward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlt.config import AccuracyConfig
from rlt.engines.base import Completion, Request, Sampling, request_seed
from rlt.errors import ScoringError
from rlt.tasks.grading import Graders
from rlt.text.formats import Format, render_student
from rlt.types import Explanation

if TYPE_CHECKING:
    from rlt.models.logprobs import Progress
    from rlt.reward.students import Scorer


def student_accuracy(
    student: Scorer,
    fmt: Format,
    items: Sequence[Explanation],
    config: AccuracyConfig,
    graders: Graders,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[float | ScoringError]:
    """For each item, the share in [0, 1] of correct solutions among `config.samples` sampled by the student.

    The student's prompt is its text up to the opened solution: question and explanation, closed as for scoring. Samples
    depend on `seed`, question and explanation, not on the other items. An item has a ScoringError instead if its `answer`
    is missing or cannot be graded, if the context cut off a solution, or if its grader failed.
    """
    errors = _answer_errors(items, graders, config.task)
    prompts = {}
    for i, item in enumerate(items):
        if i not in errors:
            rendered = render_student(fmt, student.tokenizer, item.problem, item.text)
            prompts[i] = rendered.text[: rendered.spans["solution"][0]]
    requests = [
        Request(f"{i}", prompt, request_seed(seed, items[i].problem.question, items[i].text, sample))
        for i, prompt in prompts.items()
        for sample in range(config.samples)
    ]
    tags = fmt.tags.solution
    sampling = Sampling(config.max_tokens, config.temperature, stop=(tags.close,))
    written: dict[int, list[Completion]] = defaultdict(list)
    for completion in student.engine().generate(requests, sampling):
        written[int(completion.key)].append(completion)
        if progress is not None:
            progress(1, completion.completion_tokens)
    for i in prompts:
        # Fewer tokens than requested: this says nothing about the explanation.
        short = [c for c in written[i] if c.finish_reason == "length" and c.completion_tokens < config.max_tokens]
        if short:
            errors[i] = (
                f"the student's context ends after {short[0].completion_tokens} tokens of a solution; reduce "
                f"`accuracy.max_tokens` ({config.max_tokens}) so that prompt and solution fit"
            )
    whole = [i for i in prompts if i not in errors]
    responses = [
        (tags.open + completion.text, items[i].problem.answer or "", items[i].problem.question)
        for i in whole
        for completion in written[i]
    ]
    tasks = [items[i].problem.task or config.task for i in whole for _ in written[i]]
    verdicts = iter(graders.grade(tasks, responses, fmt))
    shares: dict[int, float] = {}
    for i in whole:
        own = [next(verdicts) for _ in written[i]]
        failed = next((verdict.error for verdict in own if verdict.error is not None), None)
        if failed is not None:
            errors[i] = f"a solution could not be graded: {failed}"
        shares[i] = sum(verdict.correct for verdict in own) / len(own)
    return [ScoringError(errors[i]) if i in errors else shares[i] for i in range(len(items))]


def _answer_errors(items: Sequence[Explanation], graders: Graders, task: str) -> dict[int, str]:
    errors = {
        i: "the accuracy reward needs the column `answer`"
        for i, item in enumerate(items)
        if not (item.problem.answer or "").strip()
    }
    asked = [(i, item.problem.answer or "", item.problem.question) for i, item in enumerate(items) if i not in errors]
    tasks = [items[i].problem.task or task for i, *_ in asked]
    reasons = graders.check(tasks, [(answer, question) for _, answer, question in asked])
    return errors | {
        i: f"column `answer`: {reason}" for (i, _, _), reason in zip(asked, reasons, strict=True) if reason is not None
    }
