"""What a micro-batch gives at its own width is what it gives padded to a whole generation's."""

from __future__ import annotations

from typing import Any

import torch

from rlt.training.trimming import TrimmedPadding


class Counting:
    """Stands in for GRPOTrainer: a token's log-prob is minus its id, its entropy twice that; notes each width."""

    def __init__(self) -> None:
        self.widths: list[int] = []

    def _get_per_token_logps_and_entropies(
        self, model: Any, ids: torch.Tensor, mask: torch.Tensor, keep: int, compute_entropy: bool = False
    ) -> Any:
        self.widths.append(ids.size(1))
        values = -ids[:, -keep:].float()
        return values, 2 * values if compute_entropy else None, None


class Trimmed(TrimmedPadding, Counting):  # type: ignore[misc]
    pass


# Two tokens of prompt, three of completion; 0 is padding.
IDS = torch.tensor([[0, 4, 7, 0, 0], [3, 5, 8, 9, 0], [1, 2, 6, 6, 6], [1, 2, 0, 0, 0]])
MASK = (IDS != 0).long()


def test_each_micro_batch_has_its_own_width() -> None:
    trainer = Trimmed()
    logprobs, entropy, loss = trainer._get_per_token_logps_and_entropies(None, IDS, MASK, 3, batch_size=1)
    assert trainer.widths == [3, 4, 5, 3]  # an empty completion keeps one column
    assert logprobs.tolist() == [[-7, 0, 0], [-8, -9, 0], [-6, -6, -6], [0, 0, 0]]
    assert entropy is None
    assert loss is None


def test_a_micro_batch_is_as_wide_as_its_longest() -> None:
    trainer = Trimmed()
    result = trainer._get_per_token_logps_and_entropies(None, IDS, MASK, 3, batch_size=2, compute_entropy=True)
    assert trainer.widths == [4, 5]
    plain = Counting()._get_per_token_logps_and_entropies(None, IDS, MASK, 3, True)
    assert torch.equal(result[0], plain[0])
    assert torch.equal(result[1], plain[1])


def test_a_gradient_flows_through_what_was_computed() -> None:
    class Learning(Counting):
        weight = torch.ones(1, requires_grad=True)

        def _get_per_token_logps_and_entropies(self, model: Any, ids: Any, mask: Any, keep: int, **_: Any) -> Any:
            return ids[:, -keep:] * self.weight, None, None

    class Trainer(TrimmedPadding, Learning):  # type: ignore[misc]
        pass

    Trainer()._get_per_token_logps_and_entropies(None, IDS, MASK, 3)[0].sum().backward()
    assert Learning.weight.grad.item() == 7 + 8 + 9 + 6 + 6 + 6
