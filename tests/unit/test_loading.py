"""Models: placement is checked before anything is loaded, and no weight is ever random, cut off or NaN."""

import logging
from pathlib import Path

import pytest
import torch
from byte_models import byte_tokenizer, save, tiny_model
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from rlt.config import StudentOptions
from rlt.errors import ConfigError, ModelError
from rlt.models.loading import check_weights, load_model


@pytest.mark.parametrize("place", ["same", "offload", "sharded", "cpu", "cuda", "cuda:1"])
def test_these_are_placements(place):
    assert StudentOptions(student_placement=place).student_placement == place


@pytest.mark.parametrize("place", ["gpu", "cuda:", "cuda1", "cpu:0 ", "meta", ""])
def test_others_are_refused_with_the_configuration(place):
    with pytest.raises(ValidationError, match="student_placement"):
        StudentOptions(student_placement=place)


def test_a_gpu_that_is_not_there_is_named(tmp_path, monkeypatch):
    tokenizer = byte_tokenizer()
    folder = save(tmp_path, tiny_model(tokenizer, 0), tokenizer)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="cuda:1: this machine has 1 GPUs"):
        load_model(folder, device="cuda:1")


# -- weights -----------------------------------------------------------------------------------------------------------

DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def saved(tmp_path):
    tokenizer = byte_tokenizer()
    return save(tmp_path, tiny_model(tokenizer, 0), tokenizer)


def change(folder, **weights):
    """Replace weights of a saved model; None removes one."""
    file = Path(folder) / "model.safetensors"
    values = {**load_file(file), **weights}
    save_file({name: value for name, value in values.items() if value is not None}, file, {"format": "pt"})


@pytest.mark.parametrize("use", [load_model, check_weights])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (None, f"lacks 1 weight: {DOWN}"),
        (torch.zeros(3, 3), rf"wrong shape for 1 weight: {DOWN} \[3, 3\] instead of \[32, 64\]"),
    ],
)
def test_a_weight_is_never_replaced_by_random_values(saved, use, value, error):
    change(saved, **{DOWN: value})
    with pytest.raises(ModelError, match=error) as caught:
        use(saved)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("use", [load_model, check_weights])
@pytest.mark.parametrize("content", [b"", b"garbage" * 100, None])
def test_a_corrupt_safetensors_file_is_refused_in_one_line(saved, use, content):
    file = Path(saved) / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ModelError, match="truncated or corrupt") as caught:
        use(saved)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(saved, value):
    weight = torch.zeros(32, 64)
    weight[3, 5] = value
    change(saved, **{DOWN: weight})
    with pytest.raises(ModelError, match=f"weight {DOWN} has NaN or infinite values"):
        load_model(saved, device="cpu")


def test_tied_weights_are_not_missing(tmp_path):
    tokenizer = byte_tokenizer()
    folder = save(tmp_path, tiny_model(tokenizer, 0, tie_word_embeddings=True), tokenizer)
    assert "lm_head.weight" not in load_file(Path(folder) / "model.safetensors")
    check_weights(folder)
    load_model(folder, device="cpu")


def test_loading_a_model_prints_nothing(tmp_path, caplog):
    """Under a logger's level of WARNING transformers lists layers that tensor parallelism leaves whole, on one device too."""
    tokenizer = byte_tokenizer()
    folder = save(tmp_path, tiny_model(tokenizer, 0), tokenizer)
    with caplog.at_level(0):
        logging.getLogger("transformers").addHandler(caplog.handler)
        try:
            load_model(folder)
        finally:
            logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
