"""Distillation: a student learns question -> explanation + solution (paper, section 4)."""

from __future__ import annotations

from pathlib import Path

from rlt.cards import write_model_card
from rlt.config import DataConfig, DistillConfig
from rlt.data import Problems, load_problems
from rlt.errors import DataError
from rlt.formats import Format, check_template, load_format, render_student
from rlt.models import context_length, load_config, load_tokenizer
from rlt.runs import Result, begin
from rlt.sequences import tokenize
from rlt.training import Example, fit, learned_span, taught_to_student, train_supervised

# Published student SFT (SkyThought 4bb8f3e, which RLT's README names): learning rate 1e-5, cosine after 10% warm-up,
# 3 epochs, global batch 96. The batch is the recipe's: it depends on the number of devices.
DEFAULTS = {
    "learning_rate": 1e-5, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "num_train_epochs": 3, "logging_steps": 10,
}  # fmt: skip


def run(config: DistillConfig) -> Result:
    """The student's model folder. The loss counts the whole response: thought and solution, tags, the end of the turn."""
    fmt = load_format(config.format)
    problems = load_problems(config.data, fmt, need=("explanation",))
    print(f"distill: {config.data.path}: {problems.summary()}", flush=True)
    limit = config.max_length or context_length(load_config(config.model, config.trust_remote_code))
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    check_template(fmt, tokenizer)
    folder = begin("distill", config)
    if folder.result:
        return folder.result
    rows = _examples(problems, fmt, tokenizer)
    budget = _budget(config.token_budget, fmt, tokenizer)
    rows, tokens = _within(rows, budget)
    kept, dropped = fit(((name, example) for name, example, _ in rows), limit, config.data)
    numbers = train_supervised(
        folder, config.model, tokenizer, kept, config.trainer, defaults=DEFAULTS, peft=config.peft, load=config
    )
    metrics = {
        **numbers, "examples": len(kept), "dropped": len(dropped) + len(problems.dropped), "explanation_tokens": tokens,
    }  # fmt: skip
    write_model_card(folder, config.model, config.data.path, metrics)
    return folder.finish(metrics)


def _examples(problems: Problems, fmt: Format, tokenizer) -> list[tuple[str, Example, int]]:  # type: ignore[no-untyped-def]
    """Problem id, example, and the number of tokens of its explanation."""
    rendered = [render_student(fmt, tokenizer, p, fmt.thought_body(p.explanation or "")) for p in problems]
    rows = []
    for problem, text, tokens in zip(problems, rendered, tokenize(tokenizer, rendered), strict=True):
        learned = learned_span(tokens.ids, tokens.offsets, *taught_to_student(fmt, text), tokenizer)
        rows.append((problem.id, Example(tokens.ids, learned), len(tokens.spans["explanation"])))
    return rows


def _budget(token_budget: str | int | None, fmt: Format, tokenizer) -> int | None:  # type: ignore[no-untyped-def]
    if token_budget is None or isinstance(token_budget, int):
        return token_budget
    if not Path(token_budget).exists():
        raise DataError(f"`token_budget`: {token_budget!r} is neither a number nor a file of explanations.")
    other = load_problems(DataConfig(path=token_budget), fmt, need=("explanation",))
    return sum(tokens for *_, tokens in _examples(other, fmt, tokenizer))


def _within(rows: list[tuple[str, Example, int]], budget: int | None) -> tuple[list[tuple[str, Example, int]], int]:
    """The first rows whose explanations together have at most `budget` tokens, and how many tokens that is."""
    total, kept = 0, []
    for row in rows:
        if budget is not None and total + row[2] > budget:
            break
        total += row[2]
        kept.append(row)
    if budget is not None and len(kept) == len(rows) and total < 0.9 * budget:
        raise DataError(f"the data has {total} tokens of explanations, too few for `token_budget` {budget}.")
    return kept, total
