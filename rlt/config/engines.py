"""Options of models that generate text: loading, format, sampling, engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlt.config.base import Config, EnvironmentVariable
from rlt.types import AnyRow


class ModelOptions(Config):
    """How models are loaded."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights. `auto`: float32 for training and on a CPU, otherwise the checkpoint's own type."""
    trust_remote_code: bool = False
    """Allow a model to run its own Python code. Off: only architectures that transformers knows."""


class FormatOptions(Config):
    """How prompts and responses are written."""

    format: str | None = None
    """A shipped format (`r1`, `stratos`, `words`; with the solution in the user's turn: `r1-user`, `stratos-user`,
    `words-user`) or your own YAML file; null: the one recorded in the model's folder, else `stratos`."""


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
    """Spreading the work over several machines."""

    ray: str | None = None
    """Spread the work over the Ray cluster at this address; `local` starts one. null: run in this process."""
    ray_workers: int = Field(1, ge=1)
    """Number of engine replicas on the Ray cluster."""


class EngineOptions(RayOptions):
    """The engine that generates text."""

    engine: Literal["transformers", "openai", "vllm"] = "transformers"
    """`transformers` or `vllm` in this process, or `openai`: the completions API of a server."""
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
    engine_options: AnyRow = {}
    """Passed through: to `vllm.LLM(...)` (tensor_parallel_size, gpu_memory_utilization, ...) or to transformers'
    `from_pretrained(...)`."""

    def conflict(self) -> str | None:
        """Which of these options contradict each other, and the fix; None where none do."""
        if self.engine == "openai" and not self.url:
            return "engine `openai` needs `url`, the server's address, for example http://127.0.0.1:8000/v1."
        if self.engine != "openai" and self.url:
            return f"`url` is for engine `openai`, not `{self.engine}`. Set `engine: openai` or leave it out."
        return None
