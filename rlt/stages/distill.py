"""Distill: a student learns question -> explanation + solution (paper, section 4)."""

from __future__ import annotations

from pathlib import Path

from rlt.config import AnyData, DataConfig, DistillConfig
from rlt.data.mixtures import mixture_of
from rlt.data.problems import Problems, load_problems
from rlt.errors import DataError
from rlt.outputs import Result, begin, complete_before
from rlt.text.formats import Rendered, render_student
from rlt.training.arguments import supervised_arguments
from rlt.training.cards import finish_model
from rlt.training.examples import Example, Text, examples_of, fit, read_text, render_each, taught_to_student
from rlt.training.loop import train_supervised
from rlt.types import Explanation

# Published student SFT (SkyThought 4bb8f3e, which RLT's README names): learning rate 1e-5, cosine after 10% warm-up,
# 3 epochs, global batch 96. The batch is the recipe's: it depends on the number of devices.
DEFAULTS = {"learning_rate": 1e-5, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "num_train_epochs": 3}


def run(config: DistillConfig) -> Result:
    """The student's model folder. The loss covers the whole response: thought, solution, tags and end of turn."""
    done = complete_before("distill", config)
    if done is not None:
        return done
    text = read_text("distill", config, need=("explanation",))
    arguments = supervised_arguments("distill", config, DEFAULTS)
    fitting, dropped = _fitting(config, text, text.problems, config.data)
    kept, tokens = within(fitting, _budget(config, text))
    folder = begin("distill", config)
    numbers = train_supervised(folder, config, arguments, text, kept, mixture_of(config.data, kept, config.seed))
    metrics = {
        **numbers, "examples": len(kept), "dropped": len(dropped) + len(text.problems.dropped),
        "explanation_tokens": tokens,
    }  # fmt: skip
    return finish_model(folder, config.model, config.data.path, metrics)


def _fitting(config: DistillConfig, text: Text, problems: Problems, data: AnyData) -> tuple[list[Example], list[str]]:
    fmt = text.fmt

    def render(explanation: Explanation) -> Rendered:
        return render_student(fmt, text.tokenizer, explanation.problem, explanation.text)

    kept, rendered, rewritten = render_each(problems, fmt, render, data)
    examples = examples_of(text.tokenizer, rendered, [taught_to_student(fmt, r) for r in rendered], text.turn_end)
    fitting, dropped = fit(kept, examples, config.max_length or text.context, data)
    return fitting, rewritten + dropped


def _budget(config: DistillConfig, text: Text) -> int | None:
    """Tokens of explanations to use: the given number, or those of another step's data, counting rows that fit."""
    wanted = config.token_budget
    if wanted is None or isinstance(wanted, int):
        return wanted
    if not Path(wanted).exists():
        raise DataError(f"`token_budget`: {wanted!r} is neither a number nor a file of explanations.")
    data = DataConfig(path=wanted, on_invalid=config.data.on_invalid)
    other, _ = _fitting(config, text, load_problems(data, text.fmt, need=("explanation",)), data)
    return sum(example.explanation_tokens for example in other)


def within(examples: list[Example], budget: int | None) -> tuple[list[Example], int]:
    """The first examples whose explanations have at most `budget` tokens in total, and that total.

    Raises DataError if all of them have less than 0.9 of the budget.
    """
    total, kept = 0, []
    for example in examples:
        if budget is not None and total + example.explanation_tokens > budget:
            break
        total += example.explanation_tokens
        kept.append(example)
    if budget is not None and not kept:
        raise DataError(f"the first explanation alone has more tokens than `token_budget` {budget}. Raise it.")
    if budget is not None and len(kept) == len(examples) and total < 0.9 * budget:
        raise DataError(
            f"the data has {total} tokens of explanations, too few for `token_budget` {budget}. Lower it, or use more data."
        )
    return kept, total
