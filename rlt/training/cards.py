"""A finished model's card (configuration, data, metrics, paper) and its upload to the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlt.data.rows import write_text
from rlt.errors import RunError
from rlt.outputs import Result, StageFolder, is_main_process, versions, writing
from rlt.text.formats import DEFAULT_FORMAT
from rlt.types import JsonMap

PAPER = "https://arxiv.org/abs/2506.08388"
_WHAT = {
    "warmup": "A teacher after supervised warm-up: given a question and its solution, it writes an explanation.",
    "train": "A Reinforcement-Learned Teacher: given a question and its solution, it writes an explanation that helps a "
    "student understand the solution. It is not meant to solve problems by itself.",
    "distill": "A student trained on explanations: it answers a question with a thought and a solution.",
    "coldstart": "A student after reinforcement learning with a verifiable reward.",
    "pretrain": "A small model pretrained from scratch on one synthetic task, for tests and demonstrations.",
}
# Options of `trainer` that rlt handles itself: transformers' own upload saves the model again and replaces its card.
UPLOAD = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy")
# Not uploaded: the run's state, pickles, and the texts of the problems.
_PRIVATE = ["checkpoint-*", ".*", "*.bin", "*.pt", "samples.jsonl", "stage.json"]


def finish_model(folder: StageFolder, base: str | None, data: str | None, metrics: JsonMap) -> Result:
    """Writes the model's card, uploads the folder if `trainer.push_to_hub` is set, and returns the stage's Result."""
    with writing(folder.path):
        write_model_card(folder, base, data, metrics)
    upload(folder)
    return folder.finish(metrics)


def upload(folder: StageFolder) -> None:
    """Upload the folder to the hub if `trainer.push_to_hub` is set; only the main process does.

    The token comes from the environment (HF_TOKEN or `hf auth login`). Raises RunError on failure.
    """
    repository = open_repository(folder)
    if repository is None:
        return
    from huggingface_hub import HfApi

    options = getattr(folder.config, "trainer", {})
    with _hub_errors(folder, repository):
        HfApi().upload_folder(
            repo_id=repository, folder_path=folder.path, commit_message=f"rlt {folder.stage}",
            revision=options.get("hub_revision"), ignore_patterns=_PRIVATE,
        )  # fmt: skip


def open_repository(folder: StageFolder) -> str | None:
    """Id of this model's repository on the hub, created if needed; None without `push_to_hub` and on other processes."""
    options = getattr(folder.config, "trainer", {})
    if not options.get("push_to_hub") or not is_main_process():
        return None
    from huggingface_hub import HfApi

    name = options.get("hub_model_id") or folder.path.absolute().name
    with _hub_errors(folder, name):
        return str(HfApi().create_repo(name, private=options.get("hub_private_repo"), exist_ok=True).repo_id)


@contextmanager
def _hub_errors(folder: StageFolder, repository: str) -> Iterator[None]:
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(
            f"{folder.stage}: `trainer.push_to_hub`: {repository} cannot be written ({reason}). Set HF_TOKEN to a token with "
            "write permission and run the same command again; it resumes."
        ) from error


def write_model_card(folder: StageFolder, base: str | None, data: str | None, metrics: JsonMap) -> Path:
    """Path of README.md, written by the main process: hub metadata, configuration, data, metrics, paper."""
    front = ["library_name: transformers", "pipeline_tag: text-generation", f"tags: [rlt, {folder.stage}]"]
    if base and not Path(base).exists():
        front.append(f"base_model: {base}")
    configuration = json.dumps(
        folder.config.model_dump(mode="json", exclude_defaults=True), indent=1, ensure_ascii=False
    )
    numbers = "\n".join(
        f"| {name} | {value} |" for name, value in metrics.items() if not isinstance(value, dict | list)
    )
    text = f"""---
{chr(10).join(front)}
---

# {folder.path.name}

{_WHAT[folder.stage]} Method: [Reinforcement Learning Teachers of Test Time Scaling]({PAPER}).

- Stage: `{folder.stage}` of rlt
- Started from: `{base or "random weights"}`
- Data: `{data or "generated"}`
- Format: `{getattr(folder.config, "format", None) or DEFAULT_FORMAT}`

| metric | value |
|---|---|
{numbers}

Configuration (keys that differ from the defaults):

```json
{configuration}
```

Versions: {", ".join(f"{name} {version}" for name, version in versions().items())}
"""
    path = folder.path / "README.md"
    if is_main_process():
        write_text(path, text)
    return path
