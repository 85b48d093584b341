"""Where problems come from: datasets, files and mixtures of them, and the stage `problems`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from rlt.config.base import Config, Paths
from rlt.config.stage import StageConfig
from rlt.types import JsonRow

SHORT_FORMS = {"data": "path"}
"""Key that takes a mapping or a plain value -> the key of the mapping that the plain value sets."""


class DataConfig(Config):
    """Where problems come from."""

    path: str
    """A JSONL, JSON, Parquet or CSV file, a folder of such files, or the name of a dataset on the hub."""
    name: str | None = None
    """Configuration of the hub dataset, for example `main` for openai/gsm8k."""
    split: str = "train"
    """Split of a hub dataset, or of a folder with one subfolder per split."""
    columns: dict[str, str] = {}
    """Maps rlt's column names to the file's, for example {question: problem}. Known schemas need no mapping."""
    limit: int | None = Field(None, ge=1)
    """Use only the first N rows after the skipped ones; invalid rows count too."""
    skip: int = Field(0, ge=0)
    """Skip the first N rows, for example those held out by another step."""
    stream: bool = False
    """Stream a hub dataset instead of downloading it first."""
    task: str | None = None
    """Task whose grader checks the answers; null: each row's `task` column, else the stage's own `task`."""
    on_invalid: Literal["error", "skip"] = "error"
    """What to do with an invalid row: stop with an error that names it, or skip and count it."""

    @property
    def sources(self) -> list[DataConfig]:
        """The datasets to read: this one."""
        return [self]

    @property
    def labels(self) -> list[str]:
        """Names of the sources; empty for a single one."""
        return []


class SourceConfig(DataConfig):
    """One of several sources of problems."""

    source: str | None = Field(None, pattern=r"^[\w.-]+$")
    """Name of the source in columns and metrics; null: the last part of its path."""
    weight: float = Field(1.0, gt=0)
    """Weight of the source when examples are drawn for training (`temperature`)."""

    @property
    def label(self) -> str:
        """The source's name."""
        return self.source or re.sub(
            r"[^\w.-]", "-", Path(self.path.rstrip("/")).name.removesuffix(Path(self.path).suffix)
        )


class MixtureConfig(Config):
    """Several sources of problems, read one after another; training draws from them by weight."""

    sources: list[SourceConfig] = Field(min_length=1)
    """The sources: a list of `{path, weight, task, ...}`."""
    temperature: float | None = Field(None, gt=0)
    """Training draws from source i with probability proportional to weight_i * rows_i^(1/temperature): 1 follows the sizes,
    a large number evens them out; null: 1."""
    on_invalid: Literal["error", "skip"] = "error"
    """`skip`: skip invalid rows in every source; `error`: each source's own `on_invalid` decides."""

    @model_validator(mode="after")
    def _different_names(self) -> MixtureConfig:
        twice = next((label for label in self.labels if self.labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"two sources are named {twice!r}; rename one of them with `source`")
        return self

    @property
    def path(self) -> str:
        """The paths of all sources, for messages."""
        return " + ".join(source.path for source in self.sources)

    @property
    def labels(self) -> list[str]:
        """The sources' names."""
        return [source.label for source in self.sources]

    @property
    def drawn(self) -> bool:
        """Whether rows are drawn by weight, which only training does."""
        return self.temperature is not None or any(source.weight != 1 for source in self.sources)


AnyData = DataConfig | MixtureConfig


def _as_data(value: object) -> object:
    if isinstance(value, list):
        value = {"sources": value}
    if isinstance(value, dict) and isinstance(value.get("sources"), list):
        return {**value, "sources": [_as_data(source) for source in value["sources"]]}
    return {SHORT_FORMS["data"]: value} if isinstance(value, str | Path) else value


def _kind_of_data(value: object) -> str:
    return "several" if isinstance(value, MixtureConfig) or (isinstance(value, dict) and "sources" in value) else "one"


Data = Annotated[
    Annotated[DataConfig, Tag("one")] | Annotated[MixtureConfig, Tag("several")],
    Discriminator(_kind_of_data),
    BeforeValidator(_as_data),
]


def _all_rows(data: AnyData | None) -> AnyData | None:
    if isinstance(data, MixtureConfig) and data.drawn:
        raise ValueError("`weight` and `temperature` are for training; this stage reads every row of each source once")
    return data


WholeData = Annotated[Data, AfterValidator(_all_rows)]
"""Data of a stage that draws nothing."""


class ProblemsConfig(StageConfig):
    """Write a file of problems: generated by a task, or chosen from a dataset."""

    writes: ClassVar[Literal["folder", "file"]] = "file"

    task: str | None = None
    """Task that generates the problems: `arithmetic`, `countdown`, or `reasoning_gym/` and the name of a generator."""
    data: WholeData | None = None
    """Dataset to choose the problems from, instead of a task."""
    count: int | None = Field(None, ge=1)
    """Number of problems; null: 1000 from a task, all from a dataset."""
    shortest: bool = False
    """For a dataset: take the shortest problems, by the characters of question, solution and explanation."""
    solution: Literal["full", "answer", "wrong", "other"] = "full"
    """For a dataset: `answer` turns the worked solution into the explanation, and "The answer is N." into the solution.
    `wrong` and `other` are placebos for a teacher to explain (see `solutions` of `score`): that sentence with another
    problem's answer, or another problem's whole solution."""
    options: JsonRow = {}
    """Options of the task's generator, for example {steps: [2, 5]}."""
    experts: str | None = None
    """Mixture of the task's simulated experts that writes one explanation per problem; null: none."""
    exclude: Paths = []
    """Files of held-out problems; their questions are left out."""

    @model_validator(mode="after")
    def _one_source(self) -> ProblemsConfig:
        if (self.task is None) == (self.data is None):
            raise ValueError("give `task` or `data`, not both")
        generator, dataset = self.experts is not None or self.options, self.shortest or self.solution != "full"
        if (self.task is None and generator) or (self.data is None and dataset):
            raise ValueError("`options` and `experts` belong to `task`; `shortest` and `solution` to `data`")
        return self
