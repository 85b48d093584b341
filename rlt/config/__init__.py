"""Configuration: one frozen model per stage, each default in one place with its source. Imports no torch.

The docstring under a field is its only documentation; the command line prints it as help. Unknown keys are refused. The
training options of TRL and transformers pass through `trainer` and are not mirrored here.
"""

# ruff: noqa: F401 (what `from rlt.config import ...` gives)
from __future__ import annotations

from rlt.config.base import Config, Described, EnvironmentVariable, Names, Seed, is_url, validate
from rlt.config.data import (
    SHORT_FORMS,
    AnyData,
    Data,
    DataConfig,
    MixtureConfig,
    ProblemsConfig,
    SourceConfig,
    WholeData,
)
from rlt.config.engines import EngineOptions, FormatOptions, ModelOptions, RayOptions, SamplingOptions
from rlt.config.evolve import Arm, EvolveOptions, Range, Setting
from rlt.config.explanations import CollectConfig, SelectConfig
from rlt.config.results import (
    AcceptanceOptions,
    AcceptConfig,
    BestConfig,
    EvaluateConfig,
    GainConfig,
    GradeConfig,
    ReachesConfig,
    ReportConfig,
    SweepConfig,
    ViewConfig,
)
from rlt.config.reward import PRESETS, SELF, AccuracyConfig, RewardOptions, ScoreConfig, ServeConfig, StudentOptions
from rlt.config.stage import MOVED, StageConfig
from rlt.config.training import (
    ColdstartConfig,
    DistillConfig,
    PretrainConfig,
    TrainConfig,
    TrainerOptions,
    TrainerPassthrough,
    WarmupConfig,
)
from rlt.config.yaml_text import parse_yaml, yaml_problem

STAGES: dict[str, type[StageConfig]] = {
    "problems": ProblemsConfig,
    "pretrain": PretrainConfig,
    "warmup": WarmupConfig,
    "train": TrainConfig,
    "collect": CollectConfig,
    "select": SelectConfig,
    "distill": DistillConfig,
    "coldstart": ColdstartConfig,
    "evaluate": EvaluateConfig,
    "score": ScoreConfig,
    "gain": GainConfig,
    "grade": GradeConfig,
    "accept": AcceptConfig,
    "best": BestConfig,
    "report": ReportConfig,
}
