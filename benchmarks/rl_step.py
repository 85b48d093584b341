"""Seconds of a teacher-RL step beside plain TRL, in one process: same model, prompts, sampling and updates.

    python benchmarks/rl_step.py [--model DIR --format FORMAT --data FILE --micro 8 --tokens 100] [--rows 32] [--steps 3]

`plain`: TRL's GRPOTrainer with a constant reward, as TRL has it. `compact`: the same with rlt's output layer of learned
positions only (`rlt.training.compact`). `rlt`: TeacherTrainer with the whole reward, sampled by transformers' `generate`; the
student is the same model. `engine`: the same, sampled by rlt's engine, as is the default. They take turns, a trainer each; the
fastest step of each counts, because other work on the machine only slows them.

Without --model: the quickstart's 0.15M parameters.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["RLT_QUIET"] = "1"

import torch
from datasets import Dataset
from plain import Clock
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import utils

from rlt.allocator import keep_freed_memory
from rlt.config import DataConfig, RewardOptions
from rlt.data.problems import load_problems
from rlt.models.loading import load_tokenizer
from rlt.reward.trl import TeacherReward, teacher_rows
from rlt.tasks import load_generated_task
from rlt.text.formats import load_format
from rlt.training.compact import speed_up_output_layer
from rlt.training.teacher import TeacherTrainer

GPU = torch.cuda.is_available()
# On a GPU TRL's output layer is a Triton kernel, which rlt leaves alone: `compact` would be `plain`.
KINDS = ("plain", "rlt", "engine") if GPU else ("plain", "compact", "rlt", "engine")
BASE = Path(__file__).parents[1] / "recipes" / "quickstart" / "bases" / "0"


def constant(completions: list[object], **_: object) -> list[float]:
    return [0.0] * len(completions)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--format", default="words")
    parser.add_argument("--data")
    for name, default in (("rows", 32), ("generations", 8), ("micro", 32), ("steps", 3), ("tokens", 44), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    fmt, tokenizer = load_format(options.format), load_tokenizer(options.model, False)
    task = load_generated_task("arithmetic")
    problems = load_problems(DataConfig(path=options.data)) if options.data else task.generate(256, 0, {}, set())
    rows = Dataset.from_list(teacher_rows(problems, fmt, tokenizer))
    tokenizer.padding_side = "left"
    plain_head = utils._use_triton, utils._CHUNKED_LOGPROB_CHUNK_SIZE

    def trainer(kind: str, folder: str) -> tuple[GRPOTrainer, Clock]:
        clock = Clock()
        arguments = GRPOConfig(
            output_dir=folder, max_steps=options.steps, num_generations=options.generations, beta=0.0, logging_steps=1,
            per_device_train_batch_size=options.micro, gradient_accumulation_steps=options.rows // options.micro,
            max_completion_length=options.tokens, use_cpu=not GPU, bf16=options.bf16, gradient_checkpointing=False,
            save_strategy="no", report_to="none", disable_tqdm=True, temperature=1.0, learning_rate=1e-9, loss_type="grpo",
            model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa" if GPU else "eager"},
        )  # fmt: skip
        common: dict[str, Any] = {
            "model": options.model, "args": arguments, "train_dataset": rows, "processing_class": tokenizer,
            "callbacks": [clock],
        }  # fmt: skip
        if kind in ("plain", "compact"):
            return GRPOTrainer(reward_funcs=[constant], **common), clock
        reward = TeacherReward(options.model, tokenizer, fmt, RewardOptions(), placebos=0, keep_samples=0)
        return TeacherTrainer(reward=reward, sampler="engine" if kind == "engine" else "generate", **common), clock

    best: dict[str, float] = {}
    for _ in range(options.rounds):
        for kind in KINDS:
            utils._use_triton, utils._CHUNKED_LOGPROB_CHUNK_SIZE = plain_head
            if kind != "plain":
                speed_up_output_layer()
            with tempfile.TemporaryDirectory() as folder:
                made, clock = trainer(kind, folder)
                made.train()
            best[kind] = min(best.get(kind, float("inf")), *clock.seconds)
            del made  # a cycle of references, with a model and its optimiser
            gc.collect()
            torch.cuda.empty_cache()
    times = {kind: round(seconds / best["plain"], 2) for kind, seconds in best.items()}
    seconds = {kind: round(value, 3) for kind, value in best.items()}
    print(json.dumps({"model": options.model, "rows": options.rows, "seconds_per_step": seconds, "times_plain": times}))


if __name__ == "__main__":
    main()
