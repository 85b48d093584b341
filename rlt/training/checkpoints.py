"""Checkpoints that survive `kill -9`: one is complete once its marker, written last, exists."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from rlt.data.rows import write_text
from rlt.outputs import writing

if TYPE_CHECKING:
    import torch
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

MARKER = "complete.json"


class Running(TypedDict):
    """Sums of a trainer between two logs: loss of each rank, total loss, step last logged, TRL's metrics."""

    loss: list[float]
    total_loss: float
    last_logged: int
    metrics: dict[str, list[float]]


class WholeCheckpoints(_Trainer):
    """Mixin before a transformers Trainer: checkpoints end with a marker, and old ones are deleted only after that.

    transformers writes a checkpoint file by file, deletes old ones on the way, and resumes from the highest number,
    complete or not. The marker also holds values that a resumed trainer would reset: TRL's token count, and the sums
    behind the next logged means.
    """

    _running: Running | None = None

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        try:
            with writing(folder):
                super()._save_checkpoint(model, trial)
                self._save_more(folder)
        finally:
            self.args.save_total_limit = limit
        # The loss of each rank; the gather is also the barrier after which every rank has written its files.
        losses = self.accelerator.gather(self._tr_loss.detach().reshape(1)).tolist()
        if self.args.should_save:
            from transformers.trainer_utils import rotate_checkpoints

            running: Running = {
                "loss": losses, "total_loss": self._total_loss_scalar, "last_logged": self._globalstep_last_logged,
                "metrics": getattr(self, "_metrics", {}).get("train", {}),
            }  # fmt: skip
            marker = {"trained_tokens": getattr(self, "_total_train_tokens", 0), "running": running}
            with writing(folder):
                write_text(folder / MARKER, json.dumps(marker))
            rotate_checkpoints(str(folder.parent), limit, self.state.best_model_checkpoint)

    def _save_more(self, folder: Path) -> None:
        """Save more into the checkpoint `folder`. Every rank calls this."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            marker = json.loads((Path(checkpoint) / MARKER).read_text())
            self._total_train_tokens = marker["trained_tokens"]
            self._running = marker.get("running")

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._running is not None:
            self._resume_means(self._running)
            self._running = None
        return super().training_step(*args, **kwargs)

    def _resume_means(self, running: Running) -> None:
        # Only here: transformers zeroes them after it has loaded the checkpoint.
        losses, rank = running["loss"], self.accelerator.process_index
        # On a different number of ranks each gets the mean: the mean over ranks is logged.
        ranks = self.accelerator.num_processes
        self._tr_loss += losses[rank] if len(losses) == ranks else sum(losses) / len(losses)
        self._total_loss_scalar, self._globalstep_last_logged = running["total_loss"], running["last_logged"]
        self._initial_global_step = 0  # the final mean loss is over all steps, like the sum
        metrics = getattr(self, "_metrics", {}).get("train", {})  # TRL's
        for name, values in running["metrics"].items():
            metrics[name] = [*values, *metrics[name]]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a stage's folder, or None."""
    complete = [path for path in _checkpoints(folder) if (path / MARKER).is_file()]
    return complete[-1] if complete else None


def discard_incomplete(folder: Path) -> list[Path]:
    """Removes the incomplete checkpoints in a stage's folder; returns their paths."""
    incomplete = [path for path in _checkpoints(folder) if not (path / MARKER).is_file()]
    for path in incomplete:
        shutil.rmtree(path)
    return incomplete


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in Path(folder).glob("checkpoint-*") if path.is_dir() and path.name[11:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[11:]))
