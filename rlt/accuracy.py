"""The accuracy reward: how often a student that has read the explanation gets the answer right.

The first reports of RLT describe the reward this way; the published code refuses it. It costs `samples` generations an
explanation where the dense reward costs one forward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlt.config import AccuracyConfig
from rlt.formats import Format, render_student
from rlt.generation import Request, Sampling, request_seed
from rlt.grading import GraderPool

if TYPE_CHECKING:
    from rlt.scoring import ScoreItem
    from rlt.students import Scorer


def student_accuracy(
    student: Scorer, fmt: Format, items: Sequence[ScoreItem], config: AccuracyConfig, seed: int = 0
) -> list[float]:
    """For each item the share, in [0, 1], of right ones among `config.samples` solutions that the student samples.

    The student's prompt is its text up to the opened solution: question and explanation, closed as for scoring. Every
    problem needs an `answer`. Samples depend on `seed`, question and explanation, not on the other items.
    """
    prompts = []
    for item in items:
        rendered = render_student(fmt, student.tokenizer, item.problem, item.body)
        prompts.append(rendered.text[: rendered.spans["solution"][0]])
    requests = [
        Request(f"{i}", prompt, request_seed(seed, item.problem.question, item.body, sample))
        for i, (item, prompt) in enumerate(zip(items, prompts, strict=True))
        for sample in range(config.samples)
    ]
    tags = fmt.tags.solution
    sampling = Sampling(config.max_tokens, config.temperature, stop=(tags.close,))
    engine = student.engine()
    written: dict[int, list[str]] = defaultdict(list)
    for completion in engine.generate(requests, sampling):
        written[int(completion.key)].append(tags.open + completion.text)
    responses = [
        (response, item.problem.answer or "", item.problem.question)
        for i, item in enumerate(items)
        for response in written[i]
    ]
    with GraderPool(config.task) as graders:
        verdicts = graders.grade(responses, fmt)
    right = [verdict.correct for verdict in verdicts]
    return [sum(right[i : i + config.samples]) / config.samples for i in range(0, len(right), config.samples)]
