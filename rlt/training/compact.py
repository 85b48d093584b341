"""TRL's fused output layer on a CPU, of learned positions only, as on a GPU.

Without Triton, TRL 1.16 projects every position onto the vocabulary, prompts and padding too, and masks afterwards, for the
sake of devices that recompile for each shape (`trl.trainer.utils.add_fused_lm_head`). At 135M parameters and a vocabulary
of 49,152 that is a third of a training step.
"""

from __future__ import annotations

import torch


def project_learned_positions() -> None:
    """Make TRL leave out, on a CPU too, positions whose label is -100. Losses and gradients stay the same."""
    from trl.trainer import utils

    original = utils._use_triton
    if getattr(original, "of_rlt", False):
        return

    def compact(device: torch.device) -> bool:
        return device.type == "cpu" or original(device)

    compact.of_rlt = True  # type: ignore[attr-defined]
    utils._use_triton = compact
