"""Gain: what a few steps of learning from explanations change in a student, next to the reward that they earned.

The reward says how well a student understands a solution *while reading* the explanation. The first reports on RLT ask for
how well it does *after learning* from it. Here both are measured for the same explanations, and compared by rank.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from rlt.config import GainConfig
from rlt.data.explanations import explanation_of
from rlt.data.rows import read_rows, write_rows
from rlt.errors import DataError
from rlt.models.loading import load_model
from rlt.outputs import Result, begin, complete_before
from rlt.results.intervals import rank_interval, spearman
from rlt.reward.students import checked_tokenizer
from rlt.terminal import quiet
from rlt.text.formats import Format, load_format
from rlt.training.examples import Example
from rlt.training.gain import heldout_rows, placebo, taught, understood
from rlt.types import AnyRow, Explanation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rated = tuple[Explanation, float]


def run(config: GainConfig) -> Result:
    """A file with a row per group of explanations, of neighbours by reward: their mean `reward`; `gain`, by how many nats
    per token the held-out solutions became more likely without any explanation; `placebo`, the same after learning from
    other questions' explanations; and `over_placebo`, the difference. Metrics: Spearman's correlation of `over_placebo`
    with `reward`, and its 95 % interval.

    Raises DataError where the scores are not those of the data, or there are too few rows.
    """
    done = complete_before("gain", config)
    if done is not None:
        return done
    fmt = load_format(config.format)
    tokenizer = checked_tokenizer(config.model, fmt, config)
    groups = grouped(config, rated(config, fmt))
    heldout = heldout_rows(config.heldout, config.heldout_limit, fmt, tokenizer)
    folder = begin("gain", config)
    student = _Student(config, load_model(config.model, config.dtype, config.trust_remote_code))
    everyone = [one for group in groups for one, _ in group]
    before, rows = understood(student.model, heldout), []
    for number, group in enumerate(tqdm(groups, "gain", unit="group", leave=False, disable=quiet())):
        items = [one for one, _ in group]
        gains = []
        for texts in ([one.text for one in items], placebos(items, everyone, config.seed)):
            student.learn(taught(fmt, tokenizer, items, texts))
            gains.append(understood(student.model, heldout) - before)
            student.forget()
        rows.append({
            "group": number, "explanations": len(group), "reward": fmean(reward for _, reward in group),
            "gain": gains[0], "placebo": gains[1], "over_placebo": gains[0] - gains[1],
        })  # fmt: skip
    write_rows(config.output, rows)
    metrics = correlation(rows) | {"before": before, "groups": len(rows)}
    print(
        f"gain: rank correlation with the reward {metrics['correlation']:.2f} [{metrics['low']:.2f}, {metrics['high']:.2f}] "
        f"over {len(rows)} groups; mean gain over placebo {metrics['over_placebo']:+.4f} nats per token", flush=True,
    )  # fmt: skip
    return folder.finish(metrics)


def correlation(rows: Sequence[AnyRow]) -> AnyRow:
    """Spearman's correlation of `over_placebo` with `reward`, its interval, and the mean gains; rows in order of reward."""
    over = [row["over_placebo"] for row in rows]
    found = spearman(over)
    low, high = rank_interval(found, len(over))
    return {"correlation": found, "low": low, "high": high, "gain": fmean(row["gain"] for row in rows),
            "over_placebo": fmean(over)}  # fmt: skip


# -- what is learned ---------------------------------------------------------------------------------------------------


def rated(config: GainConfig, fmt: Format) -> list[Rated]:
    """The explanations that have a score, with it, in order."""
    rows, scores = [*read_rows(config.data)], [row for _, row in read_rows(config.scores)]
    if len(rows) != len(scores):
        raise DataError(
            f"{config.scores}: has {len(scores)} rows, and {config.data} has {len(rows)}. Score the same file again."
        )
    found = []
    for number, ((where, row), score) in enumerate(zip(rows, scores, strict=True)):
        if "id" in row and "id" in score and row["id"] != score["id"]:
            raise DataError(f"{config.scores} row {number + 1}: is about {score['id']}, and {where} has {row['id']}.")
        value = score.get(config.by)
        if isinstance(value, int | float):
            found.append((explanation_of(row, where, str(number), fmt), float(value)))
    return found


def grouped(config: GainConfig, found: Sequence[Rated]) -> list[list[Rated]]:
    """`count` explanations, drawn by the seed, in groups of `group` that are neighbours by score, lowest first."""
    count = min(config.count, len(found)) // config.group * config.group
    if count < 4 * config.group:
        raise DataError(
            f"{config.data}: {len(found)} scored explanations make {count // config.group} groups of {config.group}; a "
            "correlation needs 4. Lower `group`, or score more."
        )
    ranked = sorted(random.Random(config.seed).sample([*found], count), key=lambda one: one[1])
    return [ranked[start : start + config.group] for start in range(0, count, config.group)]


def placebos(items: Sequence[Explanation], everyone: Sequence[Explanation], seed: int) -> list[str]:
    """For each explanation another one's text, about another question, drawn from all by the seed and the question."""
    texts = []
    for one in items:
        text = placebo(one, everyone, seed)
        if text is None:
            raise DataError("all explanations are about one question, so there is no placebo.")
        texts.append(text)
    return texts


class _Student:
    """A model that learns and forgets."""

    def __init__(self, config: GainConfig, model: PreTrainedModel) -> None:
        self.config, self.model = config, model
        self.start = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def learn(self, examples: Sequence[Example]) -> None:
        """`steps` steps of AdamW on all examples at once, on the tokens that `rlt distill` would teach."""
        device, longest = self.model.device, max(len(one.ids) for one in examples)
        ids = torch.tensor([one.ids + [0] * (longest - len(one.ids)) for one in examples], device=device)
        labels = torch.tensor([one.labels() + [-100] * (longest - len(one.ids)) for one in examples], device=device)
        mask = torch.tensor([[1] * len(one.ids) + [0] * (longest - len(one.ids)) for one in examples], device=device)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.config.learning_rate, weight_decay=0.0)
        for _ in range(self.config.steps):
            optimizer.zero_grad()
            self.model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()

    def forget(self) -> None:
        self.model.load_state_dict(self.start)
