"""What one step needs: the result of planning it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlt.planning.memory import Memory


@dataclass(frozen=True)
class StepPlan:
    """Memory, time and disk of one step; byte counts are floats."""

    name: str
    stage: str
    model: str = ""
    gpus: int = 0
    moments: tuple[Memory, ...] = ()
    """Memory of one GPU while sampling, scoring, updating."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each part of the work."""
    disk: float = 0.0
    """Bytes left on disk."""
    disk_peak: float = 0.0
    """Maximum bytes on disk while the step runs, if more than `disk`."""
    host: float = 0.0
    """Bytes of host memory over all processes."""
    notes: tuple[str, ...] = ()
    """What was planned: rows, steps, GPUs."""
    warnings: tuple[str, ...] = ()
    """What to change, or what is not counted."""

    @property
    def peak(self) -> float:
        """Bytes on the fullest GPU at the fullest moment."""
        return max((memory.total for memory in self.moments), default=0.0)

    @property
    def hours(self) -> float:
        return sum(self.seconds.values()) / 3600
