"""On a CPU, TRL's output layer projects learned positions only, and gives what it gives for all of them."""

import pytest
import torch
from byte_models import byte_tokenizer, tiny_model
from trl.trainer import utils

from rlt.models.heads import TILES
from rlt.training.compact import speed_up_output_layer


def loss_and_gradients(seen, monkeypatch):
    model = tiny_model(byte_tokenizer(), 0)
    apply = utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        utils._ChunkedLogProbFunction,
        "apply",
        lambda hidden, *rest: (seen.append(len(hidden)), apply(hidden, *rest))[1],
    )
    utils.add_fused_lm_head(model, outputs=("log_probs",))
    ids = torch.arange(12).reshape(2, 6) + 1
    labels = torch.where(torch.arange(6) < 4, -100, ids)
    loss = model(input_ids=ids, labels=labels, fused_lm_head=True).loss
    loss.backward()
    monkeypatch.undo()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def test_learned_positions_alone_give_the_same_loss_and_gradients(monkeypatch):
    monkeypatch.setattr(utils, "_use_triton", lambda device: False)
    seen = []
    loss, gradients = loss_and_gradients(seen, monkeypatch)
    speed_up_output_layer()
    try:
        fewer, theirs = loss_and_gradients(seen, monkeypatch)
    finally:
        monkeypatch.undo()
    assert seen == [10, 4]  # two rows of five predictions; two learned tokens in each
    torch.testing.assert_close(fewer, loss)
    torch.testing.assert_close(theirs, gradients)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="with an accelerator, TRL's tiles stay as they are")
def test_narrow_tiles_give_the_same_loss_and_gradients(monkeypatch):
    monkeypatch.setitem(
        TILES, "cpu", (1024, 7)
    )  # the vocabulary of some 300 bytes in many tiles, the last one narrower
    seen = []
    monkeypatch.setattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 32768)
    monkeypatch.setattr(utils, "_use_triton", utils._use_triton)
    with monkeypatch.context() as patch:
        loss, gradients = loss_and_gradients(seen, patch)
    speed_up_output_layer()
    assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == 7
    with monkeypatch.context() as patch:
        narrow, theirs = loss_and_gradients(seen, patch)
    torch.testing.assert_close(narrow, loss)
    torch.testing.assert_close(theirs, gradients)


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_other_devices_are_asked_as_before(device):
    speed_up_output_layer()
    original = utils._use_triton
    speed_up_output_layer()
    assert utils._use_triton is original  # once is enough
    assert original(torch.device("cpu"))
    assert not original(torch.device("meta"))
