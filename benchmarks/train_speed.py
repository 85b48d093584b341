"""Training tokens per second at SmolLM2-135M's shape (random weights): the loss with full logits, and as rlt trains.

    python benchmarks/train_speed.py [--rows 4] [--length 128] [--learned 0.6] [--rounds 3] [--bf16]

`full`: transformers' loss, all logits held. `trl`: TRL's fused head: logits in tiles, without Triton of all positions. `rlt`:
the same of learned positions only, as warm-up, distillation and teacher RL train (`rlt.training.compact`). `body`: forward and
backward without a head, the bound of what a faster loss could reach. They take turns, and the fastest round of each counts,
because other work on the machine only slows them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer import utils

from rlt.training.compact import project_learned_positions

SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 4), ("length", 128), ("learned", 0.6), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--bf16", action="store_true", help="autocast, for processors with AMX")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).train().to(device)
    ids = torch.randint(0, SHAPE["vocab_size"], (options.rows, options.length), device=device)
    labels = ids.clone()
    labels[:, : round((1 - options.learned) * options.length)] = -100
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))  # as TRL's SFTTrainer does
    passes: dict[str, Callable[[], torch.Tensor]] = {
        "full": lambda: model(input_ids=ids, labels=labels).loss,
        "trl": lambda: model(input_ids=ids, labels=labels, fused_lm_head=True).loss,
        "rlt": lambda: model(input_ids=ids, labels=labels, fused_lm_head=True).loss,
        "body": lambda: model.model(ids).last_hidden_state.float().sum(),
    }
    trl_head = utils._use_triton
    seconds = dict.fromkeys(passes, float("inf"))
    for _ in range(options.rounds + 1):  # the first round also warms up
        for name, loss in passes.items():
            model.zero_grad()
            utils._use_triton = trl_head
            if name == "rlt":
                project_learned_positions()
            start = time.perf_counter()
            with torch.autocast(device, dtype=torch.bfloat16, enabled=options.bf16):
                value = loss()
            value.backward()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    speed = {name: round(ids.numel() / value, 1) for name, value in seconds.items()}
    ratio = {name: round(seconds["full"] / value, 2) for name, value in seconds.items()}
    print(
        json.dumps(
            {"device": device, "threads": torch.get_num_threads(), "tokens_per_second": speed, "times_full": ratio}
        )
    )


if __name__ == "__main__":
    main()
