"""Training tokens per second at SmolLM2-135M's shape (random weights): the loss with full logits, and as rlt trains.

    python benchmarks/train_speed.py [--rows 4] [--length 128] [--learned 0.6] [--rounds 3] [--bf16]

`full`: transformers' loss, all logits held. `trl`: TRL's fused head: logits in tiles, without Triton of all positions. `rlt`:
the same of learned positions only, in tiles that fit a CPU's cache, as warm-up, distillation and teacher RL train
(`rlt.training.compact`). `body`: forward and backward without a head, the bound of what a faster loss could reach. `lora`: as
`rlt`, training LoRA of rank 16 on every linear layer. With --bf16 all of them under autocast too. They take turns, and the
fastest round of each counts, because other work on the machine only slows them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer import utils

from rlt.training.compact import speed_up_output_layer

SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 4), ("length", 128), ("learned", 0.6), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument(
        "--bf16", action="store_true", help="also under autocast: for processors with AMX or AVX512-BF16"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = torch.randint(0, SHAPE["vocab_size"], (options.rows, options.length), device=device)
    labels = ids.clone()
    labels[:, : round((1 - options.learned) * options.length)] = -100
    model, lora = (LlamaForCausalLM(LlamaConfig(**SHAPE)).train().to(device) for _ in range(2))
    for each in (model, lora):
        utils.add_fused_lm_head(each, outputs=("log_probs", "entropy", "is_top1"))  # as TRL's SFTTrainer does
    lora = get_peft_model(lora, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    fused = {"input_ids": ids, "labels": labels, "fused_lm_head": True}
    passes: dict[str, Callable[[], torch.Tensor]] = {
        "full": lambda: model(input_ids=ids, labels=labels, use_cache=False).loss,
        "trl": lambda: model(**fused).loss,
        "rlt": lambda: model(**fused).loss,
        "body": lambda: model.model(ids, use_cache=False).last_hidden_state.float().sum(),
        "lora": lambda: lora(**fused).loss,
    }
    of_trl = {name: getattr(utils, name) for name in ("_use_triton", "_CHUNKED_LOGPROB_CHUNK_SIZE")}
    precisions = ["float32", "bfloat16"] if options.bf16 else ["float32"]
    seconds = {(precision, name): float("inf") for precision in precisions for name in passes}
    for _ in range(options.rounds + 1):  # the first round also warms up
        for precision, name in seconds:
            model.zero_grad()
            lora.zero_grad()
            for attribute, value in of_trl.items():
                setattr(utils, attribute, value)
            if name in ("rlt", "lora"):
                speed_up_output_layer()
            start = time.perf_counter()
            with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                loss = passes[name]()
            loss.backward()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[precision, name] = min(seconds[precision, name], time.perf_counter() - start)
    plain = seconds["float32", "full"]
    print(json.dumps({"device": device, "threads": torch.get_num_threads()}))
    for precision in precisions:
        own = {name: seconds[precision, name] for name in passes}
        speed = {name: round(ids.numel() / value, 1) for name, value in own.items()}
        ratio = {name: round(plain / value, 2) for name, value in own.items()}
        print(json.dumps({"precision": precision, "tokens_per_second": speed, "times_full_in_float32": ratio}))


if __name__ == "__main__":
    main()
