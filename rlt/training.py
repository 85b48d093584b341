"""What the training stages share: TRL's arguments, metrics.jsonl, resuming, saving a model folder with its card."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from rlt.adapters import save_whole
from rlt.config import DataConfig, ModelOptions
from rlt.errors import ConfigError, DataError
from rlt.formats import Format, Rendered
from rlt.rows import read_rows
from rlt.runs import StageFolder, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainerState, TrainingArguments

METRICS_FILE = "metrics.jsonl"


# -- arguments ---------------------------------------------------------------------------------------------------------------


def trainer_arguments(kind: type, folder: StageFolder, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """TRL's `kind` (SFTConfig, GRPOConfig) from the recipe's `trainer` options, as they are, over `defaults` of the stage.

    rlt sets only where the output goes, the seed, and what a CPU needs (no bfloat16, no checkpointing of activations).
    Raises ConfigError for an option that TRL does not have or refuses.
    """
    import torch

    ours: dict[str, Any] = {
        "seed": folder.config.seed, "report_to": "none", "disable_tqdm": os.environ.get("RLT_QUIET") == "1",
        "save_total_limit": 2, **defaults,
    }  # fmt: skip
    if not torch.cuda.is_available():
        # Not on a CPU: bfloat16 and checkpointed activations are TRL's defaults, and pinned memory is for GPUs.
        ours |= {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    try:
        return kind(output_dir=str(folder.path), **{**ours, **options})
    except TypeError as error:
        name = str(error).rpartition("argument ")[2].strip("'")
        raise ConfigError(f"{folder.stage}: `trainer.{name}` is no option of TRL's {kind.__name__}.") from error
    except ValueError as error:
        raise ConfigError(f"{folder.stage}: `trainer`: {error}") from error


def loading(options: ModelOptions | None) -> dict[str, Any]:
    """The trainer's `model_init_kwargs`: float32 weights where `dtype` is `auto`, because small updates vanish in bfloat16."""
    if options is None:
        return {}
    dtype = "float32" if options.dtype == "auto" else options.dtype
    return {
        "model_init_kwargs": {"dtype": dtype, "use_safetensors": True, "trust_remote_code": options.trust_remote_code}
    }


def peft_config(options: Mapping[str, Any] | None) -> Any:
    """peft.LoraConfig from the recipe's `peft` options, or None. Raises DependencyError where peft is missing."""
    if options is None:
        return None
    from rlt.errors import DependencyError

    try:
        from peft import LoraConfig
    except ImportError as error:
        raise DependencyError("LoRA needs peft: pip install 'rlt[peft]'") from error
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **options})
    except TypeError as error:
        raise ConfigError(f"`peft`: {error}") from error


# -- supervised examples -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids `(T,)` of one text and the positions whose tokens are learned; all others are context."""

    ids: list[int]
    learned: range

    def labels(self) -> list[int]:
        """`(T,)` ids at learned positions, -100 elsewhere."""
        return [token if i in self.learned else -100 for i, token in enumerate(self.ids)]


def taught_to_teacher(fmt: Format, text: Rendered) -> tuple[int, int]:
    """The characters that a teacher learns: the explanation (not the padding its prompt ends with) and its closing tag."""
    start, end = text.spans["explanation"]
    return start + len(fmt.padding), end + len(fmt.tags.explanation.close)


def taught_to_student(fmt: Format, text: Rendered) -> tuple[int, int]:
    """The characters that a student learns: its whole response, from the thought's opening tag to the solution's closing."""
    return (
        text.spans["explanation"][0] - len(fmt.tags.thought.open),
        text.spans["solution"][1] + len(fmt.tags.solution.close),
    )


def learned_span(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], start: int, end: int, tokenizer: PreTrainedTokenizerBase
) -> range:
    """Positions of the tokens that cover any character of `[start, end)`, and the end-of-turn token right after them.

    Without that token a model never learns to stop.
    """
    first = next(i for i, (_, stop) in enumerate(offsets) if stop > start)
    last = max(i for i, (begin, _) in enumerate(offsets) if begin < end)
    if last + 1 < len(ids) and ids[last + 1] in end_ids(tokenizer):
        last += 1
    return range(first, last + 1)


