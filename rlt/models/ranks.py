"""Where a token stands among all tokens that could have come in its place."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlt.models.logprobs import TILES, Head


@torch.no_grad()
def token_ranks(head: Head, hidden: Float[Tensor, "n hidden"], targets: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """`(N,)` ranks of `targets` `(N,)` by their logits, 1 for the most probable token, from hidden states `(N, H)`.

    Projected tile by tile; equal logits share the better rank. Neither scale, temperature nor a softcap changes a rank.
    """
    positions, vocabulary = TILES.get(hidden.device.type, TILES["cuda"])
    ranks = [hidden.new_zeros(0, dtype=torch.long)]
    for states, wanted in zip(hidden.split(positions), targets.to(hidden.device).split(positions), strict=True):
        own = torch.full((len(states), 1), -torch.inf, device=hidden.device)
        above = torch.zeros(len(states), dtype=torch.long, device=hidden.device)
        tiles = range(0, head.weight.shape[0], vocabulary)
        # A token's own logit comes from the same product as its rivals', so that rounding cannot put it above itself.
        for tile in tiles:
            inside = (wanted >= tile) & (wanted < tile + vocabulary)
            if inside.any():
                own[inside] = _logits(head, states[inside], tile, vocabulary).gather(1, wanted[inside, None] - tile)
        for tile in tiles:
            above += (_logits(head, states, tile, vocabulary) > own).sum(1)
        ranks.append(above + 1)
    return torch.cat(ranks)


def _logits(head: Head, states: Tensor, tile: int, size: int) -> Tensor:
    weight = head.weight[tile : tile + size]
    bias = None if head.bias is None else head.bias[tile : tile + size]
    return torch.nn.functional.linear(states, weight, bias).float()
