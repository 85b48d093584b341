"""The reward as a TRL reward function: `GRPOTrainer(reward_funcs=[TeacherReward(...)])`.

TRL passes a reward function the sampled tokens, but not the policy's log-probs. In plain TRL, the reward is therefore
`r_ss + format_penalty`. A trainer that passes `policy_logprobs`, as rlt's own does, gets the whole reward; samples are not
tokenized again on the teacher's side, and the policy's log-probs are not computed twice.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from rlt.config import ModelOptions, RewardOptions, StudentOptions
from rlt.errors import ConfigError, DataError, ScoringError
from rlt.reward.items import ScoredRow
from rlt.reward.placebos import next_text, with_placebos
from rlt.reward.sampled import sampled_explanations
from rlt.reward.scoring import RewardEngine
from rlt.reward.sides import Side
from rlt.reward.students import Scorer, load_students, open_students
from rlt.text.formats import Format, load_format, teacher_prompt
from rlt.types import Explanation, JsonRow, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlt.models.heads import Head

LOGGED = (
    "reward", "r_ss", "r_kl", "solution_log_prob_mean", "solution_log_prob_min", "explanation_kl_mean",
    "explanation_kl_max", "format_penalty", "explanation_tokens",
)  # fmt: skip

Gain = Callable[[Sequence[Explanation]], Sequence[float | None]]

TABLE = ("r_ss", "r_kl", "solution_log_prob_min", "explanation_kl_max", "format_penalty")


class TeacherReward:
    """The reward of a Reinforcement-Learned Teacher for completions of `rlt.text.formats.teacher_prompt`.

    `students`: model folders, hub names, server addresses, or loaded ones. `tokenizer`: the policy's, which decodes the
    sampled tokens. `end_ids`: further tokens that end a completion. The dataset needs the columns `question` and
    `solution`; `answer` and `system` are used if present.

    A completion that cannot be scored gets None, which TRL leaves out of its group's mean; its advantage is 0. If no
    completion of a batch can be scored, over all processes, each raises ScoringError. `last_samples` has some samples of
    the last call with their parts and, with `tokens`, their per-token numbers. `seed`: for the solutions that students
    sample for the accuracy reward. `sources`: names in the column `source` whose share is logged even if it is 0.
    `shuffled`: a control that permutes a batch's rewards at random.
    """

    def __init__(
        self,
        students: str | Sequence[str | Scorer],
        tokenizer: PreTrainedTokenizerBase,
        format: str | Format = "stratos",
        options: RewardOptions | None = None,
        *,
        placement: StudentOptions | None = None,
        model: ModelOptions | None = None,
        end_ids: Sequence[int] = (),
        placebos: int = 8,
        keep_samples: int = 4,
        seed: int = 0,
        tokens: bool = False,
        sources: Sequence[str] = (),
        shuffled: bool = False,
    ) -> None:
        self.__name__, self.sources = "rlt", sources
        self.fmt = load_format(format) if isinstance(format, str) else format
        self.tokenizer, self.placebos, self.keep_samples, self.tokens = tokenizer, placebos, keep_samples, tokens
        listed = [students] if isinstance(students, str) else list(students)
        paths = [student for student in listed if isinstance(student, str)]
        place = (placement or StudentOptions()).model_copy(update={"student": paths})
        options = options or RewardOptions()
        model = model or ModelOptions()
        opened = open_students(self.fmt, model, place, options, tokenizer) if paths else {}
        loaded = iter(load_students(opened, model, place))
        self.engine = RewardEngine(
            [next(loaded) if isinstance(student, str) else student for student in listed],
            self.fmt, options, teacher_tokenizer=tokenizer, seed=seed,
        )  # fmt: skip
        self.seed, self.shuffled = seed, shuffled
        self._ends = {*end_ids, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
        self.last_samples: list[JsonRow] = []
        self.last_rows: list[ScoredRow] = []
        self.policy_head: Head | None = None
        """The policy's output layer for the estimator `exact`, set by the trainer (TRL passes only lists)."""
        self.gain: tuple[Gain, float] | None = None
        """What a student would gain from learning each explanation, and its weight in the reward (`train.gain`)."""

    def __call__(
        self,
        prompts: Sequence[object],
        completions: Sequence[object],
        completion_ids: Sequence[Sequence[int]],
        *,
        question: Sequence[str] | None = None,
        solution: Sequence[str] | None = None,
        answer: Sequence[str | None] | None = None,
        system: Sequence[str | None] | None = None,
        task: Sequence[str | None] | None = None,
        source: Sequence[str | None] | None = None,
        policy_logprobs: Sequence[torch.Tensor] | None = None,
        policy_hidden: Sequence[torch.Tensor] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[float | None]], None] | None = None,
        **others: object,
    ) -> list[float | None]:
        """The reward of each completion, in order, or None.

        For `r_kl`, a trainer passes for each completion of C sampled tokens `policy_logprobs` `(C,)`: float32 log-probs in
        nats at `options.score_temperature`. For the estimator `exact`, it passes `policy_hidden` `(C, H)` instead
        (`rlt.models.logprobs.hidden_states`) and first sets `policy_head` (`rlt.models.logprobs.output_head`).
        """
        if question is None or solution is None:
            raise DataError(
                "TeacherReward: the dataset needs the columns `question` and `solution` in addition to `prompt`."
            )
        if self.engine.estimator == "exact" and policy_logprobs is not None and policy_hidden is None:
            raise ConfigError("the estimator `exact` needs `policy_hidden`; log-probs are not enough.")
        count = len(completion_ids)
        known = policy_hidden if self.engine.estimator == "exact" else policy_logprobs
        _check_one_per_token(known, completion_ids)
        items: dict[int, Explanation] = {}
        sides: list[Side | None] = []
        rows: list[ScoredRow | None] = [None] * count
        problems = _problems(question, solution, answer, system, task, source)
        sampled = sampled_explanations(
            self.fmt, self.tokenizer, problems, completion_ids, known or [None] * count, self._ends
        )
        for i, one in enumerate(sampled):
            if isinstance(one, ScoringError):
                rows[i] = ScoredRow.failed(str(one))
            else:
                items[i] = one[0]
                sides.append(one[1])
        keep = self._sampled(len(items)) if self.tokens else ()
        scored = self.engine.score(list(items.values()), sides, teacher_head=self.policy_head, keep_tokens=keep)
        scored = self._with_gain(list(items.values()), self._with_placebos(list(items.values()), scored))
        for i, row in zip(items, scored, strict=True):
            rows[i] = row
        self.last_rows = [row for row in rows if row is not None]
        _refuse_total_failure(self.last_rows)
        self._log({**self.metrics(prompts, items), **self.source_metrics(source or [], items)}, log_metric, log_extra)
        self.last_samples = self._samples(items)
        rewards = [row.parts.reward for row in self.last_rows]
        return self._dealt_out(rewards, completion_ids) if self.shuffled else rewards

    def _log(
        self,
        metrics: dict[str, float],
        log_metric: Callable[[str, float], None] | None,
        log_extra: Callable[[str, list[float | None]], None] | None,
    ) -> None:
        """Pass TRL the metrics, and the columns of the tables that `log_completions` sends to W&B and trackio."""
        if log_metric is not None:
            for name, value in metrics.items():
                log_metric(f"rlt/{name}", value)
        if log_extra is not None:
            for name in TABLE:
                log_extra(name, [getattr(row.parts, name) for row in self.last_rows])

    def close(self) -> None:
        """Close the connections to served students and end the graders' processes."""
        self.engine.close()

    def metrics(self, prompts: Sequence[object], items: dict[int, Explanation]) -> dict[str, float]:
        """Means of the last call's parts, their spread within groups of one prompt, and the share of failed rows.

        For the rows with placebos: the lifts, and the placebos' `r_ss_empty` and `r_ss_shuffled`.
        """
        good = [row for row in self.last_rows if row.parts.error is None]
        metrics = {"failed": 1 - len(good) / max(1, len(self.last_rows))}
        for name in LOGGED:
            values = [value for row in good if (value := getattr(row.parts, name)) is not None]
            if values:
                metrics[name] = statistics.fmean(values)
                spread = self._spread(prompts, name)
                if spread is not None:
                    metrics[f"{name}_spread"] = spread
        for name in ("accuracy", "gain", "lift_over_empty", "lift_over_shuffled"):
            values = [value for row in good if (value := getattr(row, name)) is not None]
            if values:
                metrics[name] = statistics.fmean(values)
        for name in ("empty", "shuffled"):
            values = [
                row.parts.r_ss - lift
                for row in good
                if row.parts.r_ss is not None and (lift := getattr(row, f"lift_over_{name}")) is not None
            ]
            if values:
                metrics[f"r_ss_{name}"] = statistics.fmean(values)
        if items:
            metrics["unclosed"] = sum(not item.closed for item in items.values()) / len(items)
        return metrics

    def source_metrics(self, source: Sequence[str | None], items: dict[int, Explanation]) -> dict[str, float]:
        """Metrics of each source of a mixture in the last call, as `source/NAME/...`: `reward`, `r_ss`, `r_kl`, the lifts,
        `unclosed`, and `share`, its share of the completions."""
        metrics: dict[str, float] = {}
        for name in sorted({*self.sources, *(one for one in source if one is not None)} if source else ()):
            places = [i for i, one in enumerate(source) if one == name]
            rows = [self.last_rows[i] for i in places if self.last_rows[i].parts.error is None]
            numbers = {
                **{part: [getattr(row.parts, part) for row in rows] for part in ("reward", "r_ss", "r_kl")},
                **{lift: [getattr(row, lift) for row in rows] for lift in ("lift_over_empty", "lift_over_shuffled")},
                "unclosed": [float(not items[i].closed) for i in places if i in items],
                "share": [len(places) / len(source)],
            }
            for part, values in numbers.items():
                known = [value for value in values if value is not None]
                if known:
                    metrics[f"source/{name}/{part}"] = statistics.fmean(known)
        return metrics

    def _dealt_out(self, rewards: list[float | None], ids: Sequence[Sequence[int]]) -> list[float | None]:
        """The rewards, in a permutation that depends only on the seed and the completions, as a resumed run needs."""
        known = [reward for reward in rewards if reward is not None]
        random.Random(f"shuffled rewards {self.seed} {ids}").shuffle(known)
        dealt = iter(known)
        return [None if reward is None else next(dealt) for reward in rewards]

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _with_placebos(self, items: list[Explanation], scored: list[ScoredRow]) -> list[ScoredRow]:
        if self.placebos == 0:
            return scored
        # Even without items: all ranks or none must call a student that is sharded over them.
        count = min(self.placebos, len(items))
        chosen = sorted({i * len(items) // count for i in range(count)})  # spread over the questions of the batch
        return with_placebos(self.engine, items, scored, {i: next_text(items, scored, i) for i in chosen})

    def _with_gain(self, items: list[Explanation], scored: list[ScoredRow]) -> list[ScoredRow]:
        if self.gain is None or not items:
            return scored
        of, weight = self.gain
        found = []
        for row, gain in zip(scored, of(items), strict=True):
            if row.parts.reward is None:
                found.append(row)
            elif gain is None:
                found.append(ScoredRow.failed("the student cannot learn this explanation, so it has no gain"))
            else:
                parts = replace(row.parts, reward=row.parts.reward + weight * gain)
                found.append(replace(row, parts=parts, gain=gain))
        return found

    def _spread(self, prompts: Sequence[object], name: str) -> float | None:
        groups: dict[str, list[float]] = defaultdict(list)
        for prompt, row in zip(prompts, self.last_rows, strict=True):
            value = getattr(row.parts, name)
            if value is not None:
                groups[str(prompt)].append(value)
        spreads = [statistics.stdev(values) for values in groups.values() if len(values) > 1]
        return statistics.fmean(spreads) if spreads else None

    def _sampled(self, total: int) -> range:
        """The places of the explanations kept as samples."""
        count = min(self.keep_samples, total)
        step = max(1, total // count) if count else 1
        return range(0, count * step, step)

    def _samples(self, items: dict[int, Explanation]) -> list[JsonRow]:
        places = list(items)
        chosen = [places[i] for i in self._sampled(len(items))]
        return [
            {
                "question": items[i].problem.question,
                "solution": items[i].problem.solution,
                **({"source": its} if (its := items[i].problem.source) else {}),
                "explanation": items[i].text,
                "closed": items[i].closed,
                **self.last_rows[i].to_row(),
            }
            for i in chosen
        ]


def _problems(question: Sequence[str], solution: Sequence[str], *columns: Sequence[str | None] | None) -> list[Problem]:
    """The problems of a batch, from their columns; `answer`, `system`, `task` and `source` may be missing."""
    known = [column or [None] * len(question) for column in columns]
    return [
        Problem(str(i), asked, solved, answer, system=system, task=task, source=source)
        for i, (asked, solved, answer, system, task, source) in enumerate(zip(question, solution, *known, strict=True))
    ]


def _check_one_per_token(known: Sequence[torch.Tensor] | None, completion_ids: Sequence[Sequence[int]]) -> None:
    for values, ids in zip(known or [], completion_ids, strict=False):
        if len(values) != len(ids):
            raise ConfigError(
                f"TeacherReward: {len(values)} values for {len(ids)} sampled tokens; pass one for each of `completion_ids`."
            )


def _refuse_total_failure(rows: Sequence[ScoredRow]) -> None:
    """Raise ScoringError on every process of this launch if none of them scored any completion.

    All raise together: if one raised alone, the others would wait for it forever.
    """
    errors = [row.parts.error for row in rows if row.parts.error is not None]
    every = [(len(rows), len(errors), errors[:1])]
    if dist.is_available() and dist.is_initialized():
        own, every = every[0], every * dist.get_world_size()
        dist.all_gather_object(every, own)
    total, failed = (sum(numbers) for numbers in list(zip(*every, strict=True))[:2])
    if total and failed == total:
        first = next(error for *_, some in every for error in some)
        raise ScoringError(f"none of {total} completions could be scored; the first: {first}")


def teacher_rows(
    problems: Sequence[Problem], fmt: Format, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, str | None]]:
    """One row per problem for a GRPO dataset: `prompt`, which ends with the opened explanation, and the reward's columns."""
    return [
        {
            "prompt": teacher_prompt(fmt, tokenizer, problem),
            "question": problem.question,
            "solution": problem.solution,
            "answer": problem.answer,
            "system": problem.system,
            "task": problem.task,
            "source": problem.source,
        }
        for problem in problems
    ]
