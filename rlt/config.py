"""Configuration: one frozen model per stage, each default in one place with its source. Imports no torch.

The sentence under a field is the only place where its meaning is written; the command line prints it as help. Unknown
keys are refused. The training options of TRL and transformers pass through `trainer` and are not mirrored here.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from rlt.errors import ConfigError
from rlt.types import JsonMap, JsonRow

MOST_NODES = 100_000  # of a YAML text with its aliases expanded


class _Yaml(yaml.SafeLoader):
    """YAML as people write it: 1e-6 is a number (YAML 1.1 reads text), a key is written once, aliases cannot explode."""

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        _checked_size(node, {}, set())
        return self.construct_document(node)


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _checked_size(node: yaml.Node, sizes: dict[int, int], around: set[int]) -> int:
    """Nodes of a YAML tree with aliases expanded; raises ConstructorError for cycles, repeated keys, over MOST_NODES."""
    if id(node) in sizes:
        return sizes[id(node)]
    if id(node) in around:
        raise yaml.constructor.ConstructorError(None, None, "an anchor contains itself", node.start_mark)
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    around.add(id(node))
    sizes[id(node)] = size = 1 + sum(_checked_size(child, sizes, around) for child in children)
    around.discard(id(node))
    if size > MOST_NODES:
        problem = f"more than {MOST_NODES} values once its anchors are expanded"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return size


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in lines:
                problem = f"the key `{key.value}` is already in line {lines[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1


def parse_yaml(text: str) -> Any:
    """The content of a YAML text, numbers such as 1e-6 included. For every YAML that a user writes.

    Raises yaml.YAMLError, also for a key that is written twice, an anchor that contains itself, and aliases or nesting
    without measure. `yaml_problem` makes one line of it.
    """
    try:
        return yaml.load(text, _Yaml)
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error


def yaml_problem(error: yaml.YAMLError) -> str:
    """One line: what is wrong with a YAML text, and in which line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    problem = " ".join(str(problem).split())
    return f"line {mark.line + 1}: {problem}" if mark is not None else problem


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown keys, finite numbers, `~/` expanded, help texts under the fields."""

    # A number where a text is wanted is that text: `name: 2`, `--model 7`.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: object) -> object:
        """Also inside mappings that are passed on unread: no number without end, no `true` for a number, `~/` expanded."""
        if not isinstance(values, dict):
            return values
        wrong: list[InitErrorDetails] = []
        for name, value in values.items():
            wrong += [
                _wrong((name, *path), f"must be a finite number, not {number}")
                for path, number in _numbers_without_end(value)
            ]
            field = cls.model_fields.get(name)
            if field is not None and _is_number(field.annotation) and _has_bool(value):
                wrong.append(_wrong((name,), "must be a number, not true or false"))
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return {name: _expanded(value) for name, value in values.items()}


def _wrong(path: tuple[str | int, ...], message: str) -> InitErrorDetails:
    return {"type": PydanticCustomError("value", "{message}", {"message": message}), "loc": path, "input": None}


def _numbers_without_end(
    value: object, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers_without_end(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _numbers_without_end(item, (*path, number))


def _expanded(value: object) -> object:
    if isinstance(value, str) and value.startswith("~/"):
        return str(Path(value).expanduser())
    if isinstance(value, dict):
        return {key: _expanded(item) for key, item in value.items()}
    return [_expanded(item) for item in value] if isinstance(value, list) else value


def _is_number(annotation: object) -> bool:
    kinds = {annotation, *typing.get_args(annotation)}
    kinds |= {kind for other in kinds for kind in typing.get_args(other)}
    return bool(kinds & {int, float}) and not kinds & {bool, str, Any}


def _has_bool(value: object) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(isinstance(one, bool) for one in value))


def _as_list(value: object) -> object:
    """A list from one value, or from several separated by commas."""
    if isinstance(value, int | float):
        return [value]
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


Names = Annotated[list[str], BeforeValidator(_as_list)]


def _as_described(value: object) -> object:
    """A mapping of names to descriptions from such a mapping, a list of names, or one name."""
    value = _as_list(value)
    return dict.fromkeys(value) if isinstance(value, list) else value


Described = Annotated[dict[str, str | None], BeforeValidator(_as_described)]


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
    """Use only so many rows, after those skipped; invalid rows count too."""
    skip: int = Field(0, ge=0)
    """Leave out the first so many rows (to hold out what another step uses)."""
    stream: bool = False
    """Stream a hub dataset instead of downloading it first."""
    task: str | None = None
    """Task whose grader reads the rows' answers; null: what each row's column `task` says, else the stage's own `task`."""
    on_invalid: Literal["error", "skip"] = "error"
    """What to do with an invalid row: stop with an error that names it, or skip and count it."""

    @property
    def sources(self) -> list[DataConfig]:
        """The data sets that are read: this one."""
        return [self]

    @property
    def labels(self) -> list[str]:
        """The sources' names: one alone has none."""
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
    """Several sources of problems, read one after the other; training draws from them by weight."""

    sources: list[SourceConfig] = Field(min_length=1)
    """The sources: a list of `{path, weight, task, ...}`."""
    temperature: float | None = Field(None, gt=0)
    """Training draws from source i with probability proportional to weight_i * rows_i^(1/temperature): 1 follows the sizes,
    a large number evens them out; null: 1."""
    on_invalid: Literal["error", "skip"] = "error"
    """`skip`: skip the invalid rows of every source; a source can also say so for itself."""

    @model_validator(mode="after")
    def _different_names(self) -> MixtureConfig:
        twice = next((label for label in self.labels if self.labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"two sources are called {twice!r}; give one of them another name by `source`")
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
        """Whether the sources are to be drawn from other than row by row, which only training does."""
        return self.temperature is not None or any(source.weight != 1 for source in self.sources)


AnyData = DataConfig | MixtureConfig


def _named_variable(name: str) -> str:
    # Most keys of servers (sk-..., hf_...) have dashes or small letters. The value is not repeated: it may be such a key.
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
        raise ValueError(
            "must be the name of an environment variable that holds the key (capital letters, digits and _, such as "
            "OPENAI_API_KEY), not the key itself"
        )
    return name


SHORT_FORMS = {"data": "path"}
"""Key that takes a mapping, or one plain value -> the key that the plain value sets."""


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
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy and transformers can be seeded with
EnvironmentVariable = Annotated[str, AfterValidator(_named_variable)]


class StageConfig(Config):
    """What every stage has."""

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


class ModelOptions(Config):
    """How models are loaded."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights. `auto`: float32 for training and on a CPU, otherwise the checkpoint's own type."""
    trust_remote_code: bool = False
    """Allow a model to run its own Python code. Off: only architectures that transformers knows."""


class FormatOptions(Config):
    """How prompts and responses are written."""

    format: str | None = None
    """A shipped format (`r1`, `stratos`, `words`) or your own YAML file; null: the one the model was trained with, as its
    folder says, otherwise `stratos`."""


class SamplingOptions(Config):
    """How text is sampled."""

    temperature: float = Field(0.7, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: share of the probability to sample from; 1 is off."""
    top_k: int | None = Field(None, ge=1)
    """Sample from the k most likely tokens only; null is off."""
    max_tokens: int = Field(16384, ge=1)
    """Maximum number of tokens to generate per prompt (16,384 as in the paper)."""


class RayOptions(Config):
    """Whether the work is spread over several machines."""

    ray: str | None = None
    """Spread the work over the Ray cluster at this address; `local` starts one. null: run in this process."""
    ray_workers: int = Field(1, ge=1)
    """Number of engine replicas on the Ray cluster."""


class EngineOptions(RayOptions):
    """Who generates text."""

    engine: Literal["transformers", "openai", "vllm"] = "transformers"
    """What generates: `transformers` or `vllm` in this process, or `openai`, a server's completions API."""
    url: str | None = None
    """Base URL of the server for engine `openai`, for example http://127.0.0.1:8000/v1."""
    served_model: str | None = None
    """Name of the model on the server; null: the server's only model."""
    api_key_env: EnvironmentVariable | None = None
    """Environment variable that holds the server's API key. The key itself is never written to a file."""
    max_in_flight: int = Field(64, ge=1)
    """Maximum number of concurrent requests to a server, over all Ray workers."""
    send_seeds: bool | None = None
    """Send vLLM a seed with each request. null: yes, except on a CPU, where seeded requests can crash vLLM. Affects
    sampling, so a resumed run must keep it."""
    timeout: float = Field(600.0, gt=0)
    """Time-out of one request to a server, in seconds, before a retry; 0.25 s is added per requested token."""
    retry_for: float = Field(300.0, ge=0)
    """How long to retry a request after 429, 5xx, a time-out or a broken connection, in seconds."""
    batch_size: int = Field(64, ge=1)
    """Number of prompts per batch of the `transformers` engine."""
    engine_options: JsonRow = {}
    """Passed through: to `vllm.LLM(...)` (tensor_parallel_size, gpu_memory_utilization, ...) or to transformers'
    `from_pretrained(...)`."""

    def conflict(self) -> str | None:
        """Which of these options contradict each other, and the fix; None where none do."""
        if self.engine == "openai" and not self.url:
            return "engine `openai` needs `url`, the server's address, for example http://127.0.0.1:8000/v1."
        if self.engine != "openai" and self.url:
            return f"`url` is for engine `openai`, not `{self.engine}`. Set `engine: openai` or leave it out."
        return None


PRESETS: dict[str, JsonRow] = {
    # The formula as printed (paper, section 3): full KL, no temperature, no penalty.
    "paper": {"score_temperature": 1.0, "estimator": "exact", "unclosed_penalty": 0.0},
    # The published code (SakanaAI/RLT 86a3f5c, run_cfg/teacher_rlt.yaml): both models at temperature 0.7, one-sample KL,
    # and -1 for an explanation whose closing tag is missing.
    "reference-code": {"score_temperature": 0.7, "estimator": "k1", "unclosed_penalty": -1.0},
}


class AccuracyConfig(Config):
    """How often the student is right after reading the explanation: the reward in the first reports on RLT."""

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
    """The reward r = r_ss - kl_coef * r_kl + format_penalty, with every choice in it."""

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
    """KL estimator per token: `k1` or `k3` (one sample), or `exact` (whole vocabulary); null: `k1` or `exact`, by preset."""
    unclosed_penalty: float | None = Field(None, le=0)
    """Added to the reward of an explanation that never closes its tag; null: -1 or 0, by preset."""
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


class StudentOptions(Config):
    """The student in the reward, and where it runs."""

    student: Names = []
    """Student whose understanding is the reward: folder, hub name, or URL of a vLLM server; several are allowed. Append
    `#FOLDER` to a URL to name its tokenizer, if the server's own path cannot be read here."""
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


class TrainerOptions(Config):
    """Options of the trainer."""

    trainer: JsonRow = {}
    """Options of TRL's trainer (SFTConfig or GRPOConfig), passed through; `model_init_kwargs` are merged with rlt's own.
    `push_to_hub` uploads the finished folder with its card, using the token in the environment."""


class TrainerPassthrough(TrainerOptions):
    """Options of the trainer, of LoRA and of accelerate."""

    peft: JsonRow | None = None
    """Train LoRA adapters with these arguments of peft.LoraConfig; null trains all weights."""
    merge_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the saved weights after LoRA is merged into them; null: as trained. Rounding to 16 bits costs part of a small
    update; the stage prints how much."""
    launch: str | None = None
    """Accelerate configuration to train under: `single`, `ddp`, `fsdp2`, `deepspeed-zero3`, `deepspeed-zero3-offload`, or
    a YAML file; null: this process alone."""


# -- stages, in the order of the data flow ---------------------------------------------------------------------------------


class ProblemsConfig(StageConfig):
    """Write a file of problems: generated by a task, or chosen from a dataset."""

    writes: ClassVar[Literal["folder", "file"]] = "file"

    task: str | None = None
    """Task that generates the problems: `arithmetic`, `countdown`, or `reasoning_gym/` and the name of a generator."""
    data: WholeData | None = None
    """Dataset to choose the problems from, instead of a task."""
    count: int | None = Field(None, ge=1)
    """Number of problems; null: 1000 of a task, all of a dataset."""
    shortest: bool = False
    """From a dataset: the problems with the fewest characters (question, solution and explanation together)."""
    solution: Literal["full", "answer", "wrong"] = "full"
    """From a dataset: `answer` makes the worked solution the explanation, and "The answer is N." the solution; `wrong`
    says so of another problem's answer, for a teacher to explain as a placebo (`solutions` of `score`)."""
    options: JsonRow = {}
    """Options of the task's generator, for example {steps: [2, 5]}."""
    experts: str | None = None
    """Mixture of the task's simulated experts that writes an explanation per problem; null: no explanations."""
    exclude: list[Path] = []
    """Files of held-out problems: their questions must not occur."""

    @model_validator(mode="after")
    def _one_source(self) -> ProblemsConfig:
        if (self.task is None) == (self.data is None):
            raise ValueError("give `task` or `data`, not both")
        generator, dataset = self.experts is not None or self.options, self.shortest or self.solution != "full"
        if (self.task is None and generator) or (self.data is None and dataset):
            raise ValueError("`options` and `experts` belong to `task`; `shortest` and `solution` to `data`")
        return self


class PretrainConfig(StageConfig, FormatOptions, TrainerOptions):
    """Pretrain a tiny model from scratch on a synthetic task."""

    task: str
    """Task that supplies the problems and the vocabulary."""
    exclude: list[Path] = []
    """Files of held-out problems: their questions are not trained on."""
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


class TrainConfig(StageConfig, ModelOptions, FormatOptions, StudentOptions, RewardOptions, TrainerPassthrough):
    """Train the teacher by GRPO with the RLT reward."""

    model: str
    """Folder or hub name of the warmed-up teacher."""
    data: Data
    """Problems to explain."""
    placebos: int = Field(8, ge=0)
    """Explanations per step that are also scored against two placebos: an empty explanation and another question's."""
    keep_samples: int = Field(4, ge=0)
    """Explanations per step that are written to `samples.jsonl` with the parts of their reward."""
    tokens: bool = False
    """Also keep the numbers of every token of those explanations, for `rlt view`."""
    sync_threshold: float | None = Field(0.1, gt=0)
    """With vLLM: stop if, after a weight sync, sampler and trainer differ by more than this many nats in their log-probs
    (mean over tokens, weighted by probability); null: never. Raise it for quantised samplers. We assume that bfloat16 alone
    causes 0.01 to 0.05 (not measured)."""


class CollectConfig(StageConfig, ModelOptions, FormatOptions, EngineOptions, SamplingOptions):
    """Collect the teacher's explanations for a set of problems, exactly as it writes them; resumable."""

    model: str
    """Folder or hub name of the teacher (for engine `openai`: whose tokenizer and chat template to use)."""
    data: WholeData
    """Problems to explain. A problem whose prompt fills the context is an error, or left out, as `on_invalid` says."""
    samples: int = Field(1, ge=1)
    """Explanations for each problem."""
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
    """Select the explanations that a student gets; the others are listed with the reason."""

    data: WholeData
    """Explanations: the output of `rlt collect`, or any file with `question`, `solution` and `explanation` or `completion`."""
    keep: Literal["all", "closed", "random", "best", "bands", "correct"]
    """`all`: every explanation, as the paper's students do. `closed`: those that close their tag and contain no tag of the
    format. `random`, `best`: of these, one for each problem, drawn or with the highest score. `bands`: all that have a
    score, in `bands` files of equal size, lowest first (the paper's correlation study). `correct`: of the responses that
    `rlt evaluate` wrote (`data: "@evaluate:responses.jsonl"`), the first right one to each question: rejection sampling."""
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
        if ranked and isinstance(self.data, MixtureConfig):
            raise ValueError(
                "`scores` belong to one file; select from each file on its own, then give a list to training"
            )
        if self.student_context is not None and not self.student:
            raise ValueError("`student_context` needs `student`, whose tokenizer counts the tokens")
        served = [name for name in self.student if name.startswith(("http://", "https://"))]
        if served:
            raise ValueError(
                f"`student`: {served[0]} is a server; give the folder or hub name of its tokenizer, and `student_context`"
            )
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
    """Use rows up to this number of explanation tokens, or up to that of another step's data."""


class ColdstartConfig(StageConfig, ModelOptions, FormatOptions, TrainerPassthrough):
    """Train a student by GRPO on whether its answer is right, from a distilled checkpoint (cold start)."""

    model: str
    """Folder or hub name of the model to start from, usually a distilled student."""
    data: Data
    """Problems with answers."""
    task: str = "math"
    """Task whose grader decides whether an answer is right, for rows without a `task`."""
    rewards: tuple[float, float, float] = (-1.0, -0.5, 1.0)
    """Rewards for no readable answer, a wrong answer and the right answer."""


class EvaluateConfig(StageConfig, ModelOptions, FormatOptions, EngineOptions):
    """Solve rates of a model on held-out problems, graded by their task."""

    model: str
    """Folder or hub name of the model."""
    benchmark: Names = []
    """Benchmarks by name, or files with `question` and `answer`."""
    data: str | None = None
    """A file that replaces the (single) benchmark's download."""
    task: str | None = None
    """Task whose grader decides; null: the one in each row's column `task`, else the benchmark's own, and `math` for files."""
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
    """Also write the text and the numbers of every token, which `rlt view` shows; makes the file ten times as large."""
    solutions: Path | None = None
    """File of problems whose solutions are scored in place of the rows' own, matched by question: with explanations of
    `wrong` solutions, what a wrong explanation does for the right one."""
    control: Literal["empty", "numbers", "solution"] | None = None
    """Score this in place of each explanation: an `empty` one, the same with its `numbers` replaced at random, or the
    `solution` itself (the answer given away). What a reward should not like; null scores the explanations."""

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


class ReportConfig(StageConfig):
    """Report a run: tables and three sentences on the terminal, results.json and report.html."""

    suffix: str = Field("", pattern=r"^[\w.-]*$")
    """Ending of both file names, for recipes with several reports: `-transfer` writes results-transfer.json."""

    title: str | None = None
    """Heading of the report; null: the run's name."""
    note: str | None = None
    """Text under the heading: what a reader must know about these results."""
    arms: Described = {}
    """Variants of the evaluate steps to compare, in table order: a list, or a mapping of each to a short description of
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
    trained: str | None = None
    """Train step whose curves are drawn."""
    task: str | None = None
    """Task whose `inspect` tells which explanations leak the answer and which are fully correct."""
    headline: list[str] = []
    """Two arms whose difference is stated in words: ours, then the one to compare with."""


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
    "base": "stage `base` is now `pretrain`: write `stage: pretrain` in the step, and `pretrain` in `defaults`",
    "collect": (
        'selection is a stage of its own: write a step `select: {data: "@collect", keep: closed|random|best, ...}` after '
        'this one, with `scores: "@score"` of a `score` step for `best`'
    ),
    "rank": "`rank` is part of `select`: write `{stage: select, data: ..., scores: ..., keep: bands}`",
}
"""What to write instead of keys and stages that earlier versions had."""

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
    "grade": GradeConfig,
    "report": ReportConfig,
}


def validate(model: type[Config], values: JsonMap, where: str) -> Any:
    """`model` made from `values`; raises ConfigError with `where`, every bad key and, for a typo, the near names."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_lines(model, error))) from error


def _lines(model: type[Config], error: ValidationError) -> list[str]:
    """One line per bad key. Values are left out: one of them may be a secret in the wrong place."""
    import difflib

    lines = []
    for item in error.errors(include_input=False, include_url=False):
        key = ".".join(str(part) for part in item["loc"] if part not in ("one", "several"))  # tags of `Data`
        near = difflib.get_close_matches(key.split(".")[-1], model.model_fields, n=2, cutoff=0.6)
        hint = f" (did you mean {' or '.join(near)}?)" if item["type"] == "extra_forbidden" and near else ""
        message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        lines.append(f"`{key}`: {message}{hint}" if key else message)  # none: it is about several keys together
    return lines
