"""The `transformers` engine: batched is one by one, and greedy is what transformers generates."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from byte_models import byte_tokenizer, tiny_model
from real_tokenizers import real_tokenizer

from rlt.engines import hf
from rlt.engines.base import Request, Sampling
from rlt.engines.hf import HfEngine
from rlt.text.tokens import encode

TOKENIZER = byte_tokenizer()
MODEL = tiny_model(TOKENIZER, 0, max_position_embeddings=96)
END = TOKENIZER.eos_token_id


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


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


@pytest.mark.parametrize(
    ("sampling", "seeds"), [(Sampling(2, temperature=1.0), {7, 8}), (Sampling(2, temperature=0), {None})]
)
def test_a_completion_has_the_seed_that_was_used_and_greedy_ones_have_none(sampling, seeds):
    written = write(2, sampling, [Request("a", "What?", 7), Request("b", "Why?", 8)])
    assert {completion.seed for completion in written.values()} == seeds


def test_a_prompt_is_never_truncated_or_padded_whatever_its_tokenizer_was_saved_with():
    limited = byte_tokenizer()
    limited.backend_tokenizer.enable_truncation(3)
    limited.backend_tokenizer.enable_padding(length=64)
    assert encode(limited, "one two three") == TOKENIZER.encode("one two three", add_special_tokens=False)


def test_a_prompt_that_several_requests_share_is_read_once(monkeypatch):
    read: list[tuple[int, ...]] = []
    forward = MODEL.forward
    monkeypatch.setattr(
        MODEL, "forward", lambda **given: read.append(tuple(given["input_ids"].shape)) or forward(**given)
    )
    requests = [Request(str(i), "What is 2 + 3?" if i % 2 else "What?", i) for i in range(6)]
    together = write(6, Sampling(12), requests)
    assert read[0][0] == 2
    assert read[1] == (6, 1)
    for request in requests:
        assert write(1, Sampling(12), [request])[request.key].token_ids == together[request.key].token_ids


def test_heads_that_share_keys_and_values_give_the_logits_that_transformers_gives(monkeypatch):
    model = tiny_model(TOKENIZER, 0, num_key_value_heads=2)
    called: list[int] = []
    grouped = hf._grouped

    def spy(module, query, *rest, **options):
        called.append(query.shape[2])
        return grouped(module, query, *rest, **options)

    hf.AttentionInterface.register(hf.GROUPED, spy)
    try:
        engine = HfEngine.of(model, TOKENIZER, 4)
        written = {c.key: c for c in engine.generate(REQUESTS[:4], Sampling(10))}
    finally:
        hf.AttentionInterface.register(hf.GROUPED, grouped)
    assert called.count(1) >= 2 * 8  # both layers, every token after the first
    assert model.config._attn_implementation == "sdpa"  # nobody else's forward is changed
    for request in REQUESTS[:4]:
        prompt = ids(request.prompt)
        whole = torch.tensor([[*prompt, *written[request.key].token_ids]])
        logprobs = model(whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logprobs.gather(1, whole[0, len(prompt) :, None]).sum().item()
        assert written[request.key].logprob_sum == pytest.approx(expected, abs=1e-3)


def test_the_text_is_what_stands_behind_the_prompt_with_sentencepiece():
    tokenizer = real_tokenizer("mistral")
    engine = HfEngine.of(tiny_model(tokenizer, 0, hidden_size=8, initializer_range=0.02), tokenizer, 64)
    prompt = "Think: a"
    before = encode(tokenizer, prompt)
    spaces = 0
    for completion in engine.generate([Request(str(i), prompt, i) for i in range(64)], Sampling(3)):
        body = [token for token in completion.token_ids if token not in engine.end_ids]
        assert prompt + completion.text == tokenizer.backend_tokenizer.decode(
            [*before, *body], skip_special_tokens=False
        )
        spaces += completion.text.startswith(" ")
    assert spaces  # a third of the vocabulary begins with one
