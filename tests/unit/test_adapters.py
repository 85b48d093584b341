"""LoRA's result is a model folder like any other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from rlt.models.loading import load_model
from rlt.training.lora import save_whole


def _trainer(model: torch.nn.Module, folder: Path) -> SimpleNamespace:
    return SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped),
        is_world_process_zero=lambda: True,
        args=SimpleNamespace(output_dir=str(folder)),
        save_model=lambda: model.save_pretrained(folder),
    )


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, **shape)).eval()


def test_adapters_are_merged_into_a_model_that_loads_without_peft(tmp_path: Path) -> None:
    tuned = get_peft_model(_model(), LoraConfig(r=2, target_modules="all-linear")).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.arange(7)[None]
    expected, base = tuned(ids).logits, _model()(ids).logits
    save_whole(_trainer(tuned, tmp_path))
    assert not list(tmp_path.glob("adapter*"))
    loaded = load_model(str(tmp_path), device="cpu")
    torch.testing.assert_close(loaded(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(loaded(ids).logits, base, atol=1e-2)


def test_a_model_without_adapters_is_saved_as_the_trainer_does(tmp_path: Path) -> None:
    save_whole(_trainer(_model(), tmp_path))
    torch.testing.assert_close(load_model(str(tmp_path), device="cpu")(torch.ones(1, 3).long()).logits,
                               _model()(torch.ones(1, 3).long()).logits)  # fmt: skip
