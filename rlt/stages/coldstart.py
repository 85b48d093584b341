"""Cold start: RL of a distilled student with a verifiable reward.

GRPO on correctness with TRL's own trainer (paper, section 4: three reward levels, -1, -0.5 and 1).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from rlt.config import ColdstartConfig
from rlt.data.mixtures import mixture_of
from rlt.errors import DataError
from rlt.outputs import Result, begin, complete_before
from rlt.tasks import load_grader
from rlt.tasks.grading import Graders
from rlt.text.formats import Format, student_prompt
from rlt.text.tokens import decode
from rlt.training.arguments import check_saving, loading, sampling_context, trainer_arguments
from rlt.training.cards import finish_model
from rlt.training.examples import end_ids, fit_prompts, read_text
from rlt.training.loop import MetricsFile, ResumablePrompts, run_trainer
from rlt.training.lora import peft_config
from rlt.types import JsonRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The paper does not give settings for this stage; these are those of its teacher RL, with TRL's group size.
DEFAULTS: JsonRow = {
    "learning_rate": 1e-6, "lr_scheduler_type": "constant", "max_steps": 125, "temperature": 0.7, "top_k": 0,
    "max_completion_length": 16384, "beta": 0.0, "loss_type": "grpo", "logging_steps": 1, "save_strategy": "steps",
    "save_steps": 25,
}  # fmt: skip


def run(config: ColdstartConfig) -> Result:
    """The student's model folder after RL; `metrics.jsonl` has reward, and shares of correct and unreadable responses."""
    done = complete_before("coldstart", config)
    if done is not None:
        return done
    text = read_text("coldstart", config, need=("answer",))
    fmt, problems, tokenizer = text.fmt, text.problems, text.tokenizer
    for problem in problems:
        reason = load_grader(problem.task or config.task).check_answer(problem.answer or "", problem.question)
        if reason is not None:
            raise DataError(f"{config.data.path}: problem {problem.id}: column `answer`: {reason}.")
    ends = end_ids(config, text)

    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from rlt.training.checkpoints import WholeCheckpoints
    from rlt.training.sampling import EngineSampling, engine_samples
    from rlt.training.trimming import TrimmedPadding

    class StudentTrainer(EngineSampling, ResumablePrompts, TrimmedPadding, WholeCheckpoints, GRPOTrainer):
        """TRL's trainer with prompts as rendered, in an order that can be resumed."""

    arguments = trainer_arguments(GRPOConfig, "coldstart", config, config.trainer, {**DEFAULTS, **loading(config)})
    check_saving("coldstart", arguments)
    engine_samples(config.sampler, arguments)  # raises before a model is loaded
    lora = peft_config(config.peft)
    rows = [
        {
            "prompt": student_prompt(fmt, tokenizer, problem), "question": problem.question, "answer": problem.answer,
            "task": problem.task or config.task, "source": problem.source,
        }
        for problem in problems
    ]  # fmt: skip
    kept, dropped = fit_prompts(
        problems, [str(row["prompt"]) for row in rows], tokenizer, completion=arguments.max_completion_length or 1,
        context=sampling_context(arguments, text.context), data=config.data,
    )  # fmt: skip
    folder = begin("coldstart", config)
    tokenizer.padding_side = "left"
    with Graders() as graders:
        reward = CorrectnessReward(graders, fmt, tokenizer, config.rewards, ends)
        trainer = StudentTrainer(
            model=config.model, reward_funcs=reward, args=arguments,
            train_dataset=Dataset.from_list([rows[i] for i in kept]), processing_class=tokenizer, peft_config=lora,
            callbacks=[MetricsFile(folder.path)], sampler=config.sampler,
        )  # fmt: skip
        trainer.mixture = mixture_of(config.data, [problems[i] for i in kept], config.seed)
        numbers = run_trainer(trainer, folder, tokenizer)
    correct = [row["correct"] for row in trainer.state.log_history if "correct" in row]
    if correct:
        tenth = max(1, len(correct) // 10)
        numbers |= {"correct_first": sum(correct[:tenth]) / tenth, "correct_last": sum(correct[-tenth:]) / tenth}
    numbers |= {"problems": len(kept), "dropped": len(dropped) + len(problems.dropped)}
    return finish_model(folder, config.model, config.data.path, numbers)


class CorrectnessReward:
    """A TRL reward function. `rewards`: those of an unreadable, a wrong and a correct response.

    `ends`: ids of the tokens that end a response, which are not part of its text.
    """

    def __init__(
        self,
        graders: Graders,
        fmt: Format,
        tokenizer: PreTrainedTokenizerBase,
        rewards: tuple[float, float, float],
        ends: Collection[int],
    ) -> None:
        self.__name__ = "correctness"
        self.graders, self.fmt, self.tokenizer, self.rewards = graders, fmt, tokenizer, rewards
        self.ends = {*ends, tokenizer.pad_token_id}

    def __call__(
        self,
        completion_ids: list[list[int]],
        question: list[str],
        answer: list[str],
        task: list[str],
        source: list[str | None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **others: object,
    ) -> list[float | None]:
        # Decoded here: TRL drops special tokens, and tags may be special tokens.
        texts = [decode(self.tokenizer, [i for i in ids if i not in self.ends]) for ids in completion_ids]
        verdicts = self.graders.grade(task, list(zip(texts, answer, question, strict=True)), self.fmt)
        unreadable, wrong, right = self.rewards
        if log_metric is not None:
            log_metric("correct", sum(v.correct for v in verdicts) / len(verdicts))
            log_metric("unreadable", sum(v.extracted is None for v in verdicts) / len(verdicts))
            for name in dict.fromkeys(one for one in source or () if one is not None):
                own = [v.correct for v, one in zip(verdicts, source or (), strict=True) if one == name]
                log_metric(f"{name}/correct", sum(own) / len(own))
        return [right if v.correct else unreadable if v.extracted is None else wrong for v in verdicts]
