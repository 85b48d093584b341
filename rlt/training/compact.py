"""TRL's fused output layer on a CPU: learned positions only, in tiles that fit the cache.

Without Triton, TRL 1.16 projects every position onto the vocabulary, including prompts and padding, and masks afterwards,
because some devices recompile for each shape (`trl.trainer.utils.add_fused_lm_head`). Its tiles of 32,768 tokens of the
vocabulary, made for a GPU, do not fit a CPU's cache, and each is read and written many times; narrower ones do
(`benchmarks/train_speed.py`).
"""

from __future__ import annotations

import torch

from rlt.models.heads import TILES


def speed_up_output_layer() -> None:
    """Make TRL skip positions with label -100 on a CPU too, and use narrower tiles where there is no accelerator.

    Losses and gradients are unchanged but for the order of additions.
    """
    from trl.trainer import utils

    if not torch.accelerator.is_available():
        utils._CHUNKED_LOGPROB_CHUNK_SIZE = TILES["cpu"][1]
    original = utils._use_triton
    if getattr(original, "of_rlt", False):
        return

    def compact(device: torch.device) -> bool:
        return device.type == "cpu" or original(device)

    compact.of_rlt = True  # type: ignore[attr-defined]
    utils._use_triton = compact
