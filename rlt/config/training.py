"""Stages that train a model, with the trainer's options passed through."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rlt.config.base import Config, Paths, is_url
from rlt.config.data import Data
from rlt.config.engines import FormatOptions, ModelOptions
from rlt.config.reward import SELF, RewardOptions, StudentOptions
from rlt.config.stage import StageConfig
from rlt.types import JsonRow


class TrainerOptions(Config):
    """Options of the trainer."""

    trainer: JsonRow = {}
    """Options of TRL's trainer (SFTConfig or GRPOConfig), passed through; `model_init_kwargs` are merged with rlt's own.
    `push_to_hub` uploads the finished folder with its card, using the token in the environment."""


class TrainerPassthrough(TrainerOptions):
    """Options of the trainer, of LoRA and of accelerate."""

    peft: JsonRow | None = None
    """Arguments of peft.LoraConfig to train LoRA adapters; null trains all weights."""
    merge_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the saved weights after LoRA is merged; null: as trained. Rounding to 16 bits loses part of a small update;
    the stage prints how much."""
    launch: str | None = None
    """accelerate configuration for training: `single`, `ddp`, `fsdp2`, `deepspeed-zero3`, `deepspeed-zero3-offload`, or
    a YAML file; null: this process alone."""


class SamplerOptions(Config):
    """Who samples from the policy in training."""

    sampler: Literal["auto", "engine", "generate"] = "auto"
    """Who samples without vLLM: rlt's `engine`, which reads a group's prompt once, drops finished rows and, for a teacher in
    float32, saves the extra pass of r_kl, or transformers' `generate`. They draw different samples. `auto`: the engine,
    unless the policy is sharded or `trainer` has an option that only `generate` knows, such as `min_p`."""


class PretrainConfig(StageConfig, FormatOptions, TrainerOptions):
    """Pretrain a tiny model from scratch on a synthetic task."""

    task: str
    """Task that supplies the problems and the vocabulary."""
    exclude: Paths = []
    """Files of held-out problems; their questions are not trained on."""
    tokenizer: Literal["words", "bpe"] = "words"
    """`words`: one token per word of the task. `bpe`: byte-level, as in GPT-2's family, for a student of another family."""
    model: JsonRow = {}
    """Shape of the model: arguments of transformers' LlamaConfig."""
    phases: list[JsonRow] = []
    """Curriculum, a list of phases with `options` of the generator, `experts`, `problems`, `also` (other tasks to mix in:
    name -> the same three keys), `teacher_share`, `batch_size`, `learning_rate`, `until_loss` and `max_steps`."""


class WarmupConfig(StageConfig, ModelOptions, FormatOptions, TrainerPassthrough):
    """Warm up the teacher by supervised training: question + solution -> explanation."""

    model: str
    """Folder or hub name of the model to start from."""
    data: Data
    """Problems with explanations."""
    max_length: int | None = Field(None, ge=1)
    """Maximum number of tokens per row; null: the model's context. `data.on_invalid` decides about longer rows."""


class GainRewardConfig(Config):
    """What the student would gain from learning the explanation, not only from reading it: an experiment."""

    heldout: Path
    """File of problems whose solutions should become more likely, without any explanation."""
    heldout_limit: int = Field(64, ge=1)
    """Use only the first N of these problems."""
    weight: float = 1.0
    """Weight of the gain in the reward: nats per token of held-out solutions, per unit of learning rate, to first order,
    less the gain from another question's explanation. Added after `floor`."""


class TrainConfig(
    StageConfig, ModelOptions, FormatOptions, StudentOptions, RewardOptions, SamplerOptions, TrainerPassthrough
):
    """Train the teacher by GRPO with the RLT reward."""

    model: str
    """Folder or hub name of the warmed-up teacher."""
    data: Data
    """Problems to explain."""
    self_weights: Literal["live", "ema", "frozen"] = "live"
    """For `student: self`, where the policy without the solution is its own student: its current weights (`live`), their
    moving average (`ema`), or the initial ones (`frozen`)."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """For `self_weights: ema`: decay of the average per optimizer step."""
    gain: GainRewardConfig | None = None
    """Add the student's gain from learning the explanation to the reward; null is off. Needs one local student in float32."""
    shuffle_rewards: bool = False
    """Control: shuffle the rewards within each batch, so that they carry no information."""
    placebos: int = Field(8, ge=0)
    """Explanations per step that are also scored against two placebos: an empty explanation and another question's."""
    keep_samples: int = Field(4, ge=0)
    """Explanations per step that are written to `samples.jsonl` with the parts of their reward."""
    tokens: bool = False
    """Also keep the per-token numbers of these explanations, for `rlt view`."""
    sync_threshold: float | None = Field(0.1, gt=0)
    """With vLLM: stop if, after a weight sync, sampler and trainer differ by more than this many nats in their log-probs
    (mean over tokens, weighted by probability); null: never. Raise it for quantised samplers. We assume that bfloat16 alone
    causes 0.01 to 0.05 (not measured)."""

    @model_validator(mode="after")
    def _students_can_do_it(self) -> TrainConfig:
        if self.gain is not None:
            local = len(self.student) == 1 and self.student[0] != SELF and not is_url(self.student[0])
            if not local or self.student_placement == "sharded":
                raise ValueError("`gain` needs exactly one student, from a folder or the hub, which is not sharded")
        if SELF not in self.student:
            if self.self_weights != "live":
                raise ValueError(f"`self_weights: {self.self_weights}` belongs to `student: self`")
            return self
        if self.accuracy is not None:
            raise ValueError("`accuracy` needs a student that can be sampled; `student: self` cannot")
        if self.student_placement != "same" and self.self_weights != "frozen":
            raise ValueError("`student_placement` has no effect on `student: self`; leave it out")
        if self.peft is not None and self.self_weights == "ema":
            raise ValueError("`self_weights: ema` averages all weights, not LoRA adapters; use `live` or `frozen`")
        return self


class DistillConfig(StageConfig, ModelOptions, FormatOptions, TrainerPassthrough):
    """Distill: train a student on question -> explanation + solution."""

    model: str
    """Folder or hub name of the student to start from."""
    data: Data
    """Problems with explanations."""
    max_length: int | None = Field(None, ge=1)
    """Maximum number of tokens per row; null: the model's context. `data.on_invalid` decides about longer rows."""
    token_budget: str | int | None = None
    """Stop after this many explanation tokens, or after as many as another step's data has; null: use all rows."""


class ColdstartConfig(StageConfig, ModelOptions, FormatOptions, SamplerOptions, TrainerPassthrough):
    """Train a student by GRPO on whether its answer is right, from a distilled checkpoint (cold start)."""

    model: str
    """Folder or hub name of the model to start from, usually a distilled student."""
    data: Data
    """Problems with answers."""
    task: str = "math"
    """Task whose grader decides whether an answer is right, for rows without a `task`."""
    rewards: tuple[float, float, float] = (-1.0, -0.5, 1.0)
    """Rewards for no readable answer, a wrong answer and the right answer."""
