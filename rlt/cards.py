"""Model cards: what a checkpoint is, from which recipe and data, with which numbers, after which paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlt.runs import StageFolder, is_main_process, versions, write_text

PAPER = "https://arxiv.org/abs/2506.08388"
_WHAT = {
    "warmup": "A teacher after supervised warm-up: given a question and its solution it writes an explanation.",
    "train": "A Reinforcement-Learned Teacher: given a question and its solution it writes the explanation from which a "
    "student understands that solution. It is not meant to solve problems by itself.",
    "distill": "A student trained on explanations: it answers a question with a thought and a solution.",
    "coldstart": "A student after reinforcement learning with a verifiable reward.",
    "base": "A small model made from nothing on one synthetic task, for tests and demonstrations.",
}


def write_model_card(folder: StageFolder, base: str | None, data: str | None, metrics: Mapping[str, Any]) -> Path:
    """The path of README.md, written by the main process: front matter for the hub, configuration, data, metrics, paper."""
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
