"""The reward engine: explanations in, rewards with their parts out, for one student or several.

Each student reads question, explanation and solution once, and that forward pass serves both terms. The teacher's side
comes from a teacher model or, in training, from the policy's log-probs, which its step has already computed. A row that
cannot be scored gets an error; the others are not affected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rlt.config import AccuracyConfig, RewardOptions
from rlt.errors import ConfigError, ModelError, RltError, ScoringError, ServerError
from rlt.models.heads import Head, exact_kl, project
from rlt.models.logprobs import Progress, Row
from rlt.reward.accuracy import student_accuracy
from rlt.reward.formula import combine, reward_parts, smallest_of
from rlt.reward.items import ScoredRow, StudentLost
from rlt.reward.sides import Side, explanation_divergence, side_of, token_numbers
from rlt.reward.students import LocalModel, Scorer, check_estimator, close_students, same_tokens
from rlt.reward.tokens import TokenNumbers
from rlt.tasks.grading import Graders
from rlt.text.formats import Format, Rendered, render_student, render_teacher
from rlt.text.tokens import Tokenized, aligned, tokenize
from rlt.types import Explanation, RewardParts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts whose hidden states are held at once for the exact KL, in tokens.
HELD_TOKENS = 65536


class RewardEngine:
    """Scores explanations for `students` under `options`, with `r_kl` if a teacher's side is known.

    `teacher` computes that side; `teacher_tokenizer` is enough if `score` is given `sides`. Raises ConfigError for what a
    student cannot do (a served one: other temperatures, `exact`), for `exact` between different tokenizers, and for two
    students with the same name. `close` closes connections and graders.
    """

    def __init__(
        self,
        students: Sequence[Scorer],
        fmt: Format,
        options: RewardOptions,
        teacher: LocalModel | None = None,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        seed: int = 0,
    ) -> None:
        self.students, self.fmt, self.options, self.teacher = list(students), fmt, options.resolved(), teacher
        self.seed = seed
        self.temperature, self.estimator = self.options.score_temperature or 1.0, self.options.estimator or "k1"
        theirs = teacher.tokenizer if teacher is not None else teacher_tokenizer
        names = [student.name for student in self.students]
        if len(set(names)) < len(names):
            raise ConfigError(f"the names of students must differ; got {', '.join(names)}.")
        self._graders: Graders | None = None
        self._same_tokens = [theirs is not None and same_tokens(theirs, student.tokenizer) for student in students]
        for student in self.students:
            student.check(self.options)
            if theirs is not None:
                check_estimator(student.name, student.tokenizer, theirs, self.options)

    def passes(self, tokens: bool = False) -> int:
        """Number of times `progress` counts a row: once per forward pass, also for the ranks of kept `tokens`, and once per
        sampled solution.
        """
        accuracy = self.options.accuracy
        only = accuracy is not None and accuracy.only
        read = 0 if only else len(self.students) + (self.teacher is not None)
        ranked = sum(isinstance(student, LocalModel) and student.can_rank for student in self.students)
        return read + ranked * tokens + len(self.students) * (accuracy.samples if accuracy is not None else 0)

    # -- the reward --------------------------------------------------------------------------------------------------

    def score(
        self,
        items: Sequence[Explanation],
        sides: Sequence[Side | None] | None = None,
        *,
        teacher_head: Head | None = None,
        progress: Progress | None = None,
        keep_tokens: Collection[int] = (),
        ranks: bool = True,
    ) -> list[ScoredRow]:
        """The reward of each explanation, in order; a row that cannot be scored has an `error` and no numbers.

        A row's numbers do not depend on the other rows. `sides`: the teacher's side of each explanation if already known
        (in training: the sampled tokens and the policy's log-probs); the engine's teacher computes the missing ones.
        `teacher_head`: the policy's output layer, for the exact KL if sides have hidden states. `progress` gets the numbers
        of rows and tokens read by each model, see `passes`. `keep_tokens`: rows that keep per-token numbers, with their
        `ranks` (one more forward pass). Raises StudentLost, with the rows scored so far, if a student's server no longer
        answers.
        """
        errors: list[str | None] = [None] * len(items)
        prepared = [self._prepare(student, items, errors) for student in self.students]
        teachers = self._prepare_teacher(items, sides or [None] * len(items), errors)
        live = [i for i in range(len(items)) if errors[i] is None]
        kept: dict[int, list[TokenNumbers]] = {i: [] for i in live if i in keep_tokens}
        accuracy = self.options.accuracy
        with self.in_place():
            if accuracy is not None and accuracy.only:
                parts: dict[int, list[RewardParts | RltError]] = {i: self._penalties(items[i]) for i in live}
            elif self.estimator == "exact" and any(teachers):
                parts = self._score_exactly(items, prepared, teachers, live, teacher_head, progress, kept)
            else:
                parts = self._score_sampled(items, prepared, teachers, live, progress, kept)
            if ranks:
                self._rank(prepared, kept, progress)
            lost = {i: part for i in live for part in parts[i] if isinstance(part, ServerError)}
            if lost and accuracy is not None:
                raise StudentLost(str(lost[min(lost)]))
            shares = self._accuracies([items[i] for i in live], accuracy, progress)
        share_of = dict(zip(live, zip(*shares, strict=True), strict=True)) if shares else {}
        rows = [
            ScoredRow.failed(error) if error is not None else self._combined(parts[i], share_of.get(i), kept.get(i))
            for i, error in enumerate(errors)
        ]
        if lost:
            raise StudentLost(str(lost[min(lost)]), rows[: min(lost)])
        return rows

    def _accuracies(
        self, items: Sequence[Explanation], accuracy: AccuracyConfig | None, progress: Progress | None
    ) -> list[list[float | ScoringError]]:
        if accuracy is None or not items:
            return []
        if self._graders is None:
            self._graders = Graders()
        graders = self._graders
        return [student_accuracy(s, self.fmt, items, accuracy, graders, self.seed, progress) for s in self.students]

    def close(self) -> None:
        """Close the connections to served students and end the graders' processes."""
        close_students(self.students)
        if self._graders is not None:
            self._graders.close()

    def _penalties(self, item: Explanation) -> list[RewardParts | RltError]:
        penalty = self._penalty(item)
        return [RewardParts(reward=penalty, format_penalty=penalty) for _ in self.students]

    def _penalty(self, item: Explanation) -> float:
        return 0.0 if item.closed else self.options.unclosed_penalty or 0.0

    def _score_sampled(
        self,
        items: Sequence[Explanation],
        prepared: list[list[Tokenized | None]],
        teachers: list[Tokenized | Side | None],
        live: list[int],
        progress: Progress | None,
        kept: dict[int, list[TokenNumbers]],
    ) -> dict[int, list[RewardParts | RltError]]:
        sides = self._teacher_sides(teachers, live, progress)
        parts: dict[int, list[RewardParts | RltError]] = {i: [] for i in live}
        for student, texts, same in zip(self.students, prepared, self._same_tokens, strict=True):
            rows = [_row(_known(texts[i]), both=sides[i] is not None) for i in live]
            columns = student.logprobs(rows, self.temperature, progress)
            for i, column in zip(live, columns, strict=True):
                if isinstance(column, RltError):
                    parts[i].append(column)
                    continue
                text, side = _known(texts[i]), sides[i]
                kl, tokens = None, len(text.spans["explanation"])
                ours = side_of(text, column[:tokens])
                if side is not None:
                    kl, tokens = explanation_divergence(side, ours, self.estimator, same)
                    column = column[len(ours.ids) :]
                if i in kept:
                    kept[i].append(token_numbers(items[i], text, column, ours, side, kl, same))
                parts[i].append(self._parts(items[i], column, kl, tokens))
        return parts

    def _score_exactly(
        self,
        items: Sequence[Explanation],
        prepared: list[list[Tokenized | None]],
        teachers: list[Tokenized | Side | None],
        live: list[int],
        teacher_head: Head | None,
        progress: Progress | None,
        kept: dict[int, list[TokenNumbers]],
    ) -> dict[int, list[RewardParts | RltError]]:
        if teacher_head is None:
            if self.teacher is None:
                raise ConfigError(
                    "the estimator `exact` needs the teacher's output layer and hidden states, not log-probs."
                )
            teacher_head = self.teacher.head()
        parts: dict[int, list[RewardParts | RltError]] = {i: [] for i in live}
        for group in _groups(live, [len(_known(prepared[0][i]).ids) for i in live]):
            sides = self._hidden_sides([teachers[i] for i in group], progress)
            for student, texts in zip(self.students, prepared, strict=True):
                if not isinstance(student, LocalModel):
                    raise ConfigError(f"{student.name}: the estimator `exact` needs a local student, not a served one.")
                head = student.head()
                rows = [_row(_known(texts[i]), both=True) for i in group]
                for i, side, hidden in zip(group, sides, student.hidden(rows), strict=True):
                    text = _known(texts[i])
                    n = len(text.spans["explanation"])
                    ours = side_of(text, None, hidden[:n])
                    kl = self._exact_divergence(teacher_head, side, head, ours)
                    span = text.spans["solution"]
                    targets = torch.tensor(text.ids[span.start : span.stop], device=hidden.device)
                    column = project(head, hidden[n:], targets, self.temperature).float().cpu()
                    if i in kept:
                        ours, side = self._with_logprobs(ours, head), self._with_logprobs(side, teacher_head)
                        kept[i].append(token_numbers(items[i], text, column, ours, side, kl, True))
                    parts[i].append(self._parts(items[i], column, kl, kl.numel()))
                if progress is not None:
                    progress(len(rows), sum(len(row.ids) for row in rows))
        return parts

    def _rank(
        self,
        prepared: list[list[Tokenized | None]],
        kept: dict[int, list[TokenNumbers]],
        progress: Progress | None,
    ) -> None:
        """Add ranks to the kept numbers of local students, with one more forward pass each."""
        live = [i for i, numbers in kept.items() if len(numbers) == len(self.students)]
        for number, (student, texts) in enumerate(zip(self.students, prepared, strict=True)):
            if not isinstance(student, LocalModel) or not student.can_rank:
                continue
            for group in _groups(live, [len(_known(texts[i]).ids) for i in live]):
                rows = [_row(_known(texts[i]), both=True) for i in group]
                for i, ranks in zip(group, student.ranks(rows), strict=True):
                    numbers, tokens = kept[i][number], len(_known(texts[i]).spans["explanation"])
                    single = ranks[:tokens] if len(numbers.explanation) == tokens else None
                    kept[i][number] = replace(numbers, solution_ranks=ranks[tokens:], explanation_ranks=single)
                if progress is not None:
                    progress(len(rows), sum(len(row.ids) for row in rows))

    def _exact_divergence(self, teacher_head: Head, theirs: Side, head: Head, ours: Side) -> torch.Tensor:
        if theirs.hidden is None or ours.hidden is None:
            raise ConfigError("the estimator `exact` needs the hidden states of teacher and student.")
        pairs = aligned(theirs.ids, theirs.boundaries, ours.ids, ours.boundaries, True)
        # Distributions can be compared wherever both models predict from the same place in the text.
        first, second = [a.start for a, _ in pairs], [b.start for _, b in pairs]
        return exact_kl(teacher_head, theirs.hidden[first], head, ours.hidden[second], self.temperature)

    def _with_logprobs(self, side: Side, head: Head) -> Side:
        if side.hidden is None:
            return side
        targets = torch.tensor(side.ids, device=side.hidden.device, dtype=torch.long)
        return replace(side, logprobs=project(head, side.hidden, targets, self.temperature).float().cpu())

    def _parts(
        self, item: Explanation, solution: torch.Tensor, kl: torch.Tensor | None, explanation_tokens: int
    ) -> RewardParts | RltError:
        options, penalty = self.options, self._penalty(item)
        if kl is not None and kl.numel() == 0 and item.text.removesuffix(self.fmt.padding):
            # Without tokens, r_kl would be 0, its best value: right only for an empty explanation.
            return ScoringError(
                "no token of the explanation can be compared with the teacher's: all merge with the tags"
            )
        try:
            return reward_parts(
                solution, kl, alpha=options.alpha, alpha_kl=options.alpha_kl, mean_coef=options.mean_coef,
                kl_coef=options.kl_coef, format_penalty=penalty, explanation_tokens=explanation_tokens,
            )  # fmt: skip
        except ScoringError as error:
            return error

    def _combined(
        self,
        parts: list[RewardParts | RltError],
        shares: Sequence[float | ScoringError] | None,
        tokens: list[TokenNumbers] | None,
    ) -> ScoredRow:
        names = [student.name for student in self.students]
        known = [part for part in parts if isinstance(part, RewardParts)]
        right = [share for share in shares or [] if isinstance(share, float)]
        if len(known) < len(parts) or len(right) < len(shares or []):
            each = [(name, part) for result in (parts, shares or []) for name, part in zip(names, result, strict=False)]
            return ScoredRow.failed("; ".join(f"{name}: {part}" for name, part in each if isinstance(part, RltError)))
        if right and self.options.accuracy is not None:
            weight = self.options.accuracy.weight
            known = [
                replace(part, reward=(part.reward or 0.0) + weight * share)
                for part, share in zip(known, right, strict=True)
            ]
        total, smallest = combine(known, self.options.aggregate), smallest_of(known)
        if right:  # with `min`, that student's accuracy
            accuracy = right[smallest] if self.options.aggregate == "min" else sum(right) / len(right)
        else:
            accuracy = None
        if self.options.floor is not None and total.reward is not None:
            total = replace(total, reward=max(total.reward, self.options.floor))
        numbers = dict(zip(names, tokens or [], strict=False))
        if len(known) == 1:
            return ScoredRow(total, accuracy=accuracy, tokens=numbers)
        each_right = dict(zip(names, right, strict=True)) if right else {}
        return ScoredRow(total, dict(zip(names, known, strict=True)), accuracy, each_right, tokens=numbers)

    # -- texts -------------------------------------------------------------------------------------------------------

    def _prepare(
        self, student: Scorer, items: Sequence[Explanation], errors: list[str | None]
    ) -> list[Tokenized | None]:
        def render(item: Explanation) -> Rendered:
            return render_student(self.fmt, student.tokenizer, item.problem, item.text)

        texts = self._tokenized(student, render, items, errors)
        for i, text in enumerate(texts):
            if text is not None and errors[i] is None and not text.spans["solution"]:
                errors[i] = (
                    f"{student.name}: no token of the solution lies inside its tags; it is empty or merges with them"
                )
        return texts

    def _prepare_teacher(
        self, items: Sequence[Explanation], known: Sequence[Side | None], errors: list[str | None]
    ) -> list[Tokenized | Side | None]:
        sides: list[Tokenized | Side | None] = list(known)
        teacher = self.teacher
        missing = [i for i, side in enumerate(sides) if side is None]
        if teacher is None or not missing:
            return sides

        def render(item: Explanation) -> Rendered:
            return render_teacher(self.fmt, teacher.tokenizer, item.problem, item.text, item.closed)

        some_errors = [errors[i] for i in missing]
        texts = self._tokenized(teacher, render, [items[i] for i in missing], some_errors)
        for i, text, error in zip(missing, texts, some_errors, strict=True):
            sides[i], errors[i] = text, error
        return sides

    def _tokenized(
        self,
        scorer: Scorer,
        render: Callable[[Explanation], Rendered],
        items: Sequence[Explanation],
        errors: list[str | None],
    ) -> list[Tokenized | None]:
        texts: list[Tokenized | None] = [None] * len(items)
        rendered: dict[int, Rendered] = {}
        for i, item in enumerate(items):
            if errors[i] is None:
                try:
                    rendered[i] = render(item)
                except ModelError as error:
                    errors[i] = str(error)
        for i, text in zip(rendered, tokenize(scorer.tokenizer, list(rendered.values())), strict=True):
            if scorer.context is not None and len(text.ids) > scorer.context:
                errors[i] = (
                    f"{len(text.ids)} tokens, but the context of {scorer.name} is {scorer.context}; texts are never cut off"
                )
            elif isinstance(scorer, LocalModel) and max(text.ids) >= scorer.vocabulary:
                errors[i] = (
                    f"token id {max(text.ids)} is unknown to {scorer.name}, which has {scorer.vocabulary} embeddings"
                )
            else:
                texts[i] = text
        return texts

    # -- the teacher's side ------------------------------------------------------------------------------------------

    def _teacher_sides(
        self, teachers: list[Tokenized | Side | None], live: list[int], progress: Progress | None
    ) -> dict[int, Side | None]:
        sides: dict[int, Side | None] = {i: side for i in live if not isinstance(side := teachers[i], Tokenized)}
        if self.teacher is None:
            return sides
        texts = {i: text for i in live if isinstance(text := teachers[i], Tokenized)}
        rows = [Row(text.ids, [text.spans["explanation"]]) for text in texts.values()]
        columns = self.teacher.logprobs(rows, self.temperature, progress)
        return sides | {i: side_of(text, column) for (i, text), column in zip(texts.items(), columns, strict=True)}

    def _hidden_sides(self, teachers: list[Tokenized | Side | None], progress: Progress | None) -> list[Side]:
        texts = [text for text in teachers if isinstance(text, Tokenized)]
        rows = [Row(text.ids, [text.spans["explanation"]]) for text in texts]
        states = iter(self.teacher.hidden(rows) if self.teacher is not None else [])
        if progress is not None:
            progress(len(rows), sum(len(row.ids) for row in rows))
        sides = [side_of(side, None, next(states)) if isinstance(side, Tokenized) else side for side in teachers]
        return [side if side is not None else Side([], []) for side in sides]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which offloaded models are on the GPU; nested uses move them once."""
        with contextlib.ExitStack() as stack:
            for scorer in (*self.students, self.teacher):
                if isinstance(scorer, LocalModel):
                    stack.enter_context(scorer.in_place())
            yield


def _row(text: Tokenized, both: bool) -> Row:
    spans = [text.spans["explanation"]] if both else []
    return Row(text.ids, [*spans, text.spans["solution"]])


def _known(text: Tokenized | None) -> Tokenized:
    if text is None:
        raise ValueError("a row to be scored has no text")
    return text


def _groups(live: list[int], lengths: list[int]) -> Iterator[list[int]]:
    group: list[int] = []
    used = 0
    for i, length in sorted(zip(live, lengths, strict=True), key=lambda pair: -pair[1]):
        if group and used + length > HELD_TOKENS:
            yield group
            group, used = [], 0
        group.append(i)
        used += length
    if group:
        yield group
