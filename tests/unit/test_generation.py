"""Sampling, seeds and stop strings, worked by hand; the transformers engine is the same batched and one by one."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch
from byte_models import byte_tokenizer, tiny_model

from rlt.config import EngineOptions
from rlt.engines.base import Request, Sampling, budget, cut, request_seed
from rlt.engines.build import build_engine
from rlt.engines.hf import HfEngine, sample, uniform
from rlt.errors import ConfigError, DependencyError
from rlt.text.tokens import encode

TOKENIZER = byte_tokenizer()
MODEL = tiny_model(TOKENIZER, 0, max_position_embeddings=96)
END = TOKENIZER.eos_token_id


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


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
    counts = sample(logits, Sampling(1), torch.arange(20000), 0).bincount(minlength=3) / 20000
    assert counts.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.015)


def test_temperature_divides_the_logits():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20000, 3)
    counts = sample(logits, Sampling(1, temperature=0.5), torch.arange(20000), 0).bincount(minlength=3) / 20000
    assert counts.tolist() == pytest.approx([25 / 38, 9 / 38, 4 / 38], abs=0.015)


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(1, temperature=0), {1}),
        (Sampling(1, top_k=2), {1, 2}),
        (Sampling(1, top_p=0.5), {1}),
        (Sampling(1, top_p=0.51), {1, 2}),
        (Sampling(1, top_p=0.81), {0, 1, 2}),
        (Sampling(1, top_k=2, top_p=0.6), {1}),
    ],
)
def test_what_top_k_and_top_p_leave(sampling, allowed):
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(500, 3)
    assert set(sample(logits, sampling, torch.arange(500), 3).tolist()) == allowed


def test_a_seed_depends_on_its_parts_alone():
    assert request_seed(0, "a", 1) == request_seed(0, "a", 1)
    assert (
        len({request_seed(0, "a", 1), request_seed(1, "a", 1), request_seed(0, "b", 1), request_seed(0, "a", 2)}) == 4
    )
    assert 0 <= request_seed(0, "a", 1) < 2**31


def test_the_budget_is_what_the_context_leaves():
    assert [budget(n, Sampling(10), 32) for n in (5, 25, 32, 40)] == [10, 7, 0, 0]
    assert budget(10**6, Sampling(10), None) == 10


def test_an_end_token_stays_in_the_ids_and_not_in_the_text():
    assert cut(TOKENIZER, [*ids("ab"), END, *ids("c")], (), {END}) == ([*ids("ab"), END], "ab", True)


def test_a_stop_string_ends_text_and_ids_with_the_token_that_completes_it():
    written = ids("a b</stop>cd")
    kept, text, stopped = cut(TOKENIZER, written, ("</stop>",), {END})
    assert (text, stopped) == ("a b</stop>", True)
    assert kept == written[: len(kept)]
    assert "</stop>" in TOKENIZER.decode(kept)
    assert "</stop>" not in TOKENIZER.decode(kept[:-1])


def test_nothing_stops_what_runs_on():
    assert cut(TOKENIZER, ids("ab"), ("</stop>",), {END}) == (ids("ab"), "ab", False)


REQUESTS = [Request(str(i), "What is " * (1 + i % 4) + f"{i}?", seed=i) for i in range(12)]


def write(batch_size: int, sampling: Sampling, requests: list[Request] = REQUESTS) -> dict[str, object]:
    return {c.key: c for c in HfEngine.of(MODEL, TOKENIZER, batch_size).generate(requests, sampling)}


def test_batched_is_one_by_one():
    sampling = Sampling(40, temperature=1.0, top_p=0.95, stop=("the",))
    together, alone = write(12, sampling), write(1, sampling)
    for key, completion in alone.items():
        assert together[key].token_ids == completion.token_ids
        assert together[key].text == completion.text
        assert together[key].logprob_sum == pytest.approx(completion.logprob_sum, abs=1e-3)


def test_order_changes_nothing():
    sampling = Sampling(20, temperature=1.0)
    assert {k: c.token_ids for k, c in write(5, sampling).items()} == {
        k: c.token_ids for k, c in write(5, sampling, REQUESTS[::-1]).items()
    }


def test_greedy_is_what_transformers_generates():
    for request in REQUESTS[:3]:
        prompt = torch.tensor([ids(request.prompt)])
        expected = MODEL.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :].tolist()
        assert list(write(3, Sampling(12, temperature=0), [request])[request.key].token_ids) == expected


def test_the_log_prob_sum_is_the_models_own_whatever_the_temperature():
    from rlt.models.logprobs import Row, token_logprobs

    for completion in write(4, Sampling(8, temperature=0.5, top_k=5), REQUESTS[:4]).values():
        prompt = ids(REQUESTS[int(completion.key)].prompt)
        whole = [*prompt, *completion.token_ids]
        (column,) = token_logprobs(MODEL, [Row(whole, [range(len(prompt), len(whole))])])
        assert completion.logprob_sum == pytest.approx(float(column.sum()), abs=1e-3)


def test_a_prompt_that_fills_the_context_gets_no_token_and_says_length():
    (full,) = write(2, Sampling(8), [Request("long", "a b" * 100, 0)]).values()
    assert (full.finish_reason, full.completion_tokens, full.text) == ("length", 0, "")


def test_a_completion_ends_where_the_context_does():
    (short,) = write(2, Sampling(1000, temperature=0), [Request("x", "a b", 0)]).values()
    assert short.prompt_tokens + short.completion_tokens <= 96


def test_requests_are_drawn_as_they_are_needed():
    drawn: Counter[str] = Counter()

    def source():
        for i in range(1000):
            drawn["requests"] += 1
            yield Request(str(i), "a", i)

    next(HfEngine.of(MODEL, TOKENIZER, 2).generate(source(), Sampling(1)))
    assert drawn["requests"] <= 2 * 8


def test_continuous_batching_writes_greedily_what_batches_do(tmp_path):
    MODEL.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    paged = {"num_blocks": 16, "page_size": 32, "max_batch_tokens": 128}
    options = EngineOptions(engine_options={"continuous_batching": paged})
    engine = build_engine(options, str(tmp_path))
    written = {c.key: c for c in engine.generate(REQUESTS[:3], Sampling(6, temperature=0))}
    for key, completion in write(3, Sampling(6, temperature=0), REQUESTS[:3]).items():
        assert written[key].token_ids == completion.token_ids
        assert written[key].logprob_sum == pytest.approx(completion.logprob_sum, abs=1e-3)
    (drawn,) = engine.generate(REQUESTS[:1], Sampling(2, temperature=1.0))
    assert drawn.seed is None  # its random numbers are those of all requests together


@pytest.mark.parametrize(
    ("sampling", "seeds"), [(Sampling(2, temperature=1.0), {7, 8}), (Sampling(2, temperature=0), {None})]
)
def test_a_completion_has_the_seed_that_was_used_and_greedy_ones_have_none(sampling, seeds):
    written = write(2, sampling, [Request("a", "What?", 7), Request("b", "Why?", 8)])
    assert {completion.seed for completion in written.values()} == seeds


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(ConfigError, match="needs `url`"):
        build_engine(EngineOptions(engine="openai"), "x")
    with pytest.raises(ConfigError, match="`url` is for engine `openai`"):
        build_engine(EngineOptions(url="http://127.0.0.1:1/v1"), "x")


def test_a_missing_extra_gives_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(DependencyError, match=r"pip install 'rlt\[vllm\]'"):
        build_engine(EngineOptions(engine="vllm"), "x")


def test_a_prompt_is_never_truncated_or_padded_whatever_its_tokenizer_was_saved_with():
    limited = byte_tokenizer()
    limited.backend_tokenizer.enable_truncation(3)
    limited.backend_tokenizer.enable_padding(length=64)
    assert encode(limited, "one two three") == TOKENIZER.encode("one two three", add_special_tokens=False)
