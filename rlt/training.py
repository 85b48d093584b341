"""What the training stages share: text, TRL's arguments, examples, metrics.jsonl, running and resuming."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from transformers import TrainerCallback

from rlt.adapters import save_whole
from rlt.cards import UPLOAD, open_repository
from rlt.checkpoints import WholeCheckpoints, discard_incomplete, last_checkpoint
from rlt.config import (
    ColdstartConfig,
    DataConfig,
    DistillConfig,
    ModelOptions,
    StageConfig,
    TrainConfig,
    WarmupConfig,
)
from rlt.data import Problems, load_problems
from rlt.errors import ConfigError, DataError, ModelError
from rlt.formats import Format, Rendered, check_template, load_format, render_student
from rlt.models import context_length, load_config, load_tokenizer
from rlt.rows import JsonlWriter, read_rows, write_rows
from rlt.runs import Result, StageFolder, begin, read_state
from rlt.sequences import tokenize
from rlt.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainerState, TrainingArguments

METRICS_FILE = "metrics.jsonl"
Item = TypeVar("Item")


# -- the beginning of a stage --------------------------------------------------------------------------------------------------


def complete_before(stage: str, config: StageConfig) -> Result | None:
    """The stage's Result where it is complete already, so that nothing has to be read again; else None."""
    state = read_state(config.output)
    return begin(stage, config).result if state is not None and state.get("complete") else None


@dataclass(frozen=True)
class Text:
    """What a stage reads before any weights: its problems, and how they become tokens of its model."""

    fmt: Format
    problems: Problems
    tokenizer: PreTrainedTokenizerBase
    context: int | None
    """Tokens that a text may have for the model; None where its configuration does not say."""
    turn_end: int
    """Id of the token with which the chat template closes the assistant's turn."""


def read_text(
    stage: str, config: WarmupConfig | TrainConfig | DistillConfig | ColdstartConfig, need: tuple[str, ...] = ()
) -> Text:
    """The stage's Text; says in one line how many problems there are. Raises DataError, ModelError or ConfigError."""
    fmt = load_format(config.format)
    problems = load_problems(config.data, fmt, need=need)
    print(f"{stage}: {config.data.path}: {problems.summary()}", flush=True)
    context = context_length(load_config(config.model, config.trust_remote_code))
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    check_template(fmt, tokenizer)
    return Text(fmt, problems, tokenizer, context, turn_end(fmt, tokenizer))


