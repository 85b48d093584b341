"""Tokens per second sampled by our `transformers` engine, by transformers' `generate`, and by the matrix products alone.

    python benchmarks/sampling_speed.py                       # a model of 1M parameters with random weights
    python benchmarks/sampling_speed.py --model FOLDER        # a real one, for example SmolLM2-135M
    python benchmarks/sampling_speed.py --model FOLDER --group 8   # each question 8 times, as in teacher RL

The arms are interleaved in one run, so that their ratios hold whatever else the machine does; the best of the rounds
counts. Time is the process's own processor time where one thread computes, else the clock's. `decode` leaves the reading
of the prompts out. Writes one entry, named by its settings, of `results/sampling_speed.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rlt.engines.base import Request, Sampling
from rlt.engines.hf import HfEngine
from rlt.models.loading import load_model, load_tokenizer
from rlt.outputs import versions

RESULTS = Path(__file__).parent / "results" / "sampling_speed.json"


def main() -> None:
    """Measure the three arms, print them, add them to the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub name; without: random weights")
    parser.add_argument("--tokenizer", help="folder or hub name, for random weights")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--group", type=int, default=1, help="samples of each question")
    parser.add_argument("--tokens", type=int, default=64, help="tokens sampled per row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, tokenizer = _load(given.model, given.tokenizer)
    questions = [
        f"Tom has {i + 3} apples and buys {2 * i} more for his {i % 5 + 2} friends. " * (2 + i % 3)
        for i in range(given.batch)
    ]
    prompts = [questions[i // given.group] for i in range(given.batch)]
    clock = time.process_time if given.threads == 1 and model.device.type == "cpu" else time.perf_counter
    found = rates(model, tokenizer, prompts, given.tokens, given.rounds, clock)
    for name, rate in found.items():
        ratios = ", ".join(
            f"{kind} {rate[kind]:.1f} tokens/s ({rate[kind] / found['transformers generate'][kind]:.2f} x)"
            for kind in rate
        )
        print(f"{name:24}{ratios}")
    name = Path(given.model).name if given.model else "random"
    case = f"{name}: batch {given.batch}, group {given.group}, {given.tokens} tokens, {given.threads} threads"
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, case: {**found, "versions": versions()}}, indent=2) + "\n")


def rates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    tokens: int,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, dict[str, float]]:
    """Tokens per second of each way, of the whole batch (`whole`) and after each row's first token (`decode`)."""
    arms: dict[str, Callable[[int], None]] = {
        "transformers generate": _theirs(model, tokenizer, prompts),
        "rlt": _ours(model, tokenizer, prompts),
        "products alone": _products(model, len(prompts)),
    }
    return _measure(arms, tokens, len(prompts), rounds, clock)


def _load(model: str | None, tokenizer: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if model is not None:
        return load_model(model, "float32", False), load_tokenizer(tokenizer or model, False)
    if tokenizer is None:
        raise SystemExit("give --model, or --tokenizer for random weights")
    own = load_tokenizer(tokenizer, False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(own), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), own


def _ours(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Callable[[int], None]:
    engine = HfEngine.of(model, tokenizer, len(prompts))
    engine.end_ids = set()  # every row as long as the others
    requests = [Request(str(i), prompt, i) for i, prompt in enumerate(prompts)]
    return lambda tokens: [None for _ in engine.generate(requests, Sampling(tokens))] and None


def _theirs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> Callable[[int], None]:
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    inputs = {key: inputs[key].to(model.device) for key in ("input_ids", "attention_mask")}

    def run(tokens: int) -> None:
        how = GenerationConfig(
            max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, top_k=0, pad_token_id=tokenizer.pad_token_id
        )
        model.generate(**inputs, generation_config=how)

    return run


def _products(model: PreTrainedModel, batch: int) -> Callable[[int], None]:
    """The products of a token's vectors with every weight matrix, `batch` rows at once: what no loop can leave out."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {
        n: torch.randn(batch, n, device=model.device, dtype=model.dtype)
        for n in {layer.in_features for layer in layers}
    }

    @torch.inference_mode()
    def run(tokens: int) -> None:
        for _ in range(tokens):
            for layer in layers:
                layer(inputs[layer.in_features])

    return run


def _measure(
    arms: dict[str, Callable[[int], None]], tokens: int, batch: int, rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Tokens per second of each arm: of the whole batch, and of decoding, the first token's time left out."""
    best: dict[tuple[str, int], float] = {}
    for _ in range(rounds):
        for name, run in arms.items():
            for length in (1, tokens):
                begun = clock()
                run(length)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                best[name, length] = min(clock() - begun, best.get((name, length), float("inf")))
    return {
        name: {
            "whole": batch * tokens / best[name, tokens],
            "decode": batch * (tokens - 1) / (best[name, tokens] - best[name, 1]),
        }
        for name in arms
    }


if __name__ == "__main__":
    main()
