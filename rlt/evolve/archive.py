"""The archive on disk: one Optuna study per arm and repeat, all in one journal that several processes can write."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from rlt.config import EvolveOptions
from rlt.evolve.selection import Draft, Teacher, distribution

JOURNAL = "archive.log"
FINAL = "final "  # one attribute of the study per number, so that two workers cannot overwrite each other's


def storage_of(folder: Path) -> JournalStorage:
    """The journal in a run's folder, which is made where it is missing."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = str(folder / JOURNAL)
    return JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))


class Archive:
    """The teachers of one arm and one repeat. A teacher is one complete trial, added when it is measured: a worker that dies
    leaves none behind.
    """

    def __init__(self, storage: JournalStorage, arm: str, seed: int, options: EvolveOptions) -> None:
        self.arm, self.seed, self.children = arm, seed, options.children
        self.space = {key: distribution(space) for key, space in options.search.items()}
        self.study = optuna.create_study(
            storage=storage, study_name=f"{arm}, seed {seed}", direction="maximize", load_if_exists=True
        )

    def teachers(self) -> dict[int, Teacher]:
        """Number -> teacher, for all that are made, in order; without those beyond the number of children."""
        found = {}
        for trial in self.study.get_trials(deepcopy=False):
            about = trial.user_attrs
            made = Draft(
                about["number"], about["parent"], about["parent_id"], trial.params, tuple(about["mutated"]), about["id"]
            )
            found[made.number] = Teacher(made, trial.values[0], about["stage"], about["screen"], about["seconds"])
        return {number: found[number] for number in sorted(found) if number <= self.children}

    def add(self, teacher: Teacher) -> None:
        made = teacher.draft
        about = {
            "number": made.number, "parent": made.parent, "parent_id": made.parent_id, "mutated": [*made.mutated],
            "id": made.id, "stage": teacher.stage, "screen": teacher.screen, "seconds": teacher.seconds,
        }  # fmt: skip
        self.study.add_trial(
            optuna.trial.create_trial(
                value=teacher.score, params=dict(made.settings), distributions=self.space, user_attrs=about
            )
        )

    @property
    def final(self) -> dict[int, float]:
        """Number -> solve rate on the questions of `final`."""
        attributes = self.study.user_attrs.items()
        return {int(name.removeprefix(FINAL)): rate for name, rate in attributes if name.startswith(FINAL)}

    def add_final(self, number: int, rate: float) -> None:
        self.study.set_user_attr(f"{FINAL}{number}", rate)
