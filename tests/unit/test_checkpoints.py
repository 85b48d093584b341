"""A checkpoint is one when its marker is there; what was cut off is removed, and the last whole one is never lost."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlt.training.checkpoints import MARKER, WholeCheckpoints, discard_incomplete, last_checkpoint


def make_checkpoint(folder: Path, step: int, *files: str) -> None:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in files:
        (path / name).write_text("{}")


def test_the_newest_complete_checkpoint_counts_by_number_and_others_are_removed(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 9, "trainer_state.json", MARKER)
    make_checkpoint(tmp_path, 10, "trainer_state.json", MARKER)
    make_checkpoint(tmp_path, 11, "model.safetensors")  # no trainer_state.json yet
    make_checkpoint(tmp_path, 12, "model.safetensors", "trainer_state.json")  # no reference/ yet
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert discard_incomplete(tmp_path) == [tmp_path / "checkpoint-11", tmp_path / "checkpoint-12"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_without_a_complete_checkpoint_there_is_none(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 3, "trainer_state.json")
    assert last_checkpoint(tmp_path) is None


class Saving:
    """Stands in for transformers' Trainer: writes a file, and deletes old checkpoints as it is told."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.args = SimpleNamespace(save_total_limit=limit, should_save=True)
        self.state = SimpleNamespace(global_step=0, best_model_checkpoint=None)
        self.accelerator = SimpleNamespace(gather=lambda loss: loss, process_index=0, num_processes=1)
        self._tr_loss, self._total_loss_scalar, self._globalstep_last_logged = torch.tensor(0.0), 0.0, 0
        self._metrics = {"train": defaultdict(list)}
        self._total_train_tokens = 0

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self.folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        assert self.args.save_total_limit is None, "old checkpoints must not go before the new one is whole"
        make_checkpoint(self.folder, self.state.global_step, "trainer_state.json")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        pass

    def training_step(self, loss: float) -> None:
        self._tr_loss += loss
        self._metrics["train"]["entropy"].append(loss)


class Whole(WholeCheckpoints, Saving):  # type: ignore[misc]
    fails = False

    def _save_more(self, folder: Path) -> None:
        if self.fails:
            raise KeyboardInterrupt


def save(trainer: Any, step: int, tokens: int = 0) -> None:
    trainer.state.global_step, trainer._total_train_tokens = step, tokens
    trainer._save_checkpoint(None, None)


def test_old_checkpoints_go_when_the_new_one_is_complete_and_not_before(tmp_path: Path) -> None:
    trainer: Any = Whole(tmp_path, limit=1)
    save(trainer, 5)
    trainer.fails = True
    with pytest.raises(KeyboardInterrupt):
        save(trainer, 10)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    trainer.fails = False
    save(trainer, 15)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-15"
    assert not (tmp_path / "checkpoint-5").exists()
    assert trainer.args.save_total_limit == 1


def test_the_count_of_tokens_resumes(tmp_path: Path) -> None:
    trainer: Any = Whole(tmp_path, limit=2)
    save(trainer, 5, tokens=700)
    resumed: Any = Whole(tmp_path, limit=2)
    resumed._load_optimizer_and_scheduler(str(tmp_path / "checkpoint-5"))
    assert resumed._total_train_tokens == 700


def test_the_means_that_are_logged_next_resume(tmp_path: Path) -> None:
    trainer: Any = Whole(tmp_path, limit=2)
    trainer._total_loss_scalar, trainer._globalstep_last_logged = 8.0, 4
    trainer.training_step(2.0)
    save(trainer, 5)
    resumed: Any = Whole(tmp_path, limit=2)
    resumed._load_optimizer_and_scheduler(str(tmp_path / "checkpoint-5"))
    resumed.training_step(1.0)
    resumed.training_step(0.5)
    assert resumed._tr_loss == 3.5
    assert resumed._metrics["train"]["entropy"] == [2.0, 1.0, 0.5]
    assert (resumed._total_loss_scalar, resumed._globalstep_last_logged) == (8.0, 4)
