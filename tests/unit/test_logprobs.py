"""Log-probs of chosen tokens against the logits of all positions."""

import math

import pytest
import torch
from byte_models import byte_tokenizer, tiny_model

from rlt.models.logprobs import Head, Row, exact_kl, plan_batches, token_logprobs

TOKENIZER = byte_tokenizer()
MODEL = tiny_model(TOKENIZER, 0)
ROWS = [
    Row([5, 6, 7, 8, 9], [range(2, 4)]),
    Row([9, 8, 7, 6, 5, 4, 3, 2], [range(1, 3), range(5, 8)]),
    Row([1, 2, 3], [range(0), range(2, 3)]),
]


def expected(model, row, temperature=1.0):
    with torch.no_grad():
        logprobs = (model(torch.tensor([row.ids])).logits[0].float() / temperature).log_softmax(-1)
    return [logprobs[i - 1, row.ids[i]].item() for span in row.keep for i in span]


@pytest.mark.parametrize("batch_tokens", [1, 9, 1000])
def test_they_are_those_of_the_whole_logits(batch_tokens):
    got = token_logprobs(MODEL, ROWS, temperature=0.7, batch_tokens=batch_tokens)
    for row, column in zip(ROWS, got, strict=True):
        assert column.dtype == torch.float32
        assert column.tolist() == pytest.approx(expected(MODEL, row, 0.7), abs=1e-5)


def test_they_are_float32_whatever_the_weights_are():
    model = tiny_model(TOKENIZER, 0).to(torch.bfloat16)
    for row, column in zip(ROWS, token_logprobs(model, ROWS), strict=True):
        assert column.dtype == torch.float32
        assert column.tolist() == pytest.approx(expected(model, row), abs=0.02)


def test_scaled_and_capped_logits_are_those_of_the_model():
    from transformers import (
        Cohere2Config,
        Cohere2ForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        RecurrentGemmaConfig,
        RecurrentGemmaForCausalLM,
    )

    small = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    small |= {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    for model in (
        Gemma2ForCausalLM(Gemma2Config(**small, final_logit_softcapping=0.5, initializer_range=1.0)).eval(),
        Cohere2ForCausalLM(Cohere2Config(**small, logit_scale=0.3, initializer_range=1.0)).eval(),
        RecurrentGemmaForCausalLM(
            RecurrentGemmaConfig(**small, lru_width=16, logits_soft_cap=0.5, w_init_variance_scale=1.0)
        ).eval(),
    ):
        for row, column in zip(ROWS, token_logprobs(model, ROWS), strict=True):
            assert column.tolist() == pytest.approx(expected(model, row), abs=1e-4)


def test_an_ordinary_call_of_the_model_is_unchanged_afterwards():
    before = MODEL(torch.tensor([[1, 2, 3]])).logits
    token_logprobs(MODEL, ROWS)
    assert torch.equal(MODEL(torch.tensor([[1, 2, 3]])).logits, before)


def test_the_first_token_cannot_be_asked_for():
    with pytest.raises(ValueError, match="nothing predicts the first token"):
        token_logprobs(MODEL, [Row([1, 2], [range(0, 2)])])


def test_batches_hold_at_most_so_many_tokens_longest_first():
    assert plan_batches([3, 9, 4, 5], 10) == [[1], [3, 2], [0]]
    assert plan_batches([50], 10) == [[0]]


def test_nan_stays_in_its_row():
    model = tiny_model(TOKENIZER, 0)
    with torch.no_grad():
        model.get_input_embeddings().weight[[0, 9]] = float("nan")  # 0: what padding might be
    columns = token_logprobs(model, ROWS[:1] + [Row([9, 1], [range(1, 2)])] + ROWS[2:])
    assert torch.isnan(columns[1]).all()
    assert columns[2].tolist() == pytest.approx(expected(model, ROWS[2]), abs=1e-5)


def test_the_exact_kl_of_padded_output_layers_is_over_the_tokens_that_both_have():
    # Logits 0 and ln 3 give (1/4, 3/4), logits 0 and 0 give (1/2, 1/2); the third row of the student is padding.
    teacher = Head(torch.tensor([[0.0], [1.0]]), None, 1.0, None)
    student = Head(torch.tensor([[0.0], [0.0], [7.0]]), None, 1.0, None)
    kl = exact_kl(teacher, torch.tensor([[3.0]]).log(), student, torch.ones(1, 1), 1.0)
    assert kl.tolist() == pytest.approx([0.25 * math.log(0.5) + 0.75 * math.log(1.5)])
