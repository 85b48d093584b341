"""Rows a second of the reward engine against the plain way (`plain.py`), same models and rows, interleaved in one run.

    python benchmarks/reward_speed.py            # CPU cases, and the GPU case where there is a GPU
    python benchmarks/reward_speed.py --rows 64  # quicker and noisier

Prints a table and writes `results/reward_speed.json`. Cases that this machine cannot run are 'not measured'.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain
import torch

from rlt.allocator import keep_freed_memory
from rlt.runs import versions

RESULTS = Path(__file__).parent / "results" / "reward_speed.json"
Case = dict[str, Any]


def main() -> None:
    """Run every case, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="rows of the miniature case")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repetitions; medians are reported")
    arguments = parser.parse_args()
    keep_freed_memory()  # as `rlt` does: it serves both ways
    cases = [
        against_plain("cpu, miniature (0.15M)", *plain.miniature(arguments.rows), arguments.repeats, 64),
        against_plain("cpu, 100M, vocabulary 151,936", *plain.large_vocabulary(2, 1000), min(3, arguments.repeats), 2),
        gpu(arguments.repeats),
    ]
    steps = step_cost()
    print(f"\n{'case':34}{'tokens':>8}{'engine':>10}{'plain':>10}{'ratio':>8}   rows a second")
    for case in cases:
        if case.get("not measured"):
            print(f"{case['case']:34}  not measured: {case['not measured']}")
            continue
        print(
            f"{case['case']:34}{case['tokens_per_row']:8.0f}{case['engine_rows_per_s']:10.2f}"
            f"{case['plain_rows_per_s']:10.2f}{case['ratio']:8.2f}"
        )
        if "published_rows_per_s" in case:
            print(f"{'  published configuration':34}{'':18}{case['published_rows_per_s']:10.2f}"
                  f"{case['ratio_to_published']:8.2f}")  # fmt: skip
            print(f"{'  share of the matrix-product rate':34}{'':28}{case['matrix_product_share']:8.2f}")
    print(
        f"\none RL step of the miniature, seconds: {steps['without_reward_s']:.2f} with a constant reward, "
        f"{steps['with_reward_s']:.2f} with r_ss and r_kl. Forward passes for {steps['completions']} completions: "
        f"{steps['student_passes']:g} of the student, and {steps['policy_passes']:g} of the policy for the reward."
    )
    RESULTS.parent.mkdir(exist_ok=True)
    where = {
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    RESULTS.write_text(json.dumps({"versions": versions(), **where, "cases": cases, "rl_step": steps}, indent=1) + "\n")


def against_plain(name: str, engine: Any, items: list[Any], repeats: int, plain_rows: int) -> Case:
    """Medians over interleaved repetitions; the plain way sees the first `plain_rows`, and the numbers must agree."""
    few = items[:plain_rows]
    scored, rewards = engine.score(few), plain.score(engine, few)
    apart = max(abs((row.parts.reward or 0.0) - reward) for row, reward in zip(scored, rewards, strict=True))
    ours, theirs = [], []
    for _ in range(repeats):
        theirs.append(_seconds(lambda: plain.score(engine, few)) / len(few))
        ours.append(_seconds(lambda: engine.score(items)) / len(items))
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    return {
        "case": name, "rows": len(items), "tokens_per_row": statistics.fmean(plain.tokens_of(engine, items)),
        "engine_rows_per_s": 1 / statistics.median(ours), "plain_rows_per_s": 1 / statistics.median(theirs),
        "ratio": ratio, "largest_difference": apart,
    }  # fmt: skip


def gpu(repeats: int) -> Case:
    """Random weights of Qwen2.5-7B's shape in bfloat16, explanations of 500 to 8,000 tokens mixed."""
    name = "gpu, Qwen2.5-7B shape, bfloat16"
    if not torch.cuda.is_available():
        return {"case": name, "not measured": "no GPU"}
    rng = random.Random(0)
    engine, items = plain.qwen_7b([rng.randint(500, 8000) for _ in range(64)], "cuda")
    case = against_plain(name, engine, items, min(3, repeats), 8)
    few = items[:4]
    plain.score(engine, few[:1], published=True)
    published = len(few) / _seconds(lambda: plain.score(engine, few, published=True))
    engine.students[0].model.to("cuda")
    rows = case["engine_rows_per_s"]
    flops = sum(_flops(engine.students[0].model, tokens) for tokens in plain.tokens_of(engine, items)) / len(items)
    return case | {
        "published_rows_per_s": published, "ratio_to_published": rows / published,
        "matrix_product_tflops": matrix_product_rate() / 1e12,
        "matrix_product_share": 2 * flops * rows / matrix_product_rate(),
    }  # fmt: skip


def _flops(model: Any, tokens: int) -> float:
    # Two a weight and token, without the embeddings' look-up; causal attention adds two products of half the square.
    body = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n)
    config = model.config
    return 2.0 * body * tokens + 2.0 * config.num_hidden_layers * config.hidden_size * tokens**2


def matrix_product_rate() -> float:
    """Floating-point operations a second of a large bfloat16 matrix product on this GPU."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(5):
        a @ a
    seconds = _seconds(lambda: [a @ a for _ in range(20)]) / 20
    return 2 * 8192**3 / seconds


def step_cost(steps: int = 4) -> dict[str, float]:
    """Seconds of one RL step of the miniature with the reward and a constant one, and the forward passes it adds."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from rlt.tasks import arithmetic
    from rlt.teacher_reward import TeacherReward, teacher_rows
    from rlt.teacher_trainer import TeacherTrainer

    engine, _ = plain.miniature(1)
    student, teacher = engine.students[0], engine.teacher
    passes = [0]
    student.model.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    tokenizer = student.tokenizer
    rows = Dataset.from_list(teacher_rows(arithmetic.generate(64, 1, {"steps": 5}), engine.fmt, tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        teacher.model.save_pretrained(f"{folder}/teacher")

        def train(trainer_class: type, **options: Any) -> tuple[float, Any]:
            arguments = GRPOConfig(
                output_dir=f"{folder}/out", max_steps=steps, per_device_train_batch_size=64, num_generations=16,
                beta=0.0, max_completion_length=44, temperature=0.7, report_to="none", use_cpu=True, bf16=False,
                gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, logging_steps=steps,
            )  # fmt: skip
            model = AutoModelForCausalLM.from_pretrained(f"{folder}/teacher")
            trainer = trainer_class(
                model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, **options
            )
            return _seconds(trainer.train) / steps, trainer

        without, _ = train(GRPOTrainer, reward_funcs=[lambda completions, **_: [0.0] * len(completions)])
        passes[0] = 0
        reward = TeacherReward([student], tokenizer, engine.fmt, placebos=0)
        with_reward, trainer = train(TeacherTrainer, reward=reward)
    return {
        "completions": 64, "without_reward_s": without, "with_reward_s": with_reward,
        "student_passes": passes[0] / steps, "policy_passes": trainer.policy_passes / steps,
    }  # fmt: skip


def _seconds(work: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
