"""The moving reference model comes back whole or not at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlt.errors import RunError
from rlt.training.teacher import is_reference, load_weights

ACCELERATOR = SimpleNamespace(unwrap_model=lambda model: model)


def model(seed: int, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=12, tie_word_embeddings=tied, **shape))


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_restored(tmp_path: Path, tied: bool) -> None:
    saved, loaded = model(0, tied), model(1, tied)
    saved.save_pretrained(tmp_path)
    load_weights(loaded, tmp_path, ACCELERATOR)
    for (name, ours), theirs in zip(loaded.state_dict().items(), saved.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    ("drop", "add", "error"),
    [
        (["lm_head.weight"], [], r"1 missing \(lm_head\.weight\), 0 unknown"),
        ([], ["old.weight"], r"0 missing \(\), 1 unknown \(old\.weight\)"),
    ],
)
def test_other_weights_are_refused_and_named(tmp_path: Path, drop: list[str], add: list[str], error: str) -> None:
    model(0).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if name not in drop}
    save_file({**weights, **{name: torch.ones(1) for name in add}}, file)
    untouched = model(1)
    with pytest.raises(RunError, match=error):
        load_weights(untouched, tmp_path, ACCELERATOR)
    assert torch.equal(untouched.lm_head.weight, model(1).lm_head.weight)


def test_a_model_with_lora_is_the_reference_while_its_adapter_is_off() -> None:
    tuned = get_peft_model(model(0), LoraConfig(r=2, target_modules="all-linear"))
    assert not is_reference(model(0))
    assert not is_reference(tuned)
    with tuned.disable_adapter():
        assert is_reference(tuned)
    tuned.add_adapter("ref", LoraConfig(r=2, target_modules="all-linear"))
    assert not is_reference(tuned)
    tuned.set_adapter("ref")
    assert is_reference(tuned)
