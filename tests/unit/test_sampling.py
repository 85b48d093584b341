"""Drawing tokens: frequencies, truncation and random numbers, worked by hand."""

from __future__ import annotations

import pytest
import torch

from rlt.engines import sampling as module
from rlt.engines.base import Sampling
from rlt.engines.sampling import sample, uniform


def test_splitmix64_of_the_counter_one():
    # splitmix64(seed=0)'s first output is 0xE220A8397B1DCDAF; its upper 53 bits are the number.
    assert uniform(torch.tensor([0]), 0).item() == (0xE220A8397B1DCDAF >> 11) / 2**53


def test_uniform_numbers_have_no_pattern_over_seeds_or_steps():
    seeds = torch.arange(2000)
    drawn = torch.stack([uniform(seeds, step) for step in range(50)])
    assert abs(drawn.mean() - 0.5) < 0.005
    assert len(drawn.unique()) == drawn.numel()
    assert abs(torch.corrcoef(drawn[:2])[0, 1]) < 0.07


def test_sampled_frequencies_are_the_distribution():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20000, 3)
    counts = sample(logits, Sampling(1), torch.arange(20000), 0)[0].bincount(minlength=3) / 20000
    assert counts.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.015)


def test_temperature_divides_the_logits():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20000, 3)
    counts = sample(logits, Sampling(1, temperature=0.5), torch.arange(20000), 0)[0].bincount(minlength=3) / 20000
    assert counts.tolist() == pytest.approx([25 / 38, 9 / 38, 4 / 38], abs=0.015)


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(1, temperature=0), {1}),
        (Sampling(1, top_k=2), {1, 2}),
        (Sampling(1, top_p=0.49), {1}),
        (Sampling(1, top_p=0.51), {1, 2}),
        (Sampling(1, top_p=0.81), {0, 1, 2}),
        (Sampling(1, top_k=2, top_p=0.6), {1}),
    ],
)
def test_what_top_k_and_top_p_leave(sampling, allowed):
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(500, 3)
    assert set(sample(logits, sampling, torch.arange(500), 3)[0].tolist()) == allowed


def test_the_log_prob_is_the_logits_own_whatever_is_truncated_and_however_warm():
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(200, 3)
    for sampling in (Sampling(1, temperature=0), Sampling(1, temperature=0.5), Sampling(1, top_k=2, top_p=0.6)):
        chosen, nats = sample(logits + 7, sampling, torch.arange(200), 0)
        assert torch.allclose(nats, logits.gather(1, chosen[:, None])[:, 0], atol=1e-5)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_the_token_drawn_is_where_the_whole_cumulative_distribution_passes_the_number(size):
    weights = torch.randint(0, 5, (400, size), generator=torch.Generator().manual_seed(0)).float()
    weights[:, size // 2] += 1  # some weight in every row; whole numbers, so that all sums are exact
    at = uniform(torch.arange(400), 0)
    cumulative = weights.double().cumsum(-1)
    expected = (cumulative <= (at * cumulative[:, -1])[:, None]).sum(-1)
    assert module._invert(weights, at).tolist() == expected.tolist()


@pytest.mark.parametrize("at", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_draw_a_token_that_has_weight(at):
    weights = torch.zeros(1, 700)
    weights[0, 300:310] = 0.1
    (chosen,) = module._invert(weights, torch.tensor([at], dtype=torch.float64)).tolist()
    assert chosen == (300 if at == 0 else 309)


def test_top_p_is_the_same_by_sorting_a_few_candidates_or_the_whole_vocabulary(monkeypatch):
    logits = 3 * torch.randn(64, 2000, generator=torch.Generator().manual_seed(0))
    seeds, sampling = torch.arange(64), Sampling(1, top_p=0.8)
    few, _ = sample(logits, sampling, seeds, 0)
    monkeypatch.setattr(module, "CANDIDATES", 4)
    whole, _ = sample(logits, sampling, seeds, 0)
    assert few.tolist() == whole.tolist()
