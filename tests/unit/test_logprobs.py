"""Log-probs of chosen tokens against the logits of all positions."""

import copy
import math

import pytest
import torch
from byte_models import byte_tokenizer, tiny_model

from rlt.errors import ModelError
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
        assert column.tolist() == pytest.approx(expected(model, row), abs=bfloat16_rounding(model, row))


def bfloat16_rounding(model, row):
    """What rounding in another order may change: hidden states and logits have 8 bits, so that each of the logit's H
    products, its sum and the softmax's largest logit may be off by 2^-8 of their size."""
    with torch.no_grad():
        largest = model(torch.tensor([row.ids])).logits.float().abs().max().item()
    return 4 * 2**-8 * max(1.0, largest)


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


# Families by the shape of what follows their layers and by what their layers see: each is scored right, or refused.
SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    "max_position_embeddings": 64, "initializer_range": 0.5,
}  # fmt: skip
FAMILIES = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "mistral": {"sliding_window": 4}, "gemma2": {"final_logit_softcapping": 0.5},
    "gemma3_text": {}, "cohere2": {"logit_scale": 0.3}, "granite": {"logits_scaling": 4.0}, "phi3": {}, "olmo2": {},
    "smollm3": {}, "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64},
    "opt": {"ffn_dim": 16, "word_embed_proj_dim": 16},
    "xglm": {"d_model": 16, "ffn_dim": 16, "attention_heads": 2, "num_layers": 2},
    "biogpt": {}, "bloom": {"n_layer": 2, "n_head": 2}, "gpt_neox": {}, "falcon_mamba": {"state_size": 4},
    "mamba": {"state_size": 4}, "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4},
    "llama4_text": {"intermediate_size_mlp": 16, "num_local_experts": 2, "attention_chunk_size": 8192},
    "modernbert-decoder": {}, "recurrent_gemma": {"lru_width": 16, "logits_soft_cap": 0.5},
    "qwen2_moe": {"num_experts": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_experts_per_tok": 1},
}  # fmt: skip
REFUSED = {"modernbert-decoder"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_scored_as_its_own_logits_say_or_refused(family):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    if family in REFUSED:
        with pytest.raises(ModelError, match=r"differ from those of the model's own logits by [\d.]+ nats"):
            token_logprobs(model, ROWS)
        return
    for row, column in zip(ROWS, token_logprobs(model, ROWS), strict=True):
        assert column.tolist() == pytest.approx(expected(model, row), abs=2e-4)


def test_an_adapter_on_the_output_layer_is_refused():
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, lora_alpha=64, target_modules=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    with pytest.raises(ModelError, match="leave `lm_head` out"):
        token_logprobs(get_peft_model(tiny_model(TOKENIZER, 0), lora), ROWS)


def test_a_copy_of_a_scored_model_runs_its_own_weights():
    model = tiny_model(TOKENIZER, 0)
    token_logprobs(model, ROWS)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    fresh = tiny_model(TOKENIZER, 0)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(copied(ids).logits, fresh(ids).logits)
    for row, column in zip(ROWS, token_logprobs(copied, ROWS), strict=True):
        assert column.tolist() == pytest.approx(expected(fresh, row), abs=1e-5)


def test_the_exact_kl_of_padded_output_layers_is_over_the_tokens_that_both_have():
    # Logits 0 and ln 3 give (1/4, 3/4), logits 0 and 0 give (1/2, 1/2); the third row of the student is padding.
    teacher = Head(torch.tensor([[0.0], [1.0]]), None, 1.0, None)
    student = Head(torch.tensor([[0.0], [0.0], [7.0]]), None, 1.0, None)
    kl = exact_kl(teacher, torch.tensor([[3.0]]).log(), student, torch.ones(1, 1), 1.0)
    assert kl.tolist() == pytest.approx([0.25 * math.log(0.5) + 0.75 * math.log(1.5)])
