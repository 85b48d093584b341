"""Builds the configured engine."""

from __future__ import annotations

from rlt.config import EngineOptions
from rlt.engines.base import Engine
from rlt.errors import ConfigError


def build_engine(options: EngineOptions, model: str, *, dtype: str = "auto", trust_remote_code: bool = False) -> Engine:
    """The engine selected by `options`, for a model's folder or hub name (with a server: its tokenizer's).

    Raises ConfigError for conflicting options, ServerError for a server that cannot be reached, rejects requests or
    serves another model, DependencyError with the install line of a missing extra, ModelError for an unusable model.
    """
    conflict = options.conflict()
    if conflict is not None:
        raise ConfigError(conflict)
    if options.ray is not None:
        from rlt.engines.ray import RayEngine

        return RayEngine(options, model, build_engine, dtype=dtype, trust_remote_code=trust_remote_code)
    if options.engine == "openai":
        from rlt.engines.openai import OpenAIEngine

        return OpenAIEngine(options, model, trust_remote_code=trust_remote_code)
    if options.engine == "vllm":
        from rlt.engines.vllm import VllmEngine

        return VllmEngine(options, model, dtype=dtype, trust_remote_code=trust_remote_code)
    from rlt.engines.hf import HfEngine

    return HfEngine(options, model, dtype=dtype, trust_remote_code=trust_remote_code)
