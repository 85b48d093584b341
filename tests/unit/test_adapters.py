"""LoRA's result is a model folder like any other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
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


def _tuned_in_bfloat16() -> tuple[torch.nn.Module, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """A model with an adapter, and each adapted weight with its update, in float64."""
    tuned = get_peft_model(_model().to(torch.bfloat16), LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"]))
    exact = {}
    for name, module in tuned.named_modules():
        if name.endswith("q_proj"):
            torch.nn.init.normal_(module.lora_B.default.weight, std=0.001)
            delta = 2 * module.lora_B.default.weight.double() @ module.lora_A.default.weight.double()
            exact[name.removeprefix("base_model.model.")] = (module.get_base_layer().weight.double(), delta)
    return tuned, exact


def test_an_adapter_of_bfloat16_weights_is_saved_whole_in_float32(tmp_path: Path) -> None:
    tuned, exact = _tuned_in_bfloat16()
    assert save_whole(_trainer(tuned, tmp_path), "float32") == {"merged_dtype": "float32", "merge_loss": 0.0}
    whole = load_model(str(tmp_path), "auto", device="cpu")
    for name, (base, delta) in exact.items():
        torch.testing.assert_close(whole.get_submodule(name).weight.double(), base + delta, atol=1e-7, rtol=1e-6)


def test_what_rounding_to_bfloat16_costs_is_said(tmp_path: Path, capsys) -> None:
    tuned, exact = _tuned_in_bfloat16()
    numbers = save_whole(_trainer(tuned, tmp_path))
    errors = [(base + delta).float().to(torch.bfloat16).double() - base - delta for base, delta in exact.values()]
    share = sum(e.square().sum() for e in errors).sqrt() / sum(d.square().sum() for _, d in exact.values()).sqrt()
    assert numbers == {"merged_dtype": "bfloat16", "merge_loss": pytest.approx(share.item(), rel=0.05)}
    assert share > 0.01
    assert "saved as bfloat16; rounding costs" in (said := capsys.readouterr().out)
    assert "`merge_dtype: float32`" in said
    kept = load_file(tmp_path / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert kept.dtype == torch.bfloat16
