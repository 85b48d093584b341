"""Runs and resumes TRL's trainers; writes metrics.jsonl and shows progress."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import TrainerCallback

from rlt.config import DistillConfig, WarmupConfig
from rlt.data.mixtures import Mixture
from rlt.data.rows import JsonlWriter, read_rows, write_rows
from rlt.errors import DivergedError
from rlt.models.loading import check_finite
from rlt.outputs import StageFolder, writing
from rlt.training.cards import open_repository
from rlt.training.checkpoints import WholeCheckpoints, discard_incomplete, last_checkpoint
from rlt.training.compact import speed_up_output_layer
from rlt.training.examples import Example, Text, listed
from rlt.training.lora import peft_config, save_whole
from rlt.types import JsonRow

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from trl import SFTConfig
    from trl.trainer.utils import RepeatSampler

METRICS_FILE = "metrics.jsonl"
LOG_SECONDS = 20.0  # between two states of the bar where it is written to a file


def train_supervised(
    folder: StageFolder,
    config: WarmupConfig | DistillConfig,
    arguments: SFTConfig,
    text: Text,
    examples: Sequence[Example],
    mixture: Mixture | None = None,
) -> JsonRow:
    """Metrics after TRL's SFTTrainer has learned the examples' learned positions; resumes from the last checkpoint.

    The final model is saved in the stage's folder. Its generation configuration names the end of turn, so that every
    engine stops where the model has learned to. `mixture`: order of the examples; None: the trainer's own.
    """
    from datasets import Dataset
    from trl import SFTTrainer

    class SupervisedTrainer(WholeCheckpoints, SFTTrainer):
        """TRL's trainer with checkpoints that end with a marker, and optionally the order of a mixture."""

        def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
            if mixture is None:
                return super()._get_train_sampler(train_dataset)
            return _MixtureSampler(mixture, self)

    dataset = Dataset.from_dict({"input_ids": [e.ids for e in examples], "labels": [e.labels() for e in examples]})
    trainer = SupervisedTrainer(
        model=config.model, args=arguments, train_dataset=dataset, processing_class=text.tokenizer,
        peft_config=peft_config(config.peft), callbacks=[MetricsFile(folder.path)],
    )  # fmt: skip
    generation = cast("PreTrainedModel", trainer.model).generation_config
    generation.eos_token_id = list(dict.fromkeys([*listed(generation.eos_token_id), text.turn_end]))
    return run_trainer(trainer, folder, text.tokenizer)


# -- running -------------------------------------------------------------------------------------------------------------------


def run_trainer(trainer: Trainer, folder: StageFolder, tokenizer: PreTrainedTokenizerBase) -> JsonRow:
    """Metrics of the finished training; resumes from the last complete checkpoint in the stage's folder.

    Raises ModelError for NaN or infinite weights before the first step, and RunError for a full disk.
    """
    open_repository(folder)  # a model that cannot be uploaded is refused before it is trained
    check_finite(cast("PreTrainedModel", trainer.model), str(getattr(folder.config, "model", folder.path)))
    show_progress(trainer)
    if trainer.is_world_process_zero():
        for path in discard_incomplete(folder.path):
            print(f"{path}: incomplete (the run was interrupted while writing it); removed.", flush=True)
    speed_up_output_layer()
    checkpoint = last_checkpoint(folder.path)
    outcome = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    with writing(folder.path):
        saved = save_whole(trainer, getattr(folder.config, "merge_dtype", None))
        if trainer.is_world_process_zero():
            tokenizer.save_pretrained(folder.path)
    return {"steps": trainer.state.global_step, "loss": round(float(outcome.training_loss), 6), **saved}


def show_progress(trainer: Trainer) -> None:
    """Show one bar with loss and reward in place of the bars and printed dictionaries of transformers."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Progress)


class ResumablePrompts:
    """Mixin before GRPOTrainer: prompts are tokenized as rendered, and their order can be resumed in any epoch.

    TRL's sampler draws one permutation after another from its generator; a run that resumes in its third epoch would get
    the first permutation again. Here each epoch has its own seed. `mixture`: the order for several sources.
    """

    mixture: Mixture | None = None
    state: TrainerState  # the trainer's

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, JsonRow]:
        # A rendered prompt already has its special tokens; adding them again would add a second BOS.
        return self.processing_class(text=prompts, add_special_tokens=False)["input_ids"], None, {}  # type: ignore[attr-defined]

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        return _OrderOfEpoch(super()._get_train_sampler(dataset), self)  # type: ignore[misc, attr-defined]


class _OrderOfEpoch(Sampler[int]):
    """A RepeatSampler whose permutation depends only on the seed and the epoch, or is that of a mixture."""

    def __init__(self, sampler: RepeatSampler, trainer: ResumablePrompts) -> None:
        self.sampler, self.trainer = sampler, trainer  # not trainer.state: resuming replaces that object

    def __iter__(self) -> Iterator[int]:
        epoch = int(self.trainer.state.epoch or 0)
        if self.trainer.mixture is not None:
            self.sampler.shuffle = False  # it then repeats the indices in order
            order = self.trainer.mixture.order(epoch)
            return (order[number] for number in self.sampler)
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed((self.sampler.seed or 0) + epoch)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class _MixtureSampler(Sampler[int]):
    """The order of a mixture, for a trainer that draws each example once."""

    def __init__(self, mixture: Mixture, trainer: Trainer) -> None:
        self.mixture, self.trainer = mixture, trainer

    def __iter__(self) -> Iterator[int]:
        return iter(self.mixture.order(int(self.trainer.state.epoch or 0)))

    def __len__(self) -> int:
        return sum(self.mixture.draws)


class MetricsFile(TrainerCallback):
    """Writes the trainer's logs to `metrics.jsonl`, one row per log, with the step; raises DivergedError for a NaN loss.

    A run that resumes from a checkpoint first drops the rows of later steps, also from the files in `also`: the files then
    equal those of an uninterrupted run.
    """

    def __init__(self, folder: Path, also: Sequence[str] = ()) -> None:
        self.path = Path(folder) / METRICS_FILE
        self.files = [self.path, *(Path(folder) / name for name in also)]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if not state.is_world_process_zero:
            return
        for path in self.files:
            # Metrics are written after their step, samples during it.
            last = state.global_step if path == self.path else state.global_step - 1
            JsonlWriter(path).close()  # removes a half-written last line
            write_rows(path, (row for _, row in read_rows(path) if cast(int, row["step"]) <= last))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if logs and not math.isfinite(logs.get("loss", 0.0)):
            raise DivergedError(
                f"step {state.global_step}: the loss is {logs['loss']}, so the weights are no longer usable. Lower "
                "`trainer.learning_rate`, or set `dtype: float32`."
            )
        if state.is_world_process_zero and logs:
            with JsonlWriter(self.path) as file:
                file.write([{"step": state.global_step, **logs}])


class _Progress(TrainerCallback):
    """A progress bar with the time left, the loss and the reward."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True, leave=False,
                mininterval=0.1 if sys.stderr.isatty() else LOG_SECONDS, miniters=1,
            )  # fmt: skip

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if self.bar is not None and logs:
            shown = {key: f"{logs[key]:.3g}" for key in ("loss", "reward") if key in logs}
            self.bar.set_postfix(shown, refresh=sys.stderr.isatty())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
