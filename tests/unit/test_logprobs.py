"""Log-probs of chosen tokens against the logits of all positions."""

import copy
import math
import pickle

import pytest
import torch
from byte_models import byte_tokenizer, tiny_model

from rlt.errors import ModelError
from rlt.models.heads import Head, exact_kl, project
from rlt.models.logprobs import (
    Row,
    hidden_states,
    output_head,
    plan_batches,
    token_logprobs,
)

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
    # Logits 0, 1, 2 and 3 are exact in bfloat16, so nothing of these numbers depends on how a processor rounds it.
    weight = torch.arange(4.0).bfloat16()[:, None]
    column = project(Head(weight, None, 1.0, None), torch.ones(1, 1).bfloat16(), torch.tensor([2]), 1.0)
    total = math.log(1 + math.e + math.e**2 + math.e**3)
    assert column.dtype == torch.float32
    assert column.item() == pytest.approx(2 - total, abs=1e-6)
    for column in token_logprobs(tiny_model(TOKENIZER, 0).to(torch.bfloat16), ROWS):
        assert column.dtype == torch.float32


def test_they_are_computed_under_the_models_own_autocast():
    autocast = torch.autocast("cpu", torch.bfloat16)
    model = copy.deepcopy(MODEL)
    model.forward = autocast(model.forward)  # as accelerate does
    (column,) = token_logprobs(model, ROWS[:1])
    with torch.no_grad(), autocast:
        logits = MODEL(torch.tensor([ROWS[0].ids[:3]]), use_cache=False).logits
    assert logits.dtype == torch.bfloat16
    # One logit of 20 rounded to 8 bits may be 2^-4 off, in either computation; float32 would be closer to MODEL's.
    reference = logits[0, 1:3].float().log_softmax(-1)[[0, 1], [7, 8]]
    assert torch.allclose(column, reference, atol=2**-3)
    (whole,) = hidden_states(model, ROWS[:1])
    assert whole.dtype == torch.bfloat16  # what the output layer multiplies under autocast


def test_an_ordinary_call_of_the_model_is_unchanged_afterwards():
    before = MODEL(torch.tensor([[1, 2, 3]])).logits
    token_logprobs(MODEL, ROWS)
    assert torch.equal(MODEL(torch.tensor([[1, 2, 3]])).logits, before)


def test_a_copy_of_a_scored_model_runs_its_own_weights():
    token_logprobs(MODEL, ROWS)
    for twin in (copy.deepcopy(MODEL), pickle.loads(pickle.dumps(MODEL))):
        with torch.no_grad():
            twin.lm_head.weight.mul_(0.5)
        for row, column in zip(ROWS, token_logprobs(twin, ROWS), strict=True):
            assert column.tolist() == pytest.approx(expected(twin, row), abs=1e-5)
            assert column.tolist() != pytest.approx(expected(MODEL, row), abs=1e-2)


def test_a_compiled_model_gives_the_numbers_of_its_weights():
    compiled = torch.compile(copy.deepcopy(MODEL), backend="eager")
    with torch.no_grad():
        compiled(torch.tensor([[1, 2, 3]]))
    for row, column in zip(ROWS, token_logprobs(compiled, ROWS), strict=True):
        assert column.tolist() == pytest.approx(expected(MODEL, row), abs=1e-5)


@pytest.mark.parametrize("scored_first", [True, False], ids=["at zero first", "trained"])
def test_lora_on_the_output_layer_counts(scored_first):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(copy.deepcopy(MODEL), config).eval()
    if scored_first:  # LoRA starts as nothing: numbers alone would not show that the layer is another one
        token_logprobs(model, ROWS)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=1.0)
    for row, column in zip(ROWS, token_logprobs(model, ROWS, batch_tokens=1), strict=True):
        assert column.tolist() == pytest.approx(expected(model, row), abs=1e-4)
        if column.numel():
            assert column.tolist() != pytest.approx(expected(MODEL, row), abs=1e-2)
    for refused in (lambda: output_head(model), lambda: hidden_states(model, ROWS)):
        with pytest.raises(ModelError, match="`exact` needs a plain output layer"):
            refused()


def test_prompt_tuning_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    model = peft.get_peft_model(copy.deepcopy(MODEL), config)
    with pytest.raises(ModelError, match="prompt tuning or prefix tuning are not supported"):
        token_logprobs(model, ROWS)


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
