"""Rows per second of the reward engine against the plain way (`plain.py`), same models and rows, interleaved in one run.

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
from rlt.outputs import versions

RESULTS = Path(__file__).parent / "results" / "reward_speed.json"
Case = dict[str, Any]


def main() -> None:
    """Run every case, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="rows of the miniature case")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repetitions; medians are reported")
    arguments = parser.parse_args()
    keep_freed_memory()  # as `rlt` does: it serves both ways
    rows, repeats = arguments.rows, arguments.repeats
    cases = [
        against_plain("cpu, miniature, 40 tokens", *plain.miniature(rows), repeats),
        against_plain("cpu, miniature, about 60 tokens", *plain.miniature(rows, steps=7, experts="careful"), repeats),
        against_plain("cpu, 100M, vocabulary 151,936", *plain.large_vocabulary(2, 1000), min(3, repeats)),
        gpu(repeats),
    ]
    steps = step_cost()
    print(f"\n{'case':34}{'tokens':>8}{'engine':>10}{'plain':>10}{'ratio':>8}   rows/s")
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
        f"{steps['with_reward_s']:.2f} with r_ss, r_kl and {steps['placebos']} placebos. Forward passes for "
        f"{steps['completions']} completions: {steps['student_passes']:g} of the student, and "
        f"{steps['policy_passes']:g} of the policy for the reward."
    )
    RESULTS.parent.mkdir(exist_ok=True)
    where = {
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    RESULTS.write_text(json.dumps({"versions": versions(), **where, "cases": cases, "rl_step": steps}, indent=1) + "\n")


def against_plain(name: str, engine: Any, items: list[Any], repeats: int) -> Case:
    """Medians over interleaved repetitions, both ways on the same rows, whose numbers must agree."""
    scored, rewards = engine.score(items), plain.score(engine, items)
    apart = max(abs((row.parts.reward or 0.0) - reward) for row, reward in zip(scored, rewards, strict=True))
    ours, theirs = [], []
    for _ in range(repeats):
        theirs.append(_seconds(lambda: plain.score(engine, items)) / len(items))
        ours.append(_seconds(lambda: engine.score(items)) / len(items))
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    return {
        "case": name, "rows": len(items), "tokens_per_row": statistics.fmean(plain.tokens_of(engine, items)),
        "engine_rows_per_s": 1 / statistics.median(ours), "plain_rows_per_s": 1 / statistics.median(theirs),
        "ratio": ratio, "largest_difference": apart,
    }  # fmt: skip


def gpu(repeats: int) -> Case:
    """Random weights of Qwen2.5-7B's shape in bfloat16, explanations of 500 to 8,000 tokens mixed.

    The engine alone on all 64 rows gives its rate; ratios are of one set of rows, spread over the lengths: 16 against
    the plain way, 4 against the published configuration, which takes seconds a row only to move its student.
    """
    name = "gpu, Qwen2.5-7B shape, bfloat16"
    if not torch.cuda.is_available():
        return {"case": name, "not measured": "no GPU"}
    rng = random.Random(0)
    engine, items = plain.qwen_7b([rng.randint(500, 8000) for _ in range(64)], "cuda")
    tokens = plain.tokens_of(engine, items)
    some, few = plain.spread(items, tokens, 16), plain.spread(items, tokens, 4)
    case = against_plain(name, engine, some, min(3, repeats))
    whole = statistics.median(_seconds(lambda: engine.score(items)) for _ in range(min(3, repeats)))
    ours = statistics.median(_seconds(lambda: engine.score(few)) for _ in range(min(3, repeats)))
    plain.score(engine, few[:1], published=True)
    published = _seconds(lambda: plain.score(engine, few, published=True))
    engine.students[0].model.to("cuda")
    rate = matrix_product_rate()
    return case | {
        "rows": len(items), "rows_of_ratio": len(some), "rows_of_published": len(few),
        "tokens_per_row": statistics.fmean(tokens), "engine_rows_per_s": len(items) / whole,
        "published_rows_per_s": len(few) / published, "ratio_to_published": published / ours,
        "matrix_product_tflops": rate / 1e12, "matrix_product_share": flops(engine, items) / whole / rate,
    }  # fmt: skip


def flops(engine: Any, items: list[Any]) -> float:
    """Floating-point operations that the engine does for these rows: what is read goes through the body, what is kept
    through the output layer."""
    models = (engine.students[0].model, engine.teacher.model)
    return sum(
        _body_flops(model, row.read) + 2.0 * model.get_output_embeddings().weight.numel() * row.kept
        for rows in plain.texts_of(engine, items)
        for model, row in zip(models, rows, strict=True)
    )


def _body_flops(model: Any, tokens: int) -> float:
    # Two a weight and token, without both tables; causal attention adds two products of half the square.
    tables = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    body = sum(p.numel() for p in model.parameters() if id(p) not in tables)
    return 2.0 * body * tokens + 2.0 * model.config.num_hidden_layers * model.config.hidden_size * tokens**2


def matrix_product_rate() -> float:
    """Floating-point operations per second of a large bfloat16 matrix product on this GPU."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(5):
        a @ a
    seconds = _seconds(lambda: [a @ a for _ in range(20)]) / 20
    return 2 * 8192**3 / seconds


class Constant:
    """A reward of 0, for what a step costs without one."""

    __name__ = "constant"
    last_samples = ()

    def __call__(self, completions: list[Any], **_: Any) -> list[float]:
        return [0.0] * len(completions)


def step_cost(steps: int = 4, repeats: int = 2) -> dict[str, float]:
    """Seconds of one RL step of the miniature by one trainer, with the reward and with a constant one, interleaved, and
    the forward passes that the reward adds (with the placebos that are logged by default)."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig

    from rlt.reward.trl import TeacherReward, teacher_rows
    from rlt.tasks import arithmetic
    from rlt.training.teacher import TeacherTrainer

    engine, _ = plain.miniature(1)
    student, teacher = engine.students[0], engine.teacher
    passes = [0]
    student.model.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    tokenizer = student.tokenizer
    rows = Dataset.from_list(teacher_rows(arithmetic.generate(64, 1, {"steps": 5}), engine.fmt, tokenizer))
    reward = TeacherReward([student], tokenizer, engine.fmt)
    with tempfile.TemporaryDirectory() as folder:
        teacher.model.save_pretrained(f"{folder}/teacher")

        def train(reward: Any, needs_policy: bool) -> tuple[float, Any]:
            arguments = GRPOConfig(
                output_dir=f"{folder}/out", max_steps=steps, per_device_train_batch_size=64, num_generations=16,
                beta=0.0, max_completion_length=44, temperature=0.7, report_to="none", use_cpu=True, bf16=False,
                gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, logging_steps=steps,
            )  # fmt: skip
            model = AutoModelForCausalLM.from_pretrained(f"{folder}/teacher")
            trainer = TeacherTrainer(
                model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, reward=reward,
                needs_policy=needs_policy,
            )  # fmt: skip
            return _seconds(trainer.train) / steps, trainer

        without, with_reward = [], []
        for _ in range(repeats):
            without.append(train(Constant(), needs_policy=False)[0])
            passes[0] = 0
            seconds, trainer = train(reward, needs_policy=True)
            with_reward.append(seconds)
    return {
        "completions": 64, "without_reward_s": statistics.median(without),
        "with_reward_s": statistics.median(with_reward), "placebos": reward.placebos,
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