def end_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of the tokens that end an assistant's turn: the tokenizer's eos."""
    return {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()


def fit(
    examples: Iterable[tuple[str, Example]], limit: int | None, data: DataConfig
) -> tuple[list[Example], list[str]]:
    """`(examples, dropped)`: those of at most `limit` tokens, and a line for each longer one, which is never cut.

    `examples` come with the id of their problem in `data`. Raises DataError at the first too long one unless
    `data.on_invalid` is `skip`.
    """
    kept, dropped = [], []
    for name, example in examples:
        if limit is not None and len(example.ids) > limit:
            line = f"{data.path}: problem {name}: its text has {len(example.ids)} tokens, over the limit of {limit}"
            if data.on_invalid == "error":
                raise DataError(f"{line}. Set `data.on_invalid: skip` to leave it out, or raise `max_length`.")
            dropped.append(line)
            continue
        kept.append(example)
    if not kept:
        raise DataError(
            f"no example of at most {limit} tokens is left; the first: {dropped[0] if dropped else 'none at all'}"
        )
    if dropped:
        print(
            f"{len(dropped)} of {len(dropped) + len(kept)} rows dropped: longer than {limit} tokens; the first: {dropped[0]}"
        )
    return kept, dropped


def train_supervised(
    folder: StageFolder,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    options: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    peft: Mapping[str, Any] | None = None,
    load: ModelOptions | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Metrics after TRL's SFTTrainer learned the examples' learned positions; goes on from the last checkpoint.

    `model` is a path, loaded as `load` says, or a model. The final model lies in the stage's folder.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    # Nothing is cut to a length here: `fit` refused or dropped what is too long.
    arguments = trainer_arguments(
        SFTConfig, folder, options, {"max_length": None, "save_strategy": "no", **loading(load), **defaults}
    )
    dataset = Dataset.from_dict({"input_ids": [e.ids for e in examples], "labels": [e.labels() for e in examples]})
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer, peft_config=peft_config(peft),
        callbacks=[MetricsFile(folder.path), *callbacks],
    )  # fmt: skip
    return run_trainer(trainer, folder, tokenizer)


# -- running -------------------------------------------------------------------------------------------------------------------


def run_trainer(trainer: Trainer, folder: StageFolder, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Numbers of the finished training; from the last checkpoint in the stage's folder where there is one."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Progress)
    checkpoint = get_last_checkpoint(str(folder.path))
    trainer.add_callback(_TokenCount(trainer, checkpoint))
    outcome = trainer.train(resume_from_checkpoint=checkpoint)
    save_whole(trainer)
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(folder.path)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    return {"steps": trainer.state.global_step, "loss": round(float(outcome.training_loss), 6)}


class ResumablePrompts:
    """Mixed into GRPOTrainer: rendered prompts stay as they are, and their order can be resumed in any epoch.

    TRL's sampler draws one permutation after another from its generator; a run that goes on in its third epoch would get
    the first permutation again. Here each epoch has its own seed.
    """

    def _tokenize_prompts(self, prompts: list[str]) -> Any:
        # A rendered prompt already has every special token in it; adding them again would put a second BOS in front.
        return self.processing_class(text=prompts, add_special_tokens=False)["input_ids"], None, {}  # type: ignore[attr-defined]

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return _OrderOfEpoch(super()._get_train_sampler(dataset), self)  # type: ignore[misc, attr-defined]


class _OrderOfEpoch:
    """A RepeatSampler whose permutation depends on the seed and the epoch alone."""

    def __init__(self, sampler: Any, trainer: Any) -> None:
        self.sampler, self.trainer = sampler, trainer  # not its state: that is another object after a resume

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed + int(self.trainer.state.epoch or 0))
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class MetricsFile(TrainerCallback):
    """Writes what the trainer logs to `metrics.jsonl`, one row a log, with the step.

    When a run goes on from a checkpoint, rows of later steps are dropped first (from `also`, too): the files read as if
    the run had never been cut off.
    """

    def __init__(self, folder: Path, also: Sequence[str] = ()) -> None:
        self.path = Path(folder) / METRICS_FILE
        self.files = [self.path, *(Path(folder) / name for name in also)]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            # `metrics.jsonl` counts steps done, samples are written before their step is done.
            for path, last in zip(
                self.files, [state.global_step, *[state.global_step - 1] * len(self.files)], strict=False
            ):
                rows = [row for _, row in read_rows(path)] if path.exists() else []
                write_text(
                    path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row["step"] <= last)
                )

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class _TokenCount(TrainerCallback):
    """Keeps TRL's count of tokens trained on in the checkpoint; TRL starts it at zero again when a run goes on."""

    NAME = "trained_tokens.json"

    def __init__(self, trainer: Any, checkpoint: str | None) -> None:
        self.trainer = trainer
        if checkpoint is not None and (Path(checkpoint) / self.NAME).is_file():
            trainer._total_train_tokens = json.loads((Path(checkpoint) / self.NAME).read_text())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_text(
                Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.NAME,
                json.dumps(self.trainer._total_train_tokens),
            )


class _Progress(TrainerCallback):
    """A bar with time left and the two numbers one watches, instead of a dictionary a log."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from tqdm import tqdm

        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True, leave=False
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.bar is not None and logs:
            shown = {key: f"{float(logs[key]):.3g}" for key in ("loss", "reward") if key in logs}
            self.bar.set_postfix(shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
