"""What the training stages share: TRL's arguments, metrics.jsonl, running and resuming."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from rlt.adapters import save_whole
from rlt.cards import UPLOAD, open_repository
from rlt.checkpoints import WholeCheckpoints, discard_incomplete, last_checkpoint
from rlt.config import DistillConfig, ModelOptions, StageConfig, WarmupConfig
from rlt.errors import ConfigError
from rlt.examples import Example, Text, listed
from rlt.rows import JsonlWriter, read_rows, write_rows
from rlt.runs import Result, StageFolder, begin, read_state

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainerState, TrainingArguments

METRICS_FILE = "metrics.jsonl"


def complete_before(stage: str, config: StageConfig) -> Result | None:
    """The stage's Result where it is complete already, so that nothing has to be read again; else None."""
    state = read_state(config.output)
    return begin(stage, config).result if state is not None and state.get("complete") else None


# -- arguments ---------------------------------------------------------------------------------------------------------------


# Keys of `trainer` that would say what another key says, or what rlt promises -> what to do instead.
_OURS = {
    "output_dir": "the stage's `output` says where",
    "save_only_model": "from such a checkpoint no run could go on",
    "hub_token": "it would stand in the run's files; set the environment variable HF_TOKEN",
}
_OURS_IN_MODEL = {
    "dtype": "the stage's own `dtype` says it",
    "torch_dtype": "the stage's own `dtype` says it",
    "trust_remote_code": "the stage's own `trust_remote_code` says it",
    "use_safetensors": "weights are read from safetensors only",
}


