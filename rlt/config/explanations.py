"""The stages between teacher and student: `collect` and `select`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rlt.config.base import Names, is_url
from rlt.config.data import MixtureConfig, WholeData
from rlt.config.engines import EngineOptions, FormatOptions, ModelOptions, SamplingOptions
from rlt.config.stage import MOVED, StageConfig


class CollectConfig(StageConfig, ModelOptions, FormatOptions, EngineOptions, SamplingOptions):
    """Collect the teacher's explanations for a set of problems, exactly as it writes them; resumable."""

    model: str
    """Folder or hub name of the teacher (for engine `openai`: whose tokenizer and chat template to use)."""
    data: WholeData
    """Problems to explain. `on_invalid` also decides about a prompt that fills the context."""
    samples: int = Field(1, ge=1)
    """Explanations per problem."""
    file_format: Literal["jsonl", "parquet"] = "jsonl"
    """Format of the files with explanations."""

    @model_validator(mode="before")
    @classmethod
    def _selection_is_a_stage(cls, values: object) -> object:
        moved = ("select", "student", "student_context", "student_placement", "reward")
        old = [key for key in moved if isinstance(values, dict) and key in values]
        if old:
            raise ValueError(f"`{old[0]}`: {MOVED['collect']}")
        return values


class SelectConfig(StageConfig, FormatOptions):
    """Select the explanations that a student learns from; the rest are listed with a reason."""

    data: WholeData
    """Explanations: the output of `rlt collect`, or any file with `question`, `solution` and `explanation` or `completion`."""
    keep: Literal["all", "closed", "random", "best", "bands", "correct"]
    """`all`: every explanation, as in the paper. `closed`: those that close their tag and contain no other tag. `random`,
    `best`: one closed explanation per problem, drawn at random or with the highest score. `bands`: all scored ones, in
    `bands` files of equal size, lowest first (the paper's correlation study). `correct`: rejection sampling, the first
    correct response to each question in the output of `rlt evaluate` (`data: "@evaluate:responses.jsonl"`)."""
    scores: Path | None = None
    """For `best` and `bands`: output of `rlt score` for the same rows, in the same order."""
    by: str = "reward"
    """Column of the scores to compare."""
    bands: int = Field(4, ge=2)
    """Number of bands, for `keep: bands`."""
    student: Names = []
    """Folders or hub names of students; rows that do not fit the context of each are left out."""
    student_context: int | None = Field(None, ge=1)
    """Maximum number of tokens of a student's text; null: the student's context."""
    trust_remote_code: bool = False
    """Allow a student to run its own Python code. Off: only architectures that transformers knows."""
    file_format: Literal["jsonl", "parquet"] = "jsonl"
    """Format of the selected files."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> SelectConfig:
        ranked = self.keep in ("best", "bands")
        if ranked and self.scores is None:
            raise ValueError(f"`keep: {self.keep}` needs `scores`, the output of a `score` step for the same data")
        if not ranked and self.scores is not None:
            raise ValueError(f"`scores` has no effect with `keep: {self.keep}`; use `best` or `bands`, or leave it out")
        if ranked and isinstance(self.data, MixtureConfig):
            raise ValueError(
                "`scores` belong to one file; select from each file separately, then give training the list"
            )
        if self.student_context is not None and not self.student:
            raise ValueError("`student_context` needs `student`, whose tokenizer counts the tokens")
        served = list(filter(is_url, self.student))
        if served:
            raise ValueError(
                f"`student`: {served[0]} is a server; give the folder or hub name of its tokenizer, and `student_context`"
            )
        return self
