"""Configuration: one frozen model per stage, each default in one place with its source. Imports no torch.

The sentence under a field is the only place its meaning is written; the command line prints it as help. Unknown keys are
refused. TRL's and transformers' own training options go through `trainer` as they are and are not mirrored here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rlt.errors import ConfigError


class _Yaml(yaml.SafeLoader):
    """YAML as people write it: PyYAML's YAML 1.1 reads 1e-6 as text."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """What a YAML text says, numbers such as 1e-6 included; raises yaml.YAMLError. For every YAML that a user writes."""
    return yaml.load(text, _Yaml)


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown keys, help texts under the fields."""

    # A number where a text is wanted is that text: `name: 2`, `--model 7`.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, coerce_numbers_to_str=True
    )


def _as_list(value: Any) -> Any:
    """One value, or several with commas between, where a list is wanted."""
    if isinstance(value, int | float):
        return [value]
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


Names = Annotated[list[str], BeforeValidator(_as_list)]


class DataConfig(Config):
    """Where problems come from."""

    path: str
    """A JSONL, JSON or Parquet file, a folder of them, or a dataset's name on the hub."""
    name: str | None = None
    """The hub dataset's configuration, for example `main` of openai/gsm8k."""
    split: str = "train"
    """Split of a hub dataset or of a folder that has splits."""
    columns: dict[str, str] = {}
    """Our column name -> the file's, for example {question: problem}; not needed for the schemas rlt knows."""
    limit: int | None = Field(None, ge=1)
    """Use only so many rows, after those skipped; invalid rows count too."""
    skip: int = Field(0, ge=0)
    """Leave out the first so many rows (to hold out what another step uses)."""
    stream: bool = False
    """Read a hub dataset row by row instead of downloading it first."""
    on_invalid: Literal["error", "skip"] = "error"
    """What an invalid row does: end with an error that names it, or be dropped and counted."""


def _as_data(value: Any) -> Any:
    return {"path": value} if isinstance(value, str | Path) else value


Data = Annotated[DataConfig, BeforeValidator(_as_data)]


class StageConfig(Config):
    """What every stage has."""

    output: Path
    """Folder (or file, where the stage writes one) for what the stage makes; a recipe sets it."""
    seed: int = 0
    """Seed of everything random in the stage."""


class ModelOptions(Config):
    """How models are loaded."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights; `auto` is float32 for training and on a CPU, else the checkpoint's own type."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model. Off: only architectures that transformers knows."""


class FormatOptions(Config):
    format: str = "stratos"
    """Name of a shipped format (`stratos`, `r1`) or a YAML file of your own."""


