"""Cold start: ordinary RL of a student with a verifiable reward, from a checkpoint that learned from explanations.

GRPO on correctness, by TRL's trainer as it is (paper, section 4: three reward levels, -1, -0.5 and 1).
"""

from __future__ import annotations

from typing import Any

from rlt.cards import write_model_card
from rlt.config import ColdstartConfig
from rlt.data import load_problems
from rlt.errors import DataError
from rlt.formats import Format, check_template, load_format, student_prompt
from rlt.grading import GraderPool
from rlt.models import load_tokenizer
from rlt.runs import Result, begin
from rlt.tasks import load_task
from rlt.training import MetricsFile, ResumablePrompts, loading, peft_config, run_trainer, trainer_arguments

# The paper's settings for this stage are not known (PAPER.md, section 6); these are those of its teacher RL but for the
# group size, TRL's own.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-6, "lr_scheduler_type": "constant", "max_steps": 125, "temperature": 0.7, "top_k": 0,
    "max_completion_length": 16384, "beta": 0.0, "loss_type": "grpo", "logging_steps": 1, "save_strategy": "steps",
    "save_steps": 25,
}  # fmt: skip


def run(config: ColdstartConfig) -> Result:
    """The student's model folder after RL; `metrics.jsonl` has the reward, the shares of right and of unreadable responses."""
    fmt, task = load_format(config.format), load_task(config.task)
    problems = load_problems(config.data, fmt, need=("answer",))
    print(f"coldstart: {config.data.path}: {problems.summary()}", flush=True)
    for problem in problems:
        reason = task.check_answer(problem.answer or "", problem.question)
        if reason is not None:
            raise DataError(f"{config.data.path}: problem {problem.id}: column `answer`: {reason}.")
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    check_template(fmt, tokenizer)
    folder = begin("coldstart", config)
    if folder.result:
        return folder.result

    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from rlt.trimming import TrimmedPadding

    class StudentTrainer(ResumablePrompts, TrimmedPadding, GRPOTrainer):
        """TRL's trainer with prompts as rendered, in an order that can be resumed."""

    rows = [{"prompt": student_prompt(fmt, tokenizer, p), "question": p.question, "answer": p.answer} for p in problems]
    tokenizer.padding_side = "left"
    with GraderPool(config.task) as graders:
        reward: Any = CorrectnessReward(graders, fmt, tokenizer, config.rewards)
        trainer = StudentTrainer(
            model=config.model,
            reward_funcs=reward,
            args=trainer_arguments(GRPOConfig, folder, config.trainer, {**DEFAULTS, **loading(config)}),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=peft_config(config.peft),
            callbacks=[MetricsFile(folder.path)],
        )
        numbers = run_trainer(trainer, folder, tokenizer)
    correct = [row["correct"] for row in trainer.state.log_history if "correct" in row]
    if correct:
        tenth = max(1, len(correct) // 10)
        numbers |= {"correct_first": sum(correct[:tenth]) / tenth, "correct_last": sum(correct[-tenth:]) / tenth}
    write_model_card(folder, config.model, config.data.path, numbers)
    return folder.finish(numbers)


class CorrectnessReward:
    """A TRL reward function: one number for a response without a readable answer, one for a wrong, one for a right one."""

    def __init__(self, graders: GraderPool, fmt: Format, tokenizer: Any, rewards: tuple[float, float, float]) -> None:
        self.__name__ = "correctness"
        self.graders, self.fmt, self.tokenizer, self.rewards = graders, fmt, tokenizer, rewards

    def __call__(
        self,
        completion_ids: list[list[int]],
        question: list[str],
        answer: list[str],
        log_metric: Any = None,
        **others: Any,
    ) -> list[float]:
        # Decoded here: TRL drops special tokens, and tags may be such.
        end = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        texts = [
            self.tokenizer.decode([i for i in ids if i not in end], skip_special_tokens=False) for ids in completion_ids
        ]
        verdicts = self.graders.grade(list(zip(texts, answer, question, strict=True)), self.fmt)
        unreadable, wrong, right = self.rewards
        if log_metric is not None:
            log_metric("correct", sum(v.correct for v in verdicts) / len(verdicts))
            log_metric("unreadable", sum(v.extracted is None for v in verdicts) / len(verdicts))
        return [right if v.correct else unreadable if v.extracted is None else wrong for v in verdicts]
