"""What reaches the hub is the finished folder with rlt's card, and nothing private."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from rlt.config import WarmupConfig
from rlt.errors import RunError
from rlt.outputs import begin
from rlt.training.cards import finish_model, open_repository


class Hub:
    """Stands in for HfApi: keeps what it is asked, and the card as it was at the upload."""

    calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, name: str, **options: Any) -> Any:
        self.calls.append(("create", {"name": name, **options}))
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, folder_path: Path, **options: Any) -> None:
        self.calls.append(("upload", {"card": (folder_path / "README.md").read_text(), **options}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    Hub.calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub.calls


def folder(path: Path, **trainer: Any) -> Any:
    return begin("warmup", WarmupConfig(output=path / "teacher", model="m", data="d.jsonl", trainer=trainer))


def test_the_finished_folder_is_uploaded_with_its_card(tmp_path: Path, hub: Any) -> None:
    work = folder(tmp_path, push_to_hub=True, hub_private_repo=True)
    result = finish_model(work, "m", "d.jsonl", {"loss": 0.25})
    (made, created), (uploaded, upload) = hub
    assert (made, created) == ("create", {"name": "teacher", "private": True, "exist_ok": True})
    assert uploaded == "upload"
    assert upload["repo_id"] == "me/teacher"
    assert "| loss | 0.25 |" in upload["card"]
    assert "- Format: `stratos`" in upload["card"]
    assert {"checkpoint-*", "stage.json", "samples.jsonl"} <= set(upload["ignore_patterns"])
    assert result.metrics["loss"] == 0.25


def test_the_repository_may_have_another_name(tmp_path: Path, hub: Any) -> None:
    assert open_repository(folder(tmp_path, push_to_hub=True, hub_model_id="rlt-7b")) == "me/rlt-7b"


def test_nothing_is_uploaded_unasked(tmp_path: Path, hub: Any) -> None:
    finish_model(folder(tmp_path), "m", "d.jsonl", {})
    assert hub == []
    assert (tmp_path / "teacher" / "README.md").is_file()


def test_a_refusal_of_the_hub_names_the_fix(tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, name: str, **options: Any) -> None:
        raise OSError("401 Client Error: Unauthorized\nand more")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(RunError, match=r"teacher cannot be written \(401 Client Error: Unauthorized\)\. Set HF_TOKEN"):
        open_repository(folder(tmp_path, push_to_hub=True))