class SamplingOptions(Config):
    """How text is sampled."""

    temperature: float = Field(0.7, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling's share of probability; 1 is off."""
    top_k: int | None = Field(None, ge=1)
    """Sample only among the so many likeliest tokens; null is off."""
    max_tokens: int = Field(16384, ge=1)
    """Most tokens to generate for one prompt (the paper's teacher: 16,384)."""


class RayOptions(Config):
    """Whether the work is spread over several machines."""

    ray: str | None = None
    """Address of a Ray cluster (`local` starts one) to spread the work over; null: this machine."""
    ray_workers: int = Field(1, ge=1)
    """Engine replicas on the Ray cluster."""


class EngineOptions(RayOptions):
    """Who generates text."""

    engine: Literal["transformers", "openai", "vllm"] = "transformers"
    """`transformers`: in this process. `vllm`: vLLM in this process. `openai`: a server's completions interface."""
    url: str | None = None
    """Base address of the server for engine `openai`, for example http://127.0.0.1:8000/v1."""
    served_model: str | None = None
    """The name under which the server knows the model; null: its only model."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key. The key itself is never written anywhere."""
    max_in_flight: int = Field(64, ge=1)
    """Most requests under way at once at a server, of all Ray workers together."""
    send_seeds: bool | None = None
    """Give vLLM each request's seed; null: unless it is on a CPU, where it ends on seeds (see rlt.engines). It decides what
    is sampled, so a run goes on only with the same value."""
    timeout: float = Field(600.0, gt=0)
    """Seconds after which one request to a server is given up and tried again, and for each token that it may write a
    quarter of a second more (16,384: 4,696 in all), slower than which no server is taken to be."""
    retry_for: float = Field(300.0, ge=0)
    """Seconds for which a request is tried again after 429, 5xx, a time-out or a broken connection: a server's restart."""
    batch_size: int = Field(64, ge=1)
    """Prompts generated together by the `transformers` engine."""
    engine_options: dict[str, Any] = {}
    """Passed through: to `vllm.LLM(...)` (tensor_parallel_size, gpu_memory_utilization, ...) or to transformers'
    `from_pretrained(...)`, with `continuous_batching` (true, or options of transformers' ContinuousBatchingConfig)."""


PRESETS: dict[str, dict[str, Any]] = {
    # The formula as printed (paper, section 3): full KL, no temperature, no penalty.
    "paper": {"score_temperature": 1.0, "estimator": "exact", "unclosed_penalty": 0.0},
    # The published code (SakanaAI/RLT 86a3f5c, run_cfg/teacher_rlt.yaml): both models at temperature 0.7, one-sample KL,
    # and -1 for an explanation whose closing tag is missing.
    "reference-code": {"score_temperature": 0.7, "estimator": "k1", "unclosed_penalty": -1.0},
}


class AccuracyConfig(Config):
    """The reward by which the first reports describe RLT: how often the student, having read the explanation, is right."""

    samples: int = Field(8, ge=1)
    """Solutions that the student samples for each explanation."""
    weight: float = 1.0
    """Factor on the share of right solutions before it is added to the reward."""
    only: bool = False
    """Use this reward alone, without r_ss and r_kl."""
    temperature: float = Field(0.7, ge=0)
    """Temperature of the student's solutions."""
    max_tokens: int = Field(512, ge=1)
    """Most tokens of one solution."""
    task: str = "math"
    """Task whose grader compares a solution with the answer."""


class RewardOptions(Config):
    """The reward r = r_ss - kl_coef * r_kl + format_penalty and every choice in it."""

    preset: Literal["reference-code", "paper"] = "reference-code"
    """Names the choices left null below: the published code's, or the formula as printed in the paper."""
    alpha: float = 0.01
    """Weight of the minimum in r_ss and of the maximum in r_kl (paper: 0.01)."""
    alpha_kl: float | None = None
    """Weight of the maximum in r_kl where it should differ from alpha."""
    mean_coef: float = 1.0
    """Weight of the means in r_ss and r_kl."""
    kl_coef: float = 3.0
    """Weight of r_kl, the paper's lambda (3)."""
    score_temperature: float | None = Field(None, gt=0)
    """Logits of teacher and student are divided by this before the log-probs (preset: 0.7 or 1)."""
    estimator: Literal["k1", "k3", "exact"] | None = None
    """Estimate of the KL at each token: one-sample `k1` or `k3`, or `exact` over the whole vocabulary."""
    unclosed_penalty: float | None = Field(None, le=0)
    """Added to the reward of an explanation that never closes its tag (preset: -1 or 0)."""
    floor: float | None = None
    """The reward is not allowed below this; null is off (the paper has none)."""
    aggregate: Literal["mean", "min"] = "mean"
    """Over several students: the mean of their rewards, or the smallest."""
    accuracy: AccuracyConfig | None = None
    """Add the student's measured accuracy to the reward; null is off."""

    def resolved(self) -> RewardOptions:
        """The same options with every null that the preset names filled in."""
        preset = PRESETS[self.preset]
        return self.model_copy(update={key: value for key, value in preset.items() if getattr(self, key) is None})


class StudentOptions(Config):
    """Where the student in the reward lives."""

    student: Names = []
    """Folder or hub name of the student whose understanding is the reward; several for several students. An http(s)
    address is a vLLM server; `#FOLDER` after it names its tokenizer, where the server's own path is not readable here."""
    student_placement: str = Field("same", pattern=r"^(same|offload|sharded|cpu|cuda(:\d+)?)$")
    """`same` device as the policy, a device (`cpu`, `cuda`, `cuda:1`), `offload` (on the CPU between uses), or `sharded`
    (over all ranks). A student behind a server is placed by its address in `student`."""
    served_model: str | None = None
    """The name under which a student's server knows it; null: the server's only model."""
    student_api_key_env: str | None = None
    """Name of the environment variable that holds the key of a student's server; null sends none."""
    max_in_flight: int = Field(64, ge=1)
    """Most requests under way at once at a student's server."""
    timeout: float = Field(600.0, gt=0)
    """Seconds after which one request to a student's server is given up and tried again."""
    retry_for: float = Field(300.0, ge=0)
    """Seconds for which such a request is tried again after 429, 5xx, a time-out or a broken connection."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens, padding counted, that one forward pass of scoring may have; null: by the device."""
    packing: bool = False
    """Score rows laid end to end in one sequence instead of padded ones."""


class TrainerOptions(Config):
    trainer: dict[str, Any] = {}
    """Options of TRL's trainer (SFTConfig or GRPOConfig), passed on as they are; `model_init_kwargs` join rlt's own. With
    `push_to_hub` the finished folder is uploaded, with its card (the token is the environment's)."""


class TrainerPassthrough(TrainerOptions):
    peft: dict[str, Any] | None = None
    """LoRA: arguments of peft.LoraConfig; null trains all weights."""
    launch: str | None = None
    """An accelerate configuration to train under: `single`, `ddp`, `fsdp2`, `deepspeed-zero3`, `deepspeed-zero3-offload`,
    or a YAML file."""


# -- stages, in the order of the data flow ---------------------------------------------------------------------------------


class ProblemsConfig(StageConfig):
    """Write a file of problems: generated by a task, or chosen from a dataset."""

    task: str | None = None
    """Task that generates the problems: `arithmetic` or `countdown`."""
    data: Data | None = None
    """Dataset to choose the problems from, instead of a task."""
    count: int | None = Field(None, ge=1)
    """Number of problems; null: 1000 of a task, all of a dataset."""
    shortest: bool = False
    """From a dataset: the problems with the fewest characters (question, solution and explanation together)."""
    solution: Literal["full", "answer"] = "full"
    """From a dataset: `answer` makes the worked solution the explanation, and "The answer is N." the solution."""
    options: dict[str, Any] = {}
    """Options of the task's generator, for example {steps: [2, 5]}."""
    experts: str | None = None
    """Attach explanations by the task's noisy experts: the name of a mixture; null attaches none."""
    exclude: list[Path] = []
    """Files whose questions must not occur (held-out problems)."""

    @model_validator(mode="after")
    def _one_source(self) -> ProblemsConfig:
        if (self.task is None) == (self.data is None):
            raise ValueError("give `task` or `data`, not both")
        generator, dataset = self.experts is not None or self.options, self.shortest or self.solution != "full"
        if (self.task is None and generator) or (self.data is None and dataset):
            raise ValueError("`options` and `experts` belong to `task`; `shortest` and `solution` to `data`")
        return self


class BaseModelConfig(StageConfig, FormatOptions, TrainerOptions):
    """Make a small model from nothing that can do a task's clean problems: the miniature's pretrained model."""

    task: str
    """Task whose problems and tokenizer the model is made for."""
    exclude: list[Path] = []
    """Files whose questions must not be learned from (held-out problems)."""
    model: dict[str, Any] = {}
    """Shape of the model: arguments of transformers' LlamaConfig."""
    phases: list[dict[str, Any]] = []
    """Curriculum; each phase: `options` of the generator, `experts`, `problems`, `also` (other tasks mixed in: name ->
    those three keys), `batch_size`, `learning_rate`, `until_loss`, `max_steps`."""


class WarmupConfig(StageConfig, ModelOptions, FormatOptions, TrainerPassthrough):
    """Teacher's supervised warm-up: question + solution -> explanation, loss on explanation and closing tag only."""

    model: str
    """Folder or hub name of the model to start from."""
    data: Data
    """Problems with explanations."""
    max_length: int | None = Field(None, ge=1)
    """Longest text in tokens; null: the model's context. Longer rows are an error or dropped, as `on_invalid` says."""


class TrainConfig(StageConfig, ModelOptions, FormatOptions, StudentOptions, RewardOptions, TrainerPassthrough):
    """Teacher RL: GRPO with the reward of a Reinforcement-Learned Teacher."""

    model: str
    """Folder or hub name of the warmed-up teacher."""
    data: Data
    """Problems to explain."""
    placebos: int = Field(8, ge=0)
    """In each step, so many explanations are also scored against an empty and another question's explanation."""
    keep_samples: int = Field(4, ge=0)
    """In each step, so many explanations are kept with their parts in `samples.jsonl`."""
    tokens: bool = False
    """Also keep the numbers of every token of those explanations, for `rlt view`."""
    sync_threshold: float | None = Field(0.1, gt=0)
    """With vLLM: stop when sampler and trainer disagree about what was sampled by more than this after a weight sync: the
    mean difference of their log-probs, in nats, each token weighted by its probability; null: never. We assume that bfloat16
    alone makes 0.01 to 0.05 (not measured); raise it for quantised samplers."""


class CollectConfig(StageConfig, ModelOptions, FormatOptions, EngineOptions, SamplingOptions):
    """Collect the teacher's explanations for a set of problems, exactly as it writes them; resumable."""

    model: str
    """Folder or hub name of the teacher (for engine `openai`: whose tokenizer and chat template to use)."""
    data: Data
    """Problems to explain. A problem whose prompt fills the context is an error, or left out, as `on_invalid` says."""
    samples: int = Field(1, ge=1)
    """Explanations for each problem."""
    file_format: Literal["jsonl", "parquet"] = "jsonl"
    """Format of the files with explanations."""

    @model_validator(mode="before")
    @classmethod
    def _selection_is_a_stage(cls, values: Any) -> Any:
        moved = ("select", "student", "student_context", "student_placement", "reward")
        old = [key for key in moved if isinstance(values, dict) and key in values]
        if old:
            raise ValueError(f"`{old[0]}`: {MOVED['collect']}")
        return values


class SelectConfig(StageConfig, FormatOptions):
    """Select the explanations that a student gets; the others are listed with the reason."""

    data: Data
    """Explanations: the output of `rlt collect`, or any file with `question`, `solution` and `explanation` or `completion`."""
    keep: Literal["all", "closed", "random", "best", "bands"]
    """`all`: every explanation, as the paper's students do. `closed`: those that close their tag and contain no tag of the
    format. `random`, `best`: of these, one for each problem, drawn or with the highest score. `bands`: all that have a
    score, in `bands` files of equal size, lowest first (the paper's correlation study)."""
    scores: Path | None = None
    """For `best` and `bands`: what `rlt score` wrote for the same rows, in the same order."""
    by: str = "reward"
    """Column of the scores to compare."""
    bands: int = Field(4, ge=2)
    """For `keep: bands`: number of bands."""
    student: Names = []
    """Folders or hub names of students: leave out what does not fit the context of each of them."""
    student_context: int | None = Field(None, ge=1)
    """Tokens that a student's text may have; null: the student's own context."""
    trust_remote_code: bool = False
    """Run Python code that comes with a student. Off: only architectures that transformers knows."""
    file_format: Literal["jsonl", "parquet"] = "jsonl"
    """Format of the selected files."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> SelectConfig:
        ranked = self.keep in ("best", "bands")
        if ranked and self.scores is None:
            raise ValueError(f"`keep: {self.keep}` needs `scores`, the output of a `score` step for the same data")
        if not ranked and self.scores is not None:
            raise ValueError(f"`scores` has no effect with `keep: {self.keep}`; use `best` or `bands`, or leave it out")
        if self.student_context is not None and not self.student:
            raise ValueError("`student_context` needs `student`, whose tokenizer counts the tokens")
        served = [name for name in self.student if name.startswith(("http://", "https://"))]
        if served:
            raise ValueError(
                f"`student`: {served[0]} is a server; give the folder or hub name of its tokenizer, and `student_context`"
            )
        return self


class DistillConfig(StageConfig, ModelOptions, FormatOptions, TrainerPassthrough):
    """Student SFT: question -> explanation + solution."""

    model: str
    """Folder or hub name of the student to start from."""
    data: Data
    """Problems with explanations."""
    max_length: int | None = Field(None, ge=1)
    """Longest text in tokens; null: the model's context. Longer rows are an error or dropped, as `on_invalid` says."""
    token_budget: str | int | None = None
    """Use rows until their explanations have so many tokens: a number, or the data of another step to match."""


class ColdstartConfig(StageConfig, ModelOptions, FormatOptions, TrainerPassthrough):
    """Student RL with a verifiable reward: is the answer right?"""

    model: str
    """Checkpoint to start from (a distilled student: that is the cold start)."""
    data: Data
    """Problems with answers."""
    task: str = "math"
    """Task whose grader decides."""
    rewards: tuple[float, float, float] = (-1.0, -0.5, 1.0)
    """Reward of a response without a readable answer, with a wrong one, with the right one (paper notes: -1, -0.5, 1)."""


class EvaluateConfig(StageConfig, ModelOptions, FormatOptions, EngineOptions):
    """Solve rates of a model on held-out problems, graded by their task."""

    model: str
    """Folder or hub name of the model."""
    benchmark: Names = []
    """Benchmarks by name, or files with `question` and `answer`."""
    data: str | None = None
    """A file that replaces the (single) benchmark's download."""
    task: str | None = None
    """Task whose grader decides; null: the benchmark's own, and `math` for files."""
    preset: Literal["paper", "robust"] | None = None
    """`paper`: greedy, 32,768 tokens, one sample. `robust`: temperature 0.6, top-p 0.95, 8 samples."""
    samples: int | None = Field(None, ge=1)
    """Responses to each question; null: the preset's, else 1. Several need a temperature above 0."""
    temperature: float | None = Field(None, ge=0)
    """Sampling temperature; null: the preset's, else 0, which is greedy."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling's share of probability; null: the preset's, else 1, which is off."""
    top_k: int | None = Field(None, ge=1)
    """Sample only among the so many likeliest tokens; null is off."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens of a response; null: the preset's, else 32,768 or what the context leaves."""
    system_prompt: str = "format"
    """`format`: the student format's own; `none`; or a text file."""
    instruction: Literal["benchmark", "none"] = "benchmark"
    """The sentence that goes with each question: the benchmark's own, or none."""
    grade_timeout: float = Field(10.0, gt=0)
    """Seconds after which a response is given up as wrong and its grader's process ended."""
    grade_workers: int = Field(2, ge=1)
    """Grader processes."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many questions of each benchmark."""
    allow_overlap: bool = False
    """Evaluate on a file's questions even if the model was trained on them."""


class ScoreConfig(StageConfig, ModelOptions, FormatOptions, StudentOptions, RewardOptions, RayOptions):
    """The reward of every explanation of a file, without training."""

    teacher: str | None = None
    """Folder or hub name of the teacher, for r_kl; null: r_ss alone."""
    data: Path
    """JSONL or Parquet with `question`, `solution` and `explanation` (finished text) or `completion` (as the teacher wrote
    it; taken where a row has both)."""
    temperature: float | None = Field(None, gt=0)
    """Short for `score_temperature`."""
    placebos: bool = False
    """Also score an empty and another question's explanation, and report the lift over them."""
    tokens: bool = False
    """Also write the text and the numbers of every token, which `rlt view` shows; makes the file ten times as large."""
    control: Literal["empty", "numbers", "solution"] | None = None
    """Score this in place of each explanation: an `empty` one, the same with its `numbers` replaced at random, or the
    `solution` itself (the answer given away). What a reward should not like; null scores the explanations."""

    @model_validator(mode="after")
    def _written_as_rows(self) -> ScoreConfig:
        if self.output.suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"`output` {self.output} must be a .jsonl or .parquet file")
        return self

    @model_validator(mode="after")
    def _one_temperature(self) -> ScoreConfig:
        if self.temperature is not None and self.score_temperature not in (None, self.temperature):
            raise ValueError("give `temperature` or `score_temperature`, not both")
        return self

    def resolved(self) -> ScoreConfig:
        copy = self.model_copy(update={"score_temperature": self.score_temperature or self.temperature})
        return RewardOptions.resolved(copy)  # type: ignore[return-value]


