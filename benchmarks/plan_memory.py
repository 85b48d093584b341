"""Does `rlt plan` know the memory of a training step? Planned against measured, for models with random weights.

    python benchmarks/plan_memory.py             # on a GPU: peak memory of SFTTrainer steps, 0.5B and 7B
    python benchmarks/plan_memory.py --cpu       # anywhere: bytes that a forward pass saves for backward, small models

Prints a table and keeps it in benchmarks/results/plan_memory_{gpu,cpu}.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlt.planning.machine import GIB, Launch
from rlt.planning.memory import training_activations
from rlt.planning.shapes import SHIPPED_SHAPES, shape_of
from rlt.planning.training_setup import TrainingSetup

RESULTS = Path(__file__).parent / "results"
LORA = {"r": 32, "lora_alpha": 64, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
CASES = (  # shipped shape, type of the weights, LoRA, tokens of one micro-batch of one row
    ("Qwen/Qwen2.5-0.5B-Instruct", "float32", False, 4096),
    ("Qwen/Qwen2.5-0.5B-Instruct", "float32", False, 16384),
    ("Qwen/Qwen2.5-0.5B-Instruct", "bfloat16", True, 16384),
    ("Qwen/Qwen2.5-7B-Instruct", "bfloat16", True, 4096),
    ("Qwen/Qwen2.5-7B-Instruct", "bfloat16", True, 16384),
    ("Qwen/Qwen2.5-7B-Instruct", "bfloat16", False, 4096),
)
SMALL = {
    "model_type": "qwen2", "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 200, "tie_word_embeddings": False, "max_position_embeddings": 4096,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="count saved tensors on the CPU instead of a GPU's memory")
    if parser.parse_args().cpu:
        report("cpu", platform.processor() or platform.machine(), saved_tensors())
    elif torch.cuda.is_available():
        report("gpu", torch.cuda.get_device_name(), [peak(*case) for case in CASES])
    else:
        raise SystemExit("no GPU here: peak memory cannot be measured. `--cpu` counts the tensors that a step saves.")


def peak(name: str, dtype: str, lora: bool, tokens: int) -> dict[str, Any]:
    """Planned and measured peak bytes of two SFTTrainer steps on one row of `tokens` random tokens."""
    config = json.loads((SHIPPED_SHAPES / f"{name.replace('/', '--')}.json").read_text(encoding="utf-8"))
    shape = shape_of(config, name)
    trainable = shape.lora_parameters(LORA["r"], LORA["target_modules"]) if lora else shape.parameters
    trainer = {"per_device_train_batch_size": 1, "bf16": True}
    training = TrainingSetup(shape, trainer, Launch("single"), 1, 4 if dtype == "float32" else 2, trainable)
    try:
        measured: float | None = train(config, dtype, lora, tokens, trainer)
    except torch.cuda.OutOfMemoryError:
        measured = None
    return row(f"{name} {dtype}{' LoRA' if lora else ''}, {tokens} tokens", training.update(tokens).total, measured)


def train(config: dict[str, Any], dtype: str, lora: bool, tokens: int, options: dict[str, Any]) -> float:
    """Peak bytes allocated on the GPU by two steps (0 on a CPU)."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from rlt.models.tiny import word_tokenizer
    from rlt.text.formats import load_format

    gpu = torch.cuda.is_available()
    made = AutoConfig.for_model(**config)
    with torch.device("cuda" if gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(made, dtype=getattr(torch, dtype))
    ids = torch.randint(0, made.vocab_size, (2, tokens)).tolist()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder, max_steps=2, max_length=None, save_strategy="no", report_to="none", disable_tqdm=True,
            **(options if gpu else {**options, "use_cpu": True}),
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
            processing_class=word_tokenizer([], load_format("stratos")),
            peft_config=LoraConfig(**LORA) if lora else None,
        )  # fmt: skip
        trainer.train()
    used = float(torch.cuda.max_memory_allocated()) if gpu else 0.0
    del trainer, model
    if gpu:
        torch.cuda.empty_cache()
    return used


def saved_tensors() -> list[dict[str, Any]]:
    """Planned and counted bytes that the layers of small models save for backward, without checkpointing."""
    rows = []
    for residual, tokens, intermediate in [(2, 300, 384), (2, 700, 384), (2, 300, 640), (4, 300, 384), (4, 700, 640)]:
        config = {**SMALL, "intermediate_size": intermediate}
        counted = [saved(config, layers, tokens, residual) for layers in (2, 6)]
        shapes = [shape_of({**config, "num_hidden_layers": layers}, "small") for layers in (2, 6)]
        planned = [training_activations(shape, tokens, False, residual) for shape in shapes]
        name = f"4 layers, intermediate {intermediate}, {tokens} tokens, {'bf16' if residual == 2 else 'autocast'}"
        rows.append(row(name, planned[1] - planned[0], float(counted[1] - counted[0])))
    return rows


def saved(config: dict[str, Any], layers: int, tokens: int, residual: int) -> int:
    """Bytes of the tensors that one forward pass of `tokens` keeps for backward, copies of weights left out (the tests use
    this too). `residual`: bytes of an element of the residual stream, 2 in bfloat16, 4 under autocast."""
    made = AutoConfig.for_model(**config, num_hidden_layers=layers, attn_implementation="sdpa")
    model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16 if residual == 2 else torch.float32)
    weights = {shape for p in model.parameters() for shape in (p.shape, p.shape[::-1])}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=residual == 4),
    ):
        output = model.model(torch.randint(0, made.vocab_size, (1, tokens)), use_cache=False)
        total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total


def row(name: str, planned: float, measured: float | None) -> dict[str, Any]:
    error = None if not measured else planned / measured - 1
    return {"case": name, "planned_gib": planned / GIB, "measured_gib": measured and measured / GIB, "error": error}


def report(kind: str, device: str, rows: list[dict[str, Any]]) -> None:
    print(f"{device}\n{'case':<62} {'planned':>10} {'measured':>10} {'error':>7}  (GiB)")
    for entry in rows:
        measured = "no room" if entry["measured_gib"] is None else f"{entry['measured_gib']:.4g}"
        error = "" if entry["error"] is None else f"{entry['error']:+.1%}"
        print(f"{entry['case']:<62} {entry['planned_gib']:>10.4g} {measured:>10} {error:>7}")
    RESULTS.mkdir(exist_ok=True)
    versions = {"torch": torch.__version__, "device": device}
    (RESULTS / f"plan_memory_{kind}.json").write_text(json.dumps({**versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
