"""A small world for tests of stages: arithmetic problems with explanations, and an untrained word-level model."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from rlt.data.rows import write_rows
from rlt.models.tiny import tiny_llama, word_tokenizer
from rlt.tasks import arithmetic
from rlt.text.formats import load_format

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


def make_model(folder: Path, seed: int = 0) -> str:
    """The folder of a model with random weights that knows the words of arithmetic."""
    tokenizer = word_tokenizer(arithmetic.vocabulary(), load_format("words"))
    tiny_llama(tokenizer, seed, SHAPE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_problems(path: Path, count: int, steps: int = 2) -> str:
    """The file of `count` problems with noisy explanations."""
    rng = random.Random(0)
    problems = arithmetic.generate(count, 0, {"steps": steps})
    write_rows(path, (replace(p, explanation=arithmetic.explain(p, "noisy", rng)).to_row() for p in problems))
    return str(path)