class ServeConfig(ModelOptions, FormatOptions, RewardOptions, StudentOptions):
    """Answer rewards over HTTP, for any trainer."""

    teacher: str | None = None
    """Folder or hub name of the teacher, for r_kl of rows without the policy's log-probs; null: their r_kl is null."""
    policy: str | None = None
    """Folder or hub name whose tokenizer reads `token_ids`; null: the teacher's, or the first student's without one."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's loopback should have a `token_env`."""
    port: int = Field(8100, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and prints it."""
    token_env: str | None = None
    """Name of the environment variable that holds the bearer token which clients must send; null asks for none."""
    replicas: int = Field(1, ge=1)
    """Processes that score, one per GPU, behind one address."""
    max_wait_ms: float = Field(5.0, ge=0)
    """Longest time a row waits for others to fill its batch, in milliseconds."""
    max_queue: int = Field(4096, ge=1)
    """Rows that may wait; beyond that, requests are answered 429 with `Retry-After`."""
    max_rows: int = Field(1024, ge=1)
    """Rows that one request may have."""
    max_characters: int = Field(400_000, ge=1)
    """Characters that the texts of one row may have together."""
    failed_reward: float | None = None
    """For engines that can take only a number: the reward of a row that cannot be scored; null answers 422 instead."""


class GradeConfig(StageConfig, FormatOptions):
    """Grade a file of responses again, without a model."""

    data: Path
    """JSONL or Parquet with `response` and `answer` (and `task`, where rows differ)."""
    task: str = "math"
    """Task whose grader decides for rows that name none."""
    timeout: float = Field(10.0, gt=0)
    """Seconds after which a response is given up as wrong and its grader's process ended."""
    workers: int = Field(2, ge=1)
    """Grader processes."""


class ReportConfig(StageConfig):
    """Tables and pictures of a run: terminal, results.json and report.html."""

    suffix: str = Field("", pattern=r"^[\w.-]*$")
    """Ending of the two files' names where a recipe has several reports: `-transfer` makes results-transfer.json."""

    title: str | None = None
    """Heading of the report; null: the run's name."""
    note: str | None = None
    """Text under the heading: what a reader must know about these results."""
    arms: Names = []
    """Variants of the evaluate steps that are compared, in the order of the table; empty: every evaluate step is a row."""
    sampled: str = "evaluate"
    """The evaluate step whose variants sample."""
    greedy: str | None = None
    """The evaluate step whose variants decode greedily."""
    bands: Names = []
    """Variants whose students learned from reward bands, lowest first."""
    teachers: Names = []
    """Variants of `explained` and `scored`: the teacher before and after RL."""
    explained: str | None = None
    """The collect step whose variants explain the held-out problems."""
    scored: str | None = None
    """The score step whose variants score those explanations."""
    trained: str | None = None
    """The train step whose curves are drawn."""
    task: str | None = None
    """Task whose `inspect` says which explanations leak and which are fully correct."""
    headline: list[str] = []
    """Two arms whose difference the report states in words: ours, then the one it is compared with."""


class ViewConfig(Config):
    """One HTML page of scored rows, token by token, or of a whole run; two files stand side by side."""

    paths: list[Path] = Field(min_length=1)
    """A run's folder, or files that `rlt score` wrote."""
    output: Path = Path("view.html")
    """Where the page is written."""
    limit: int = Field(500, ge=1)
    """Most rows on the page: a third with the highest rewards, a third with the lowest, the others drawn at random."""
    id: Names = []
    """Rows that are on the page in any case."""
    seed: int = 0
    """Seed of the rows that are drawn at random."""
    live: bool = False
    """Serve the page on this machine instead of writing it, and update it while the files grow."""
    port: int = Field(8200, ge=0, le=65535)
    """Port of `live`; 0 takes a free one and prints it."""


MOVED = {
    "collect": (
        'selection is a stage of its own: write a step `select: {data: "@collect", keep: closed|random|best, ...}` after '
        'this one, with `scores: "@score"` of a `score` step for `best`'
    ),
    "rank": "`rank` is part of `select`: write `{stage: select, data: ..., scores: ..., keep: bands}`",
}
"""What to write instead of keys and stages that earlier versions had."""

STAGES: dict[str, type[StageConfig]] = {
    "problems": ProblemsConfig,
    "base": BaseModelConfig,
    "warmup": WarmupConfig,
    "train": TrainConfig,
    "collect": CollectConfig,
    "select": SelectConfig,
    "distill": DistillConfig,
    "coldstart": ColdstartConfig,
    "evaluate": EvaluateConfig,
    "score": ScoreConfig,
    "grade": GradeConfig,
    "report": ReportConfig,
}


def validate(model: type[Config], values: dict[str, Any], where: str) -> Any:
    """`model` made from `values`; raises ConfigError with `where`, every bad key and, for a typo, the near names."""
    import difflib

    from pydantic import ValidationError

    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(map(str, item["loc"]))
            near = difflib.get_close_matches(key.split(".")[-1], model.model_fields, n=2, cutoff=0.6)
            hint = f" (did you mean {' or '.join(near)}?)" if item["type"] == "extra_forbidden" and near else ""
            message = "no such key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
            lines.append(f"`{key}`: {message}{hint}" if key else message)  # none: it is about several keys together
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error
