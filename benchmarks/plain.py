"""The plain way to compute the reward, as the benchmarks' baseline, and the models and rows that both ways get.

One row at a time, logits of every position, float32 log-softmax of all of them: what a first implementation does, and
what the published code does apart from also moving its models between devices (`published`).
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
)

from rlt.config import RewardOptions
from rlt.models.logprobs import Row
from rlt.models.tiny import tiny_llama, word_tokenizer
from rlt.reward.formula import reward_parts
from rlt.reward.scoring import RewardEngine
from rlt.reward.students import LocalModel
from rlt.tasks import arithmetic
from rlt.text.formats import Format, load_format, render_student, render_teacher
from rlt.text.tokens import Tokenized, tokenize
from rlt.types import Explanation, Problem

VOCABULARY = 151_936  # Qwen2.5's


class Clock(TrainerCallback):
    """Seconds of each step of a trainer, optimiser included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def token_logprobs(model: Any, text: Tokenized, temperature: float) -> torch.Tensor:
    """`(T - 1,)` log-probs of all tokens but the first, from the `(T, V)` logits of the whole text."""
    ids = torch.tensor([text.ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].float() / temperature
        return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].cpu()


def score(engine: RewardEngine, items: Sequence[Explanation], published: bool = False) -> list[float]:
    """The rewards of `items` with the engine's models and options, the plain way.

    `published`: the student rests on the CPU, is moved for each row, and memory caches are emptied after each.
    """
    (student,), teacher, fmt = engine.students, engine.teacher, engine.fmt
    assert isinstance(student, LocalModel)
    assert teacher is not None
    rewards = []
    for item in items:
        device = teacher.model.device
        (ours,) = tokenize(student.tokenizer, [render_student(fmt, student.tokenizer, item.problem, item.text)])
        (theirs,) = tokenize(teacher.tokenizer, [render_teacher(fmt, teacher.tokenizer, item.problem, item.text)])
        if published:
            student.model.to(device)
        of_student = token_logprobs(student.model, ours, engine.temperature)
        if published:
            student.model.to("cpu")
        of_teacher = token_logprobs(teacher.model, theirs, engine.temperature)
        kl = _part(of_teacher, theirs.spans["explanation"]) - _part(of_student, ours.spans["explanation"])
        parts = reward_parts(_part(of_student, ours.spans["solution"]), kl, alpha=0.01, kl_coef=3.0, format_penalty=0.0)
        rewards.append(parts.reward or 0.0)
        if published:
            gc.collect()
            torch.cuda.empty_cache()
    return rewards


def _part(logprobs: torch.Tensor, span: range) -> torch.Tensor:
    return logprobs[span.start - 1 : span.stop - 1]


# -- models and rows ---------------------------------------------------------------------------------------------------


def engine_of(student: Any, teacher: Any, tokenizer: PreTrainedTokenizerFast, fmt: Format) -> RewardEngine:
    """Both models with the published code's choices, and a context that never limits."""
    models = [
        LocalModel(model, tokenizer, name=name, context=10**9) for model, name in ((student, "s"), (teacher, "t"))
    ]
    return RewardEngine(models[:1], fmt, RewardOptions(), models[1])


def miniature(
    rows: int, seed: int = 0, steps: int = 5, experts: str = "noisy"
) -> tuple[RewardEngine, list[Explanation]]:
    """The quickstart's models (0.15M parameters), and problems of so many steps explained by its experts.

    5 steps by the noisy ones are rows of 40 tokens, as the quickstart's; 8 by the careful ones are 65.
    """
    fmt = load_format("words")
    tokenizer = word_tokenizer(arithmetic.vocabulary(), fmt)
    rng = random.Random(seed)
    items = [
        fmt.finished(problem, arithmetic.explain(problem, experts, rng))
        for problem in arithmetic.generate(rows, seed, {"steps": steps})
    ]
    return engine_of(tiny_llama(tokenizer, 0).eval(), tiny_llama(tokenizer, 1).eval(), tokenizer, fmt), items


def large_vocabulary(rows: int, tokens: int, seed: int = 0) -> tuple[RewardEngine, list[Explanation]]:
    """Models of 100M parameters with a vocabulary of 151,936, and rows of about `tokens` tokens."""
    fmt = load_format("words")
    tokenizer = word_tokenizer([f"w{i}" for i in range(2000)], fmt)
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 7,
        "num_attention_heads": 8, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    }  # fmt: skip
    models = []
    for number in (0, 1):
        torch.manual_seed(number)
        models.append(LlamaForCausalLM(LlamaConfig(**shape)).eval())
    return engine_of(*models, tokenizer, fmt), word_items(fmt, [tokens] * rows, seed)


def qwen_7b(lengths: Sequence[int], device: str, seed: int = 0) -> tuple[RewardEngine, list[Explanation]]:
    """Two random models of the shape of Qwen2.5-7B in bfloat16 on `device`, and explanations of these lengths."""
    fmt = load_format("words")
    tokenizer = word_tokenizer([f"w{i}" for i in range(2000)], fmt)
    config = Qwen2Config(
        vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=32_768, tie_word_embeddings=False, dtype=torch.bfloat16,
    )  # fmt: skip
    models = []
    for number in (0, 1):
        torch.manual_seed(number)
        with torch.device(device):
            torch.set_default_dtype(torch.bfloat16)
            models.append(Qwen2ForCausalLM(config).eval())
            torch.set_default_dtype(torch.float32)
    return engine_of(*models, tokenizer, fmt), word_items(fmt, lengths, seed)


def word_items(fmt: Format, lengths: Sequence[int], seed: int, solution: int = 60) -> list[Explanation]:
    """Explanations of these numbers of tokens, each with a question of 30 tokens and a solution of `solution`."""
    rng = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(f"w{rng.randrange(2000)}" for _ in range(count))

    return [
        fmt.finished(Problem(str(i), words(30), words(solution)), words(max(1, length - 100)))
        for i, length in enumerate(lengths)
    ]


def texts_of(engine: RewardEngine, items: Sequence[Explanation]) -> list[tuple[Row, Row]]:
    """For each row what the student and what the teacher reads, and the tokens whose log-probs are wanted of each."""
    student, teacher, fmt = engine.students[0], engine.teacher, engine.fmt
    assert teacher is not None
    pairs = []
    for item in items:
        ours = tokenize(student.tokenizer, [render_student(fmt, student.tokenizer, item.problem, item.text)])[0]
        theirs = tokenize(teacher.tokenizer, [render_teacher(fmt, teacher.tokenizer, item.problem, item.text)])[0]
        pairs.append((Row(ours.ids, [*ours.spans.values()]), Row(theirs.ids, [*theirs.spans.values()])))
    return pairs


def tokens_of(engine: RewardEngine, items: Sequence[Explanation]) -> list[int]:
    """The number of tokens of each row's student text."""
    return [len(ours.ids) for ours, _ in texts_of(engine, items)]


def spread(items: Sequence[Explanation], tokens: Sequence[int], count: int) -> list[Explanation]:
    """`count` of the rows with the mean length of all, nearly: sorted by length, the middle one of each equal part."""
    order = sorted(range(len(items)), key=lambda i: tokens[i])
    return [items[order[(2 * part + 1) * len(items) // (2 * count)]] for part in range(count)]
