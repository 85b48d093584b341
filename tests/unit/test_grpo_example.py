"""examples/grpo_without_trl.py: what it sends to the service, and that it climbs the reward."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from byte_models import byte_tokenizer, tiny_model

from rlt.types import Problem

ROOT = Path(__file__).parents[2]
PROMPTS = ["a", "a longer prompt"]
PROBLEMS = [Problem(str(i), "What?", "That.") for i in range(2)]


@pytest.fixture
def example(monkeypatch):
    spec = importlib.util.spec_from_file_location("grpo_without_trl", ROOT / "examples" / "grpo_without_trl.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {"PROMPTS": 2, "GROUP": 8, "LENGTH": 4, "LEARNING_RATE": 3e-2}.items():
        monkeypatch.setattr(module, name, value)
    return module


class Service:
    """Rewards the share of even tokens; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def score(self, rows):
        self.asked.append(rows)
        rewards = [sum(token % 2 == 0 for token in row["token_ids"]) / len(row["token_ids"]) for row in rows]
        return [{"reward": reward, "r_ss": reward, "r_kl": 0.0} for reward in rewards]

    def number(self, scored):
        return scored["reward"]


def test_it_sends_the_log_probs_of_the_tokens_that_were_sampled_and_climbs_the_reward(example):
    torch.manual_seed(0)
    tokenizer, teacher, service = byte_tokenizer(), tiny_model(byte_tokenizer(), 0), Service()
    tokenizer.padding_side = "left"
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    curve = example.train(teacher, tokenizer, PROMPTS, PROBLEMS, service, 30)
    assert len(curve) == 30
    assert sum(point["reward"] for point in curve[-5:]) > sum(point["reward"] for point in curve[:5])
    # One by one, without padding, the untrained teacher gives the same log-probs.
    teacher.load_state_dict(before)
    possible = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS]
    for n, row in enumerate(service.asked[0]):
        found = [_alone(teacher, prompt, row["token_ids"]) for prompt in possible]
        assert any(row["logprobs"] == pytest.approx(values, abs=1e-4) for values in found), n
        assert len(row["token_ids"]) <= 4
        assert tokenizer.eos_token_id not in row["token_ids"][:-1]


@torch.no_grad()
def _alone(teacher, prompt, ids):
    logits = teacher(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()
    return [row.log_softmax(-1)[token].item() for row, token in zip(logits, ids, strict=True)]
