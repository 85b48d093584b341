"""Each micro-batch computed at its own width.

TRL pads the completions of a whole generation (hundreds in one process) to the longest of them, and computes with the
padding in the policy's and the reference's passes. Lengths differ by a factor of three and more: most of it is wasted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from trl import GRPOTrainer as _Trainer
else:
    _Trainer = object


class TrimmedPadding(_Trainer):
    """Mixin before TRL's GRPOTrainer: columns that are padding in all rows of a micro-batch are not computed.

    Log-probs and entropies keep TRL's shape `(B, logits_to_keep)`, with 0 where nothing was computed; those positions
    are masked everywhere. Only padding on the right goes, so positions stay what they were. Every rank makes as many
    forward passes as before, whatever its widths.
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
            # At least one completion token stays, also where every completion is empty.
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
