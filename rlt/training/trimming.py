"""Computes each micro-batch at its own width.

TRL pads the completions of a whole generation (hundreds per process) to the longest one and computes the padding in the
passes of policy and reference. Lengths differ by a factor of three or more, so most of this work is wasted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from trl import GRPOTrainer as _Trainer
else:
    _Trainer = object


class TrimmedPadding(_Trainer):
    """Mixin before TRL's GRPOTrainer that skips columns of padding in all rows of a micro-batch.

    Log-probs and entropies keep TRL's shape `(B, logits_to_keep)`, with 0 at skipped positions, which are masked
    everywhere. Only padding on the right is skipped, so positions do not change. The number of forward passes per rank
    does not depend on widths.
    """

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        rows = batch_size or len(input_ids)
        logprobs: list[torch.Tensor] = []
        entropies: list[torch.Tensor] = []
        losses: list[torch.Tensor] = []
        for ids, mask in zip(input_ids.split(rows), attention_mask.split(rows), strict=True):
            first = ids.size(1) - logits_to_keep
            # Keep at least one completion token, even if every completion is empty.
            stop = max(first + 1, int(mask.any(0).nonzero().max()) + 1)
            ours, entropy, loss = super()._get_per_token_logps_and_entropies(
                model, ids[:, :stop], mask[:, :stop], stop - first, **kwargs
            )
            missing = (0, ids.size(1) - stop)
            logprobs.append(torch.nn.functional.pad(ours, missing))
            if entropy is not None:
                entropies.append(torch.nn.functional.pad(entropy, missing))
            if loss is not None:
                losses.append(loss)
        return (
            torch.cat(logprobs),
            torch.cat(entropies) if entropies else None,
            torch.stack(losses).mean() if losses else None,
        )
