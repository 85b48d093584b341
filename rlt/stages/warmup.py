"""Teacher warm-up: supervised, question + solution -> explanation (paper, section 3, first phase)."""

from __future__ import annotations

from rlt.config import WarmupConfig
from rlt.data.mixtures import mixture_of
from rlt.outputs import Result, begin, complete_before
from rlt.text.formats import Rendered, render_teacher
from rlt.training.arguments import supervised_arguments
from rlt.training.cards import finish_model
from rlt.training.examples import examples_of, fit, read_text, render_each, taught_to_teacher
from rlt.training.loop import train_supervised
from rlt.types import Explanation

# Published warm-up (SakanaAI/RLT 86a3f5c): AdamW 0.9/0.95, weight decay 1e-4, cosine after 5% warm-up, clip 1.
DEFAULTS = {
    "learning_rate": 1e-5, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "weight_decay": 1e-4, "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
}  # fmt: skip


def run(config: WarmupConfig) -> Result:
    """The warmed-up teacher's model folder. The loss covers the explanation, its closing tag and the end of turn.

    A teacher that never learned the end of turn would keep writing after its tag until the length limit.
    """
    done = complete_before("warmup", config)
    if done is not None:
        return done
    text = read_text("warmup", config, need=("explanation",))
    arguments = supervised_arguments("warmup", config, DEFAULTS)
    fmt = text.fmt

    def render(explanation: Explanation) -> Rendered:
        return render_teacher(fmt, text.tokenizer, explanation.problem, explanation.text)

    problems, rendered, rewritten = render_each(text.problems, fmt, render, config.data)
    examples = examples_of(text.tokenizer, rendered, [taught_to_teacher(fmt, r) for r in rendered], text.turn_end)
    kept, dropped = fit(problems, examples, config.max_length or text.context, config.data)
    folder = begin("warmup", config)
    numbers = train_supervised(folder, config, arguments, text, kept, mixture_of(config.data, kept, config.seed))
    metrics = {**numbers, "examples": len(kept), "dropped": len(dropped) + len(rewritten) + len(text.problems.dropped)}
    return finish_model(folder, config.model, config.data.path, metrics)
