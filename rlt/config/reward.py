"""The reward: its formula and its students, the stage `score`, and the service `rlt serve`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from rlt.config.base import Config, EnvironmentVariable, Names
from rlt.config.engines import FormatOptions, ModelOptions, RayOptions
from rlt.config.stage import StageConfig
from rlt.types import JsonRow

PRESETS: dict[str, JsonRow] = {
    # The formula as printed (paper, section 3): full KL, no temperature, no penalty.
    "paper": {"score_temperature": 1.0, "estimator": "exact", "unclosed_penalty": 0.0},
    # The published code (SakanaAI/RLT 86a3f5c, run_cfg/teacher_rlt.yaml): both models at temperature 0.7, one-sample KL,
    # and -1 for an explanation whose closing tag is missing.
    "reference-code": {"score_temperature": 0.7, "estimator": "k1", "unclosed_penalty": -1.0},
}


class AccuracyConfig(Config):
    """How often the student is correct after reading the explanation: the reward in the first reports on RLT."""

    samples: int = Field(8, ge=1)
    """Number of solutions that the student samples per explanation."""
    weight: float = 1.0
    """Weight of the share of correct solutions in the reward."""
    only: bool = False
    """Use this reward alone, without r_ss and r_kl."""
    temperature: float = Field(0.7, ge=0)
    """Sampling temperature of the student's solutions; 0 is greedy."""
    max_tokens: int = Field(512, ge=1)
    """Maximum number of tokens per solution."""
    task: str = "math"
    """Task whose grader compares a solution with the answer, for rows without a `task`."""


class RewardOptions(Config):
    """The reward r = r_ss - kl_coef * r_kl + format_penalty."""

    preset: Literal["reference-code", "paper"] = "reference-code"
    """Values of the options left null: those of the published code, or of the formula printed in the paper."""
    alpha: float = 0.01
    """Weight of the minimum in r_ss and of the maximum in r_kl (paper: 0.01)."""
    alpha_kl: float | None = None
    """Weight of the maximum in r_kl; null: same as alpha."""
    mean_coef: float = 1.0
    """Weight of the means in r_ss and r_kl."""
    kl_coef: float = 3.0
    """Weight of r_kl, the paper's lambda (3)."""
    score_temperature: float | None = Field(None, gt=0)
    """Temperature for the log-probs of teacher and student; null: 0.7 (`reference-code`) or 1 (`paper`)."""
    estimator: Literal["k1", "k3", "exact"] | None = None
    """KL estimator per token: `k1` or `k3` (one sample), or `exact` (whole vocabulary); null: set by the preset."""
    unclosed_penalty: float | None = Field(None, le=0)
    """Added to the reward of an explanation that never closes its tag; null: -1 (`reference-code`) or 0 (`paper`)."""
    floor: float | None = None
    """Lower bound of the reward; null is off, as in the paper."""
    aggregate: Literal["mean", "min"] = "mean"
    """Reward of several students: the mean or the minimum of theirs."""
    accuracy: AccuracyConfig | None = None
    """Add the student's measured accuracy to the reward; null is off."""

    def resolved(self) -> RewardOptions:
        """The same options, with the preset's values where they are null."""
        preset = PRESETS[self.preset]
        return self.model_copy(update={key: value for key, value in preset.items() if getattr(self, key) is None})


SELF = "self"
"""Name of the student that is the policy itself, in `train`."""


