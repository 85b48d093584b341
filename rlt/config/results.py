"""Stages and commands that measure: `evaluate`, `accept`, `best`, `grade`, `report`, `view`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from rlt.config.base import Config, Described, Names
from rlt.config.engines import EngineOptions, FormatOptions, ModelOptions
from rlt.config.stage import StageConfig


class EvaluateConfig(StageConfig, ModelOptions, FormatOptions, EngineOptions):
    """Evaluate a model: solve rates on held-out problems, graded by their task."""

    model: str
    """Folder or hub name of the model."""
    benchmark: Names = []
    """Benchmarks by name, or files with `question` and `answer`."""
    data: str | None = None
    """Local file to use instead of downloading the (only) benchmark."""
    task: str | None = None
    """Task whose grader decides; null: each row's `task` column, else the benchmark's own task (`math` for files)."""
    preset: Literal["paper", "robust"] | None = None
    """`paper`: greedy, 32,768 tokens, one sample. `robust`: temperature 0.6, top-p 0.95, 8 samples."""
    samples: int | None = Field(None, ge=1)
    """Responses per question; null: the preset's, else 1. More than one needs a temperature above 0."""
    temperature: float | None = Field(None, ge=0)
    """Sampling temperature; null: the preset's, else 0 (greedy)."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling: share of the probability to sample from; null: the preset's, else 1 (off)."""
    top_k: int | None = Field(None, ge=1)
    """Sample from the k most likely tokens only; null is off."""
    max_tokens: int | None = Field(None, ge=1)
    """Maximum number of tokens per response; null: the preset's, else 32,768 or what the context leaves."""
    system_prompt: str = "format"
    """`format`: the student format's own; `none`; or a text file."""
    instruction: Literal["benchmark", "none"] = "benchmark"
    """Sentence added to each question: the benchmark's own, or none."""
    grade_timeout: float = Field(10.0, gt=0)
    """Time limit per response, in seconds; a response that exceeds it counts as wrong."""
    grade_workers: int = Field(2, ge=1)
    """Number of grader processes."""
    limit: int | None = Field(None, ge=1)
    """Use only the first N questions of each benchmark."""
    allow_overlap: bool = False
    """Evaluate on a file's questions even if the model was trained on them."""


class AcceptanceOptions(Config):
    """How certain a gain must be."""

    error_rate: float = Field(0.05, gt=0, lt=0.5)
    """Probability, over all looks, of accepting a round that is no better than the best previous one."""
    patience: int = Field(2, ge=1)
    """End the loop after this many rejections in a row."""


class AcceptConfig(StageConfig, AcceptanceOptions):
    """Accept a round if its student solves more than the best previous round's, beyond noise."""

    evaluations: list[Path] = Field(min_length=2)
    """Outputs of `evaluate` for rounds 0, 1, ..., on the same questions; the last round is the one to decide about."""
    decisions: list[Path] = []
    """Outputs of `accept` for the rounds 1, 2, ... before this one."""
    looks: int = Field(ge=1)
    """Maximum number of decisions; each may spend an equal part of `error_rate`."""

    @model_validator(mode="after")
    def _one_decision_a_round(self) -> AcceptConfig:
        if len(self.decisions) != len(self.evaluations) - 2:
            raise ValueError(
                f"{len(self.evaluations)} `evaluations` need {len(self.evaluations) - 2} `decisions`, one per round "
                "between the first and the last"
            )
        if self.looks < len(self.evaluations) - 1:
            raise ValueError(f"`looks` is {self.looks}, but this is round {len(self.evaluations) - 1}")
        return self


class BestConfig(StageConfig):
    """Copy the best round's model to the output's folder `model`."""

    models: list[Path] = Field(min_length=1)
    """Models of rounds 0, 1, ..."""
    decisions: list[Path] = []
    """Outputs of `accept` for rounds 1, 2, ...; those after the end of the loop need not exist."""


