"""Checkpoints that can be trusted after `kill -9`: one is complete when, last of all, its marker was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlt.data.rows import write_text

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

MARKER = "complete.json"


class WholeCheckpoints(_Trainer):
    """Mixin before a Trainer of transformers: checkpoints end with a marker, and old ones go only after that.

    transformers writes a checkpoint's files one by one in place, deletes old ones on the way, and takes the highest
    number for the last checkpoint, whatever is in it. The marker also holds TRL's count of tokens trained on, which TRL
    starts at zero again when a run goes on.
    """

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        self._save_more(folder)
        self.accelerator.wait_for_everyone()  # ranks write files of their own
        if self.args.should_save:
            from transformers.trainer_utils import rotate_checkpoints

            write_text(folder / MARKER, json.dumps({"trained_tokens": getattr(self, "_total_train_tokens", 0)}))
            rotate_checkpoints(str(folder.parent), limit, self.state.best_model_checkpoint)

    def _save_more(self, folder: Path) -> None:
        """Whatever else belongs to the checkpoint in `folder`. Every rank calls this."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._total_train_tokens = json.loads((Path(checkpoint) / MARKER).read_text())["trained_tokens"]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a stage's folder, or None."""
    complete = [path for path in _checkpoints(folder) if (path / MARKER).is_file()]
    return complete[-1] if complete else None


def discard_incomplete(folder: Path) -> list[Path]:
    """The checkpoints that were cut off while they were written; they are removed."""
    incomplete = [path for path in _checkpoints(folder) if not (path / MARKER).is_file()]
    for path in incomplete:
        shutil.rmtree(path)
    return incomplete


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in Path(folder).glob("checkpoint-*") if path.is_dir() and path.name[11:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[11:]))
