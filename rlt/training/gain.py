"""What a student would gain from learning an explanation, rather than from reading it.

`heldout` problems are read without any explanation. H is the mean over them of the mean log-prob of the solution's tokens,
and learning an explanation means a step on the tokens that `rlt distill` teaches from it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlt.config import DataConfig
from rlt.data.problems import load_problems
from rlt.errors import ConfigError, DataError, ModelError
from rlt.models.logprobs import Row, token_logprobs
from rlt.reward.students import LocalModel
from rlt.text.formats import Format, render_student
from rlt.text.tokens import tokenize
from rlt.training.examples import Example, examples_of, taught_to_student, turn_end
from rlt.types import Explanation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Length of the step along H's gradient over which log-probs are compared. Larger: curvature; smaller: float32's rounding.
STEP = 1e-2


class LearningGain:
    """The gain of each explanation to first order, as a reward (see docs/rounds.md).

    One step of SGD on an explanation's loss L changes H by -learning_rate * (dH . dL). That product is the slope of the
    explanation's mean log-prob along H's gradient: two forward passes per batch, with the student moved a little to either
    side, and no backward pass. H's gradient is taken once, because the student does not change. Keeps two copies of the
    student's weights. Log-probs are at temperature 1, as in distillation. Raises ConfigError unless weights are float32.
    """

    def __init__(self, student: LocalModel, fmt: Format, heldout: Sequence[Row], seed: int = 0) -> None:
        if any(value.dtype != torch.float32 for value in student.model.parameters()):
            raise ConfigError(
                f"`gain`: {student.name} must be loaded in float32, or rounding hides it: set `dtype: float32`."
            )
        self.student, self.fmt, self.seed = student, fmt, seed
        self._start = {name: value.detach().clone() for name, value in student.model.named_parameters()}
        gradient = _gradient(student.model, heldout)
        self._norm = sum(float(value.pow(2).sum()) for value in gradient.values()) ** 0.5
        self._direction = {name: value / (self._norm or 1.0) for name, value in gradient.items()}

    def __call__(self, items: Sequence[Explanation]) -> list[float | None]:
        """Each explanation's gain minus its placebo's, in nats per token of H and unit of learning rate; None where a chat
        template does not keep the text, or the student's context does not hold it.

        The placebo is the explanation of another question in the batch (none: 0), the same for all explanations of a
        question, so it moves all rewards of a group alike.
        """
        first = {one.problem.question: one for one in items}
        placebos: dict[str, Explanation] = {}
        for question, one in first.items():
            text = placebo(one, items, self.seed)
            if text is not None:
                placebos[question] = Explanation(one.problem, text, True)
        slopes = self._slopes([*items, *placebos.values()])
        of = dict(zip(placebos, slopes[len(items) :], strict=True))
        gains = []
        for one, slope in zip(items, slopes, strict=False):
            other = of.get(one.problem.question, 0.0)
            gains.append(None if slope is None or other is None else self._norm * (slope - other))
        return gains

    def _slopes(self, items: Sequence[Explanation]) -> list[float | None]:
        rows = [self._row(item) for item in items]
        known = [row for row in rows if row is not None]
        sides = []
        with self.student.in_place():
            for step in (STEP, -STEP):
                self._move(step)
                sides.append(self.student.logprobs(known, 1.0))
            self._move(0.0)
        slopes = iter([float(above.mean() - below.mean()) / (2 * STEP) for above, below in zip(*sides, strict=True)])
        return [None if row is None else next(slopes) for row in rows]

    def _row(self, item: Explanation) -> Row | None:
        try:
            (example,) = taught(self.fmt, self.student.tokenizer, [item], [item.text])
        except ModelError:
            return None
        if self.student.context is not None and len(example.ids) > self.student.context:
            return None
        return Row(example.ids, [example.learned])

    @torch.no_grad()
    def _move(self, step: float) -> None:
        for name, value in self.student.model.named_parameters():
            value.copy_(self._start[name])
            if step and name in self._direction:
                value.add_(self._direction[name].to(value.device), alpha=step)


def placebo(one: Explanation, everyone: Sequence[Explanation], seed: int) -> str | None:
    """The text of an explanation of another question, drawn by the seed and the question; None if there is no other."""
    others = [other.text for other in everyone if other.problem.question != one.problem.question]
    return random.Random(f"{seed} {one.problem.question}").choice(others) if others else None


def taught(
    fmt: Format, tokenizer: PreTrainedTokenizerBase, items: Sequence[Explanation], texts: Sequence[str]
) -> list[Example]:
    """Each item's problem with one of `texts` as its explanation, as `rlt distill` teaches it."""
    rendered = [render_student(fmt, tokenizer, one.problem, text) for one, text in zip(items, texts, strict=True)]
    return examples_of(tokenizer, rendered, [taught_to_student(fmt, one) for one in rendered], turn_end(fmt, tokenizer))


def heldout_rows(path: Path, limit: int, fmt: Format, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """The first `limit` problems of a file as a student reads them without an explanation; keeps their solutions' tokens.

    Raises DataError where no token of a solution is left.
    """
    problems = load_problems(DataConfig(path=str(path), limit=limit), fmt)
    texts = [render_student(fmt, tokenizer, problem, fmt.as_written("")) for problem in problems]
    rows = [Row(text.ids, [text.spans["solution"]]) for text in tokenize(tokenizer, texts)]
    for problem, row in zip(problems, rows, strict=True):
        if not row.kept:
            raise DataError(f"{path}: problem {problem.id}: no token of the solution lies inside its tags.")
    return rows


def understood(model: torch.nn.Module, heldout: Sequence[Row]) -> float:
    """H: the mean over problems of the mean log-prob of the solution's tokens, in nats."""
    return sum(float(column.mean()) for column in token_logprobs(model, heldout)) / len(heldout)


def _gradient(model: torch.nn.Module, heldout: Sequence[Row]) -> dict[str, torch.Tensor]:
    """The gradient of H, one problem at a time."""
    training = model.training
    model.eval()
    weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    total = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in weights.items()}
    device = next(model.parameters()).device
    for row in heldout:
        (span,) = row.keep
        labels = [token if i in span else -100 for i, token in enumerate(row.ids)]
        loss = model(
            input_ids=torch.tensor([row.ids], device=device), labels=torch.tensor([labels], device=device)
        ).loss
        for name, value in zip(weights, torch.autograd.grad(loss, [*weights.values()], allow_unused=True), strict=True):
            if value is not None:
                total[name] -= value.float() / len(heldout)
    model.train(training)
    return total