class GainConfig(StageConfig, ModelOptions, FormatOptions):
    """Measure what a few steps of learning from explanations change in a student, next to the reward that they earned."""

    writes: ClassVar[Literal["folder", "file"]] = "file"

    model: str
    """Folder or hub name of the student; it is copied, not changed."""
    data: Path
    """Explanations: JSONL or Parquet file or the output of `rlt collect`."""
    scores: Path
    """Output of `rlt score` for the same explanations."""
    by: str = "reward"
    """Column of `scores` to compare with."""
    heldout: Path
    """File of problems whose solutions should become more likely, without any explanation."""
    heldout_limit: int = Field(64, ge=1)
    """Use only the first N of these problems."""
    count: int = Field(64, ge=1)
    """Explanations to draw."""
    group: int = Field(8, ge=1)
    """Explanations per group, neighbours by score, that the student learns from together."""
    steps: int = Field(4, ge=1)
    """Optimizer steps per group, each on the whole group."""
    learning_rate: float = Field(1e-4, gt=0)
    """Learning rate of AdamW. If it is too small, rounding hides the gains: use `dtype: float32`."""


class GradeConfig(StageConfig, FormatOptions):
    """Grade a file of responses, without a model."""

    writes: ClassVar[Literal["folder", "file"]] = "file"

    data: Path
    """JSONL or Parquet file with `response`, `answer` and, optionally, `task`."""
    task: str = "math"
    """Grader for rows without a `task`."""
    timeout: float = Field(10.0, gt=0)
    """Time limit per response, in seconds; a response that exceeds it counts as wrong."""
    workers: int = Field(2, ge=1)
    """Number of grader processes."""


class SweepConfig(Config):
    """One setting over several arms: a table and a figure of solve rate and explanations over its values."""

    setting: str
    """Name of the setting, such as `kl_coef`."""
    arms: dict[str, float | str] = Field(min_length=2)
    """Variants of the `sampled` step, each with its value of the setting, in the order of table and figure."""
    explained: str | None = None
    """Collect step with the explanations by the teachers, in variants of the same names; an arm without one has none."""


class ReachesConfig(Config):
    """How many steps of RL each variant needs until its metric reaches a level."""

    step: str
    """Step whose variants are compared, such as a `coldstart`."""
    level: float
    """Level that the mean of five logged steps must reach."""
    metric: str = "correct"
    """Metric in `metrics.jsonl` of the step."""


class ReportConfig(StageConfig):
    """Report a run: tables and three sentences on the terminal, results.json and report.html."""

    suffix: str = Field("", pattern=r"^[\w.-]*$")
    """Suffix of the file names, for recipes with several reports: `-transfer` writes results-transfer.json."""

    title: str | None = None
    """Heading of the report; null: the run's name."""
    note: str | None = None
    """Text under the heading, such as a caveat about these results."""
    arms: Described = {}
    """Variants of the evaluate steps to compare, in table order: a list, or a mapping from each to a short description of
    what its student learned from. Empty: one row per evaluate step."""
    sampled: str = "evaluate"
    """Evaluate step whose variants are sampled."""
    greedy: str | None = None
    """Evaluate step whose variants are decoded greedily."""
    bands: Names = []
    """Variants whose students learned from reward bands, lowest first."""
    teachers: Names = []
    """Variants of `explained` and `scored` for the teacher before and after RL."""
    explained: str | None = None
    """Collect step whose variants explain the held-out problems."""
    scored: str | None = None
    """Score step whose variants score those explanations."""
    scores: Names = []
    """Score steps whose variants are compared with their first, paired by row. Empty: all of a recipe without students."""
    trained: str | None = None
    """Train step whose curves are drawn."""
    task: str | None = None
    """Task whose `inspect` finds explanations that leak the answer or are fully correct."""
    rankings: dict[str, list[str]] = {}
    """Rankings to compare: name -> variants whose students learned from its bands, lowest first."""
    sweep: SweepConfig | None = None
    """Compare arms over the values of one setting, with a figure; null is off."""
    reaches: ReachesConfig | None = None
    """Compare how fast variants of an RL step reach a level; null is off."""
    headline: list[str] = []
    """Two arms whose difference is stated in words: ours, then the one to compare with."""


class ViewConfig(Config):
    """Make one HTML page of scored rows, token by token, or of a whole run; two files are shown side by side."""

    paths: list[Path] = Field(min_length=1)
    """Folder of a run, or outputs of `rlt score`."""
    output: Path = Path("view.html")
    """Where the page is written."""
    limit: int = Field(500, ge=1)
    """Maximum number of rows on the page: a third with the highest rewards, a third with the lowest, the rest random."""
    id: Names = []
    """Ids of rows to show in any case."""
    seed: int = 0
    """Seed of the random rows."""
    live: bool = False
    """Serve the page on this machine instead of writing it; it updates as the files grow."""
    port: int = Field(8200, ge=0, le=65535)
    """Port for `live`; 0 picks a free one and prints it."""
