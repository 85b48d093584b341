"""Tiny random models of many families: log-probs are those of the model's own logits, or the model is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlt.errors import ModelError
from rlt.models.logprobs import Row, token_logprobs

SMALL = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# Family, and what of its configuration makes its output layer or its layers differ from Llama's.
FAMILIES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {"sliding_window": 4}),
    ("smollm3", {}),
    ("olmo2", {}),
    ("phi", {}),  # a bias
    ("phi3", {}),
    ("gemma2", {"final_logit_softcapping": 0.5}),
    ("gemma3_text", {"final_logit_softcapping": 0.5, "sliding_window": 4}),
    ("cohere2", {"logit_scale": 0.3}),
    ("granite", {"logits_scaling": 3.0}),
    ("hyperclovax", {"logits_scaling": 3.0}),
    ("recurrent_gemma", {"logits_soft_cap": 0.5, "lru_width": 32}),
    ("gpt2", {}),
    ("gpt_neox", {}),
    ("bloom", {}),
    ("opt", {}),
    ("opt", {"word_embed_proj_dim": 16}),
    ("xglm", {}),
    ("biogpt", {}),
    ("mamba", {}),
    ("rwkv", {}),
    ("xlstm", {}),  # caps inside its forward
    ("jamba", {"num_experts": 4}),
    ("lfm2", {}),
    ("olmo_hybrid", {}),
    ("modernbert-decoder", {}),  # layers between body and output layer
    ("llama4_text", {"num_local_experts": 2}),
    ("gpt_oss", {"num_local_experts": 4}),
    ("mixtral", {}),
    ("qwen2_moe", EXPERTS),
    ("qwen3_moe", EXPERTS),
    ("qwen3_next", EXPERTS),
    (
        "deepseek_v3",
        {
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "num_key_value_heads": 4,
            "qk_rope_head_dim": 8,
            "kv_lora_rank": 8,
            **EXPERTS,
        },
    ),
    ("afmoe", EXPERTS),
]
ROWS = [
    Row([5, 6, 7, 8, 9], [range(2, 4)]),
    Row([9, 8, 7, 6, 5, 4, 3, 2], [range(1, 3), range(5, 8)]),
    Row([11, 12, 13], [range(0), range(2, 3)]),
]


def build(family: str, **options: object) -> torch.nn.Module:
    """A model with random weights wide enough that its distributions are far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SMALL, **options}))
    assert sum(weight.numel() for weight in model.parameters()) < 1e7
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
    return model.eval()


def expected(model: torch.nn.Module, row: Row) -> list[float]:
    with torch.no_grad():
        logprobs = model(torch.tensor([row.ids]), use_cache=False).logits[0].float().log_softmax(-1)
    return [logprobs[i - 1, row.ids[i]].item() for span in row.keep for i in span]


@pytest.mark.parametrize(("family", "options"), FAMILIES, ids=[f"{name}{i}" for i, (name, _) in enumerate(FAMILIES)])
def test_they_are_those_of_the_models_own_logits(family, options):
    model = build(family, **options)
    for row, column in zip(ROWS, token_logprobs(model, ROWS, batch_tokens=16), strict=True):
        assert column.tolist() == pytest.approx(expected(model, row), abs=1e-4)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "roformer"])
def test_a_model_that_reads_what_comes_later_is_refused(family):
    with pytest.raises(ModelError, match=r"later tokens change .* by .* nats, so this model is not causal"):
        token_logprobs(build(family), ROWS)


def test_other_numbers_than_those_of_the_models_own_logits_are_refused_with_the_difference():
    model = build("llama")
    # A head that sees more than the hidden state it is given: the position in the text.
    shift = torch.linspace(0, 3, 60)
    model.lm_head.register_forward_hook(lambda _m, _a, logits: logits + shift * torch.arange(logits.shape[1])[:, None])
    with pytest.raises(
        ModelError,
        match=r"LlamaForCausalLM: log-probs differ .* by 1\d\.\d nats .*; rounding in float32 explains 0\.000",
    ):
        token_logprobs(model, ROWS)
