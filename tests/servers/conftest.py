"""A real vLLM server on the CPU for all tests here, started once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from vllm_process import ABSENT, PYTHON, make_qwen, vllm_process


@dataclass(frozen=True)
class VllmServer:
    """`url` ends in /v1; `model` is the folder that is served, under the name `tiny`."""

    url: str
    model: Path


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A vLLM server with a small Qwen2; skips where its environment is absent."""
    if not PYTHON.exists():
        pytest.skip(ABSENT)
    folder = tmp_path_factory.mktemp("vllm")
    model = make_qwen(folder / "qwen")
    with vllm_process(model, folder / "log.txt") as url:
        yield VllmServer(url, model)
