"""Keys of every stage, and replacements for the keys and stages of earlier versions."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from rlt.config.base import Config, Seed


class StageConfig(Config):
    """Options of every stage."""

    writes: ClassVar[Literal["folder", "file"]] = "folder"

    output: Path
    """Folder that the stage writes (`problems`, `score` and `grade`: a file of rows); set by a recipe."""
    seed: Seed = 0
    """Seed of everything random in the stage."""

    @model_validator(mode="after")
    def _output_of_its_kind(self) -> Self:
        rows = self.output.suffix in (".jsonl", ".json", ".parquet")
        if self.writes == "folder" and rows:
            raise ValueError(f"`output` {self.output} must be a folder, not a {self.output.suffix} file")
        if self.writes == "file" and self.output.suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"`output` {self.output} must be a .jsonl or .parquet file")
        return self


MOVED = {
    "base": "stage `base` is now `pretrain`: write `stage: pretrain` in the step, and `pretrain` in `defaults`",
    "collect": (
        'selection is a stage of its own: write a step `select: {data: "@collect", keep: closed|random|best, ...}` after '
        'this one, with `scores: "@score"` of a `score` step for `best`'
    ),
    "rank": "`rank` is part of `select`: write `{stage: select, data: ..., scores: ..., keep: bands}`",
}
"""What to write instead of keys and stages that earlier versions had."""
