"""Pretrain a tiny model from scratch on a synthetic task."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import Field
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from rlt.config import Config, PretrainConfig, validate
from rlt.data.rows import read_rows
from rlt.models.loading import load_tokenizer
from rlt.models.tiny import TOKENIZERS, tiny_llama
from rlt.outputs import Result, begin, writing
from rlt.tasks import GeneratedTask, load_generated_task
from rlt.text.formats import load_format, render_student, render_teacher
from rlt.training.arguments import trainer_arguments
from rlt.training.cards import finish_model
from rlt.training.examples import Example, examples_of, taught_to_student, taught_to_teacher, turn_end
from rlt.training.loop import MetricsFile, show_progress
from rlt.types import JsonRow


class Part(Config):
    """Problems of one task in a phase."""

    options: JsonRow = {}
    """Options of the task's generator."""
    experts: str = "careful"
    """Mixture of experts that explains the problems."""
    problems: int = Field(20000, ge=1)
    """Number of distinct problems."""


class Phase(Part):
    """One phase of the curriculum. It ends at a loss, because a fixed number of steps fails on some seeds."""

    also: dict[str, Part] = {}
    """Other tasks to mix in, by name; the tokenizer includes their words."""
    teacher_share: float = Field(0.0, ge=0, le=1)
    """Share of the problems in the teacher's format: solution first, then explanation."""
    batch_size: int = Field(64, ge=1)
    """Problems per step."""
    learning_rate: float = Field(5e-3, gt=0)
    """Constant after 10 steps of warm-up."""
    until_loss: float = Field(0.0, ge=0)
    """Stop when the mean loss of the last 20 steps, in nats per token, is below this."""
    max_steps: int = Field(1000, ge=1)
    """Maximum number of steps."""


def run(config: PretrainConfig) -> Result:
    """The model's folder; metrics: loss and steps of each phase."""
    fmt = load_format(config.format)
    task = load_generated_task(config.task)
    phases = [validate(Phase, values, f"phases[{i}]") for i, values in enumerate(config.phases)]
    tasks = {name: load_generated_task(name) for phase in phases for name in phase.also} | {config.task: task}
    folder = begin("pretrain", config)
    if folder.result:
        return folder.result
    excluded = [str(row["question"]) for path in config.exclude for _, row in read_rows(path)]
    tokenizer = TOKENIZERS[config.tokenizer](_words(task, tasks), fmt)
    model = tiny_llama(tokenizer, config.seed, config.model)
    numbers: JsonRow = {"parameters": sum(p.numel() for p in model.parameters())}
    for number, phase in enumerate(phases, 1):
        rng = random.Random(f"base {config.seed} {number}")
        rendered, learned = [], []
        for name, part in {config.task: phase, **phase.also}.items():
            for problem in tasks[name].generate(part.problems, 1000 * config.seed + number, part.options, excluded):
                written = fmt.as_written(tasks[name].explain(problem, part.experts, rng))
                as_teacher = rng.random() < phase.teacher_share
                text = (render_teacher if as_teacher else render_student)(fmt, tokenizer, problem, written)
                rendered.append(text)
                learned.append(taught_to_teacher(fmt, text) if as_teacher else taught_to_student(fmt, text))
        examples = examples_of(tokenizer, rendered, learned, turn_end(fmt, tokenizer))
        stop = StopAtLoss(phase.until_loss)
        _learn(folder.path / f"phase-{number}", config, model, examples, phase, stop)
        numbers |= {f"phase_{number}_loss": stop.loss, f"phase_{number}_steps": stop.steps}
    with writing(folder.path):
        model.save_pretrained(folder.path)
        tokenizer.save_pretrained(folder.path)
    load_tokenizer(str(folder.path))  # what is saved must load
    return finish_model(folder, None, f"generated: {', '.join(tasks)}", numbers)


def _words(task: GeneratedTask, others: dict[str, GeneratedTask]) -> list[str]:
    """The words of `task`, then those of the others."""
    return list(dict.fromkeys(word for one in (task, *others.values()) for word in one.vocabulary()))


def _learn(
    folder: Path,
    config: PretrainConfig,
    model: PreTrainedModel,
    examples: list[Example],
    phase: Phase,
    stop: StopAtLoss,
) -> None:
    """One phase with transformers' plain Trainer: for a tiny vocabulary, TRL's chunked loss costs a third more."""
    from transformers import Trainer, TrainingArguments

    defaults = {
        "per_device_train_batch_size": phase.batch_size, "learning_rate": phase.learning_rate,
        "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10, "max_steps": phase.max_steps,
        "logging_steps": 20, "save_strategy": "no", "remove_unused_columns": False,
    }  # fmt: skip
    config = config.model_copy(update={"output": folder})
    arguments = trainer_arguments(TrainingArguments, "pretrain", config, config.trainer, defaults)
    rows = [{"input_ids": example.ids, "labels": example.labels()} for example in examples]
    trainer = Trainer(
        model, arguments, train_dataset=rows, data_collator=_collate, callbacks=[MetricsFile(folder), stop]
    )
    show_progress(trainer)
    trainer.train()


def _collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    # Padded on the right: with causal attention no real token sees it, so no mask is needed.
    width = max(len(row["input_ids"]) for row in rows)
    return {
        name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows])
        for name, fill in (("input_ids", 0), ("labels", -100))
    }


class StopAtLoss(TrainerCallback):
    """Ends training when the logged loss is below a threshold; keeps the last loss and step."""

    def __init__(self, threshold: float) -> None:
        self.threshold, self.loss, self.steps = threshold, float("inf"), 0

    def on_log(
        self,
        args: object,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if logs and "loss" in logs:
            self.loss, self.steps = round(float(logs["loss"]), 5), state.global_step
            control.should_training_stop = self.loss < self.threshold
