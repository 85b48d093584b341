"""Models: where one may be placed is checked before anything is loaded."""

import pytest
import torch
from byte_models import byte_tokenizer, save, tiny_model
from pydantic import ValidationError

from rlt.config import StudentOptions
from rlt.errors import ConfigError
from rlt.models.loading import load_model


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
    with pytest.raises(ConfigError, match="cuda:1, and this machine has 1 GPUs"):
        load_model(folder, device="cuda:1")
