"""A real `rlt serve` process over small models, and what asks it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from byte_models import byte_tokenizer, save, tiny_model

from rlt.text.formats import load_format

pytest.importorskip("fastapi")
FMT = load_format("stratos").model_copy(update={"teacher_system_prompt": "Teach.", "student_system_prompt": None})
CLOSE = FMT.tags.explanation.close


class Served:
    """The address of a running service."""

    def __init__(self, process: subprocess.Popen, url: str, folder: Path) -> None:
        self.process, self.url, self.folder = process, url, folder

    def ask(self, path: str, body: object = None, raw: bytes | None = None, headers: dict | None = None):
        """`(status, answer)`; the answer is JSON where it can be read as such."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text


def begin(folder: Path, *flags: str, environment: dict | None = None, port: int = 0) -> Served:
    """A service on a free port or on `port`, ready to answer."""
    fmt = str(folder / "format.yaml")
    command = [sys.executable, "-m", "rlt.cli", "serve", "--port", str(port), "--format", fmt, *flags]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    )
    line = process.stdout.readline()
    found = re.search(r"http://[\d.:]+", line)
    assert found, line
    served = Served(process, found[0], folder)
    for _ in range(600):
        try:
            status, answer = served.ask("/health")
        except (urllib.error.URLError, ConnectionError):
            status, answer = 0, {}
        if status == 200:
            return served
        assert status in (0, 503), answer
        assert process.poll() is None
        time.sleep(0.1)
    raise AssertionError("the service was not ready after a minute")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students and a teacher, and their format."""
    place = tmp_path_factory.mktemp("served")
    tokenizer = byte_tokenizer(tags=FMT.tags.all())
    for name, seed in (("student", 0), ("other", 2), ("teacher", 1)):
        save(place / name, tiny_model(tokenizer, seed), tokenizer)
    (place / "format.yaml").write_text(json.dumps(FMT.model_dump(mode="json")))
    return place


@pytest.fixture(scope="session")
def served(folder: Path) -> Iterator[Served]:
    """A student and a teacher at temperature 0.7, as the published code scores."""
    running = begin(folder, "--student", str(folder / "student"), "--teacher", str(folder / "teacher"))
    yield running
    running.process.terminate()
    assert running.process.wait(30) == 0