def trainer_arguments(
    kind: type, stage: str, config: StageConfig, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Any:
    """TRL's `kind` (SFTConfig, GRPOConfig) from the recipe's `trainer` options, as they are, over `defaults` of the stage.

    rlt sets only where the output goes, the seed, and what a CPU needs (no bfloat16, no checkpointing of activations).
    `model_init_kwargs` are merged key by key. `push_to_hub` is rlt's: it uploads the finished folder, with its card.
    Raises ConfigError for an option that TRL does not have, of another type, or that TRL refuses.
    """
    import torch

    _check_options(kind, stage, options)
    ours: dict[str, Any] = {
        "seed": config.seed, "report_to": "none", "disable_tqdm": os.environ.get("RLT_QUIET") == "1",
        "save_total_limit": 2, **defaults,
    }  # fmt: skip
    if not torch.cuda.is_available():
        # Not on a CPU: bfloat16 and checkpointed activations are TRL's defaults, and pinned memory is for GPUs.
        ours |= {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    merged = {**ours, **{key: value for key, value in options.items() if key not in UPLOAD}}
    if "model_init_kwargs" in options:
        merged["model_init_kwargs"] = {**ours.get("model_init_kwargs", {}), **(options["model_init_kwargs"] or {})}
    try:
        return kind(output_dir=str(config.output), **merged)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{stage}: `trainer`: {error}") from error


def _check_options(kind: type, stage: str, options: Mapping[str, Any]) -> None:
    from pydantic import TypeAdapter, ValidationError

    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    for name, value in options.items():
        if name in _OURS:
            raise ConfigError(f"{stage}: `trainer.{name}`: {_OURS[name]}. Leave it out.")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=2)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise ConfigError(f"{stage}: `trainer.{name}` is no option of {kind.__name__}{hint}.")
        try:
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = inspect.formatannotation(hints[name])
            raise ConfigError(f"{stage}: `trainer.{name}`: {value!r} is of another type than {wanted}.") from error
    if options.get("hub_strategy", "end") != "end":
        raise ConfigError(f"{stage}: `trainer.hub_strategy`: rlt uploads what is finished. Leave it out.")
    model = options.get("model_init_kwargs") or {}
    if not isinstance(model, dict):
        raise ConfigError(f"{stage}: `trainer.model_init_kwargs`: must be a mapping, not {model!r}.")
    for name in model.keys() & _OURS_IN_MODEL:
        raise ConfigError(f"{stage}: `trainer.model_init_kwargs.{name}`: {_OURS_IN_MODEL[name]}. Leave it out.")


def loading(options: ModelOptions) -> dict[str, Any]:
    """The trainer's `model_init_kwargs`: float32 weights where `dtype` is `auto`, because small updates vanish in bfloat16."""
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


def check_saving(stage: str, arguments: Any) -> None:
    """Raise ConfigError if GRPO would save a checkpoint between the steps of one generation.

    Completions are generated for several steps at once; from a checkpoint between those steps a run could not go on as if
    it had never been cut off.
    """
    cycle = arguments.steps_per_generation * arguments.num_iterations / arguments.gradient_accumulation_steps
    strategy, every = str(getattr(arguments.save_strategy, "value", arguments.save_strategy)), arguments.save_steps
    if strategy == "no" or cycle <= 1:
        return
    wanted = (
        f"a multiple of {cycle:g}, the steps that one generation serves; else a resumed run would differ from one never"
    )
    if strategy != "steps":
        raise ConfigError(
            f"{stage}: `trainer.save_strategy` {strategy} may save between the steps of one generation. Set it to steps, and "
            f"`trainer.save_steps` to {wanted} cut off."
        )
    if every < 1:
        every = math.ceil(arguments.max_steps * every) if arguments.max_steps > 0 else math.nan
    if every % cycle != 0:
        raise ConfigError(f"{stage}: `trainer.save_steps` {arguments.save_steps} must be {wanted} cut off.")


def sampling_context(arguments: Any, context: int | None) -> int | None:
    """Tokens that prompt and completion may have together for GRPO: the model's context, or less where vLLM has less."""
    limits = [context, arguments.vllm_max_model_length if arguments.use_vllm else None]
    return min((limit for limit in limits if limit is not None), default=None)


def supervised_arguments(stage: str, config: WarmupConfig | DistillConfig, defaults: Mapping[str, Any]) -> Any:
    """TRL's SFTConfig for a stage. It saves a checkpoint every 100 steps, a multiple of the steps between logs."""
    from trl import SFTConfig

    peft_config(config.peft)  # what is wrong with it is said before anything is begun
    # Nothing is cut to a length: `fit` refused or dropped what is too long.
    ours = {"max_length": None, "save_strategy": "steps", "save_steps": 100, "logging_steps": 10, **loading(config)}
    return trainer_arguments(SFTConfig, stage, config, config.trainer, {**ours, **defaults})


def train_supervised(
    folder: StageFolder, config: WarmupConfig | DistillConfig, arguments: Any, text: Text, examples: Sequence[Example]
) -> dict[str, Any]:
    """Metrics after TRL's SFTTrainer learned the examples' learned positions; goes on from the last checkpoint.

    The final model lies in the stage's folder. Its generation configuration names the end of a turn, so that every engine
    stops where the model has learned to.
    """
    from datasets import Dataset
    from trl import SFTTrainer

    class SupervisedTrainer(WholeCheckpoints, SFTTrainer):
        """TRL's trainer with checkpoints that end with a marker."""

    dataset = Dataset.from_dict({"input_ids": [e.ids for e in examples], "labels": [e.labels() for e in examples]})
    trainer = SupervisedTrainer(
        model=config.model, args=arguments, train_dataset=dataset, processing_class=text.tokenizer,
        peft_config=peft_config(config.peft), callbacks=[MetricsFile(folder.path)],
    )  # fmt: skip
    generation: Any = trainer.model.generation_config  # type: ignore[union-attr]
    generation.eos_token_id = list(dict.fromkeys([*listed(generation.eos_token_id), text.turn_end]))
    return run_trainer(trainer, folder, text.tokenizer)


# -- running -------------------------------------------------------------------------------------------------------------------


def run_trainer(trainer: Trainer, folder: StageFolder, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Numbers of the finished training; from the last complete checkpoint in the stage's folder where there is one."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    open_repository(folder)  # where the model cannot be uploaded, that is said before it is trained
    trainer.remove_callback(PrinterCallback)
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Progress)
    if trainer.is_world_process_zero():
        for path in discard_incomplete(folder.path):
            print(f"{path}: was cut off while it was written, and is removed.", flush=True)
    checkpoint = last_checkpoint(folder.path)
    outcome = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    save_whole(trainer)
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(folder.path)
    loss = _mean_loss(trainer.state.log_history, float(outcome.training_loss))
    return {"steps": trainer.state.global_step, "loss": round(loss, 6)}


def _mean_loss(history: Sequence[Mapping[str, Any]], of_this_start: float) -> float:
    """Mean loss of all logged steps, also those before the run was cut off; transformers has that of the last start's."""
    total, last = 0.0, 0
    for row in history:
        if "loss" in row:
            total, last = total + row["loss"] * (row["step"] - last), row["step"]
    return total / last if last else of_this_start


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
        if not state.is_world_process_zero:
            return
        for path in self.files:
            # `metrics.jsonl` counts steps done, samples are written before their step is done.
            last = state.global_step if path == self.path else state.global_step - 1
            JsonlWriter(path).close()  # cuts off a line that was being written
            write_rows(path, (row for _, row in read_rows(path) if row["step"] <= last))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and logs:
            with JsonlWriter(self.path) as file:
                file.write([{"step": state.global_step, **logs}])


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