class StudentOptions(Config):
    """The student in the reward, and where it runs."""

    student: Names = []
    """Student whose understanding is the reward: folder, hub name, or URL of a vLLM server; several are allowed. Append
    `#FOLDER` to a URL to name its tokenizer, if the server's own path cannot be read here. In `train`, `self` is the policy."""
    student_placement: str = Field("same", pattern=r"^(same|offload|sharded|cpu|cuda(:\d+)?)$")
    """Where local students run: on the policy's device (`same`), on a device (`cpu`, `cuda`, `cuda:1`), on the CPU between
    uses (`offload`), or over all ranks (`sharded`). Has no effect on a served student."""
    served_model: str | None = None
    """Name of the student on its server; null: the server's only model."""
    student_api_key_env: EnvironmentVariable | None = None
    """Environment variable that holds the API key of the student's server; null sends none."""
    max_in_flight: int = Field(64, ge=1)
    """Maximum number of concurrent requests to a student's server."""
    timeout: float = Field(600.0, gt=0)
    """Time-out of one request to a student's server, in seconds, before a retry."""
    retry_for: float = Field(300.0, ge=0)
    """How long to retry such a request after 429, 5xx, a time-out or a broken connection, in seconds."""
    batch_tokens: int | None = Field(None, ge=1)
    """Maximum number of tokens per forward pass of scoring, padding included; null: chosen by device."""


class ScoreConfig(StageConfig, ModelOptions, FormatOptions, StudentOptions, RewardOptions, RayOptions):
    """Score each explanation in a file with the RLT reward."""

    writes: ClassVar[Literal["folder", "file"]] = "file"

    teacher: str | None = None
    """Folder or hub name of the teacher, for r_kl; null: r_ss only."""
    data: Path
    """JSONL or Parquet file with `question`, `solution` and `completion` (as the teacher wrote it) or `explanation`
    (finished text); `completion` is used if a row has both."""
    temperature: float | None = Field(None, gt=0)
    """Short for `score_temperature`."""
    placebos: bool = False
    """Also score an empty explanation and another question's, and report the lift over both."""
    tokens: bool = False
    """Also write the text and numbers of every token, for `rlt view`, and two columns to rank explanations by
    (`explanation_log_prob`, `rank_surprisal`); the file becomes ten times as large."""
    solutions: Path | None = None
    """File of problems whose solutions replace the rows' own, matched by question. With explanations of `wrong` solutions
    it shows what a wrong explanation earns for the right solution."""
    control: Literal["empty", "numbers", "solution"] | None = None
    """Score a control in place of each explanation: an `empty` one, the explanation with its `numbers` replaced at random,
    or the `solution` itself (the answer given away). A good reward rates these low. null scores the explanations."""

    @model_validator(mode="after")
    def _one_temperature(self) -> ScoreConfig:
        if self.temperature is not None and self.score_temperature not in (None, self.temperature):
            raise ValueError("give `temperature` or `score_temperature`, not both")
        return self

    def resolved(self) -> ScoreConfig:
        copy = self.model_copy(update={"score_temperature": self.score_temperature or self.temperature})
        return RewardOptions.resolved(copy)  # type: ignore[return-value]


class ServeConfig(ModelOptions, FormatOptions, RewardOptions, StudentOptions):
    """Serve rewards over HTTP, for any trainer."""

    teacher: str | None = None
    """Folder or hub name of the teacher, for r_kl of rows without the policy's log-probs; null: no r_kl for them."""
    policy: str | None = None
    """Folder or hub name of the tokenizer for `token_ids`; null: the teacher's, else the first student's."""
    host: str = "127.0.0.1"
    """Address to listen on. Set `token_env` for anything but loopback."""
    port: int = Field(8100, ge=0, le=65535)
    """Port to listen on; 0 picks a free one and prints it."""
    token_env: str | None = None
    """Environment variable that holds the bearer token clients must send; null requires none."""
    replicas: int = Field(1, ge=1)
    """Number of scoring processes, one per GPU, behind one address."""
    max_wait_ms: float = Field(5.0, ge=0)
    """Longest time a row waits for others to fill its batch, in milliseconds."""
    max_queue: int = Field(4096, ge=1)
    """Maximum number of waiting rows; further requests get 429 with `Retry-After`."""
    max_rows: int = Field(1024, ge=1)
    """Maximum number of rows per request."""
    max_characters: int = Field(400_000, ge=1)
    """Maximum number of characters per row, all texts together."""
    date: str | None = None
    """Date that chat templates print, as 2026-01-31; null: the one recorded with the policy, teacher or student, else
    today's."""
    failed_reward: float | None = None
    """Reward of a row that cannot be scored, for engines that accept only numbers; null answers 422 instead."""
