"""Restricts TRL's fused output layer to learned positions on a CPU, as on a GPU.

Without Triton, TRL 1.16 projects every position onto the vocabulary, including prompts and padding, and masks afterwards,
because some devices recompile for each shape (`trl.trainer.utils.add_fused_lm_head`). At 135M parameters and a vocabulary
of 49,152 this takes a third of a training step.
"""

from __future__ import annotations

import torch


def project_learned_positions() -> None:
    """Make TRL skip positions with label -100 on a CPU too. Losses and gradients are unchanged."""
    from trl.trainer import utils

    original = utils._use_triton
    if getattr(original, "of_rlt", False):
        return

    def compact(device: torch.device) -> bool:
        return device.type == "cpu" or original(device)

    compact.of_rlt = True  # type: ignore[attr-defined]
    utils._use_triton = compact
