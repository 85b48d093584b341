"""A warmed-up teacher stops where it learned to, in every engine; a checkpoint is there without being asked for."""

import json

from rlt.config import STAGES, TrainConfig
from rlt.data.rows import write_rows
from rlt.engines.hf import end_ids as engine_ends
from rlt.models.loading import load_model, load_tokenizer
from rlt.pipeline import run_stage
from rlt.training.examples import end_ids, read_text
from tests.byte_models import byte_tokenizer, save, tiny_model


def test_a_base_model_whose_eos_does_not_end_a_turn_learns_what_does(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    base = save(tmp_path / "base", tiny_model(tokenizer, 0), tokenizer)
    data = tmp_path / "problems.jsonl"
    write_rows(data, [{"question": "What is 2 + 3?", "solution": "It is 5.", "explanation": "So add."}])
    config = {"output": str(tmp_path / "warm"), "model": base, "data": str(data), "trainer": {"max_steps": 1}}
    run_stage("warmup", STAGES["warmup"].model_validate(config))

    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")}
    warm = str(tmp_path / "warm")
    assert set(json.loads((tmp_path / "warm" / "generation_config.json").read_text())["eos_token_id"]) == ends
    assert engine_ends(load_model(warm, device="cpu"), load_tokenizer(warm)) == ends
    train = TrainConfig(output="rl", model=warm, data=str(data), student=warm)
    assert end_ids(train, read_text("train", train)) == ends  # what GRPO samples to, and what the reward does not read
    assert (tmp_path / "warm" / "checkpoint-1" / "complete.json").is_file()
