"""Teacher warm-up: supervised learning of question + solution -> explanation (paper, section 3, first phase)."""

from __future__ import annotations

from rlt.cards import write_model_card
from rlt.config import WarmupConfig
from rlt.data import load_problems
from rlt.formats import check_template, load_format, render_teacher
from rlt.models import context_length, load_config, load_tokenizer
from rlt.runs import Result, begin
from rlt.sequences import tokenize
from rlt.training import Example, fit, learned_span, taught_to_teacher, train_supervised

# Published warm-up (SakanaAI/RLT 86a3f5c): AdamW 0.9/0.95, weight decay 1e-4, cosine after 5% warm-up, clip 1.
DEFAULTS = {
    "learning_rate": 1e-5, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "weight_decay": 1e-4, "adam_beta2": 0.95,
    "max_grad_norm": 1.0, "logging_steps": 10,
}  # fmt: skip


def run(config: WarmupConfig) -> Result:
    """The warmed-up teacher's model folder. The loss counts the explanation, its closing tag and the end of the turn.

    The turn's end belongs to closing: a teacher that never learned it writes on after its tag until the length limit.
    """
    fmt = load_format(config.format)
    problems = load_problems(config.data, fmt, need=("explanation",))
    print(f"warmup: {config.data.path}: {problems.summary()}", flush=True)
    limit = config.max_length or context_length(load_config(config.model, config.trust_remote_code))
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    check_template(fmt, tokenizer)
    folder = begin("warmup", config)
    if folder.result:
        return folder.result
    rendered = [render_teacher(fmt, tokenizer, p, fmt.thought_body(p.explanation or "")) for p in problems]
    examples = []
    for problem, text, tokens in zip(problems, rendered, tokenize(tokenizer, rendered), strict=True):
        learned = taught_to_teacher(fmt, text)
        examples.append(
            (problem.id, Example(tokens.ids, learned_span(tokens.ids, tokens.offsets, *learned, tokenizer)))
        )
    kept, dropped = fit(examples, limit, config.data)
    numbers = train_supervised(
        folder, config.model, tokenizer, kept, config.trainer, defaults=DEFAULTS, peft=config.peft, load=config
    )
    metrics = {**numbers, "examples": len(kept), "dropped": len(dropped) + len(problems.dropped)}
    write_model_card(folder, config.model, config.data.path, metrics)
    return folder.finish(metrics)