def turn_end(fmt: Format, tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that closes the assistant's turn in the tokenizer's chat template, often but not always its eos.

    Raises ModelError where nothing but text closes it: a model could not learn to stop.
    """
    probe = render_student(
        fmt, tokenizer, Problem(id="probe", question="2 + 3?", solution="5."), fmt.thought_body("Add.")
    )
    (tokens,) = tokenize(tokenizer, [probe])
    _, end = taught_to_student(fmt, probe)
    special = {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}
    for token, (start, stop) in zip(tokens.ids, tokens.offsets, strict=True):
        if start >= end and token in special:
            return token
        if start >= end and probe.text[start:stop].strip():
            break
    raise ModelError(
        f"{tokenizer.name_or_path}: its chat template closes the assistant's turn with {probe.text[end:]!r}, in which no "
        "special token comes first; a model could not learn to stop. Use a template that ends a turn with the eos token."
    )


def end_ids(config: TrainConfig | ColdstartConfig, text: Text) -> set[int]:
    """Ids of the tokens at which sampling stops: the model's generation configuration's, and the tokenizer's eos.

    Raises ModelError where the end of a turn is not among them: every completion would run into the length limit.
    """
    from transformers import GenerationConfig

    try:
        configured = GenerationConfig.from_pretrained(config.model).eos_token_id
    except OSError:  # no generation_config.json
        configured = load_config(config.model, config.trust_remote_code).get_text_config().eos_token_id
    ids = {*_listed(configured), *_listed(text.tokenizer.eos_token_id)}
    if text.turn_end not in ids:
        token = text.tokenizer.convert_ids_to_tokens(text.turn_end)
        raise ModelError(
            f"{config.model}: its chat template closes a turn with {token}, but sampling does not stop there. Start from a "
            f"model that `rlt warmup` or `rlt distill` made, or add {text.turn_end} to `eos_token_id` in its "
            "generation_config.json."
        )
    return ids


def _listed(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


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


# -- what fits the context -----------------------------------------------------------------------------------------------------


def fit_prompts(
    problems: Sequence[Problem],
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    completion: int,
    context: int | None,
    data: DataConfig,
) -> tuple[list[int], list[str]]:
    """`(kept, dropped)`: indices of the problems whose prompt leaves room for `completion` tokens, and a line for each other.

    `context`: tokens that prompt and completion may have together (None: any number). Raises DataError at the first
    problem without room unless `data.on_invalid` is `skip`, and if none is left.
    """
    encoded = tokenizer(list(prompts), add_special_tokens=False, verbose=False)["input_ids"]
    items = ((problem.id, len(ids), i) for i, (problem, ids) in enumerate(zip(problems, encoded, strict=True)))
    return _keep_short(
        items, None if context is None else context - completion, data,
        lambda length: f"its prompt has {length} tokens, with {completion} of completion over the context of {context}",
        "allow fewer tokens of completion",
    )  # fmt: skip


def fit(
    problems: Sequence[Problem], examples: Sequence[Example], limit: int | None, data: DataConfig
) -> tuple[list[Example], list[str]]:
    """`(kept, dropped)`: the problems' examples of at most `limit` tokens, and a line for each longer one, which is never cut.

    Raises DataError at the first too long one unless `data.on_invalid` is `skip`, and if none is left.
    """
    items = ((problem.id, len(example.ids), example) for problem, example in zip(problems, examples, strict=True))
    return _keep_short(
        items,
        limit,
        data,
        lambda length: f"its text has {length} tokens, over the limit of {limit}",
        "raise `max_length`",
    )


def _keep_short(
    items: Iterable[tuple[str, int, Item]], limit: int | None, data: DataConfig, line: Callable[[int], str], fix: str
) -> tuple[list[Item], list[str]]:
    """Of items with the id of their problem in `data` and a length: those within `limit`, and a line for each other one."""
    kept: list[Item] = []
    dropped: list[str] = []
    for name, length, item in items:
        if limit is None or length <= limit:
            kept.append(item)
            continue
        dropped.append(f"{data.path}: problem {name}: {line(length)}")
        if data.on_invalid == "error":
            raise DataError(f"{dropped[0]}. Set `data.on_invalid: skip` to leave it out, or {fix}.")
    if not kept:
        raise DataError(
            f"{data.path}: no problem is short enough; the first: {dropped[0] if dropped else 'there is none'}"
        )
    if dropped:
        print(
            f"{len(dropped)} of {len(dropped) + len(kept)} rows dropped as too long; the first: {dropped[0]}",
            flush=True,
        )
    return kept, dropped


def sampling_context(arguments: Any, context: int | None) -> int | None:
    """Tokens that prompt and completion may have together for GRPO: the model's context, or less where vLLM has less."""
    limits = [context, arguments.vllm_max_model_length if arguments.use_vllm else None]
    return min((limit for limit in limits if limit is not None), default=None)


# -- supervised examples -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids `(T,)` of one text and the positions whose tokens are learned; all others are context."""

    ids: list[int]
    learned: range
    explanation_tokens: int = 0
    """How many of the tokens are the explanation's."""

    def labels(self) -> list[int]:
        """`(T,)` ids at learned positions, -100 elsewhere."""
        return [token if i in self.learned else -100 for i, token in enumerate(self.ids)]


def examples_of(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Rendered],
    learned: Sequence[tuple[int, int]],
    turn_end: int,
) -> list[Example]:
    """One example a text, in order; `learned` are the characters to learn, and the turn's end after them is learned too."""
    return [
        Example(tokens.ids, learned_span(tokens.ids, tokens.offsets, *span, turn_end), len(tokens.spans["explanation"]))
        for tokens, span in zip(tokenize(tokenizer, texts), learned, strict=True)
    ]


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


def learned_span(ids: Sequence[int], offsets: Sequence[tuple[int, int]], start: int, end: int, turn_end: int) -> range:
    """Positions of the tokens that cover any character of `[start, end)`, and on to the `turn_end` token that follows.

    Without that token a model never learns to stop. A template may have white space before it, which is learned too.
    """
    first = next(i for i, (_, stop) in enumerate(offsets) if stop > start)
    last = max(i for i, (begin, _) in enumerate(offsets) if begin < end)
    return range(first, ids.index(turn_end, last + 1) + 1)


def supervised_arguments(stage: str, config: WarmupConfig | DistillConfig, defaults: Mapping[str, Any]) -> Any:
    """TRL's SFTConfig for a stage. It saves a checkpoint every 100 steps, a multiple of the steps between logs."""
    from trl import SFTConfig

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
    generation.eos_token_id = list(dict.fromkeys([*_listed(generation.eos_token_id), text.turn_end]))
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
