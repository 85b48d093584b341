"""Teacher RL: GRPO with the RLT reward (paper, section 3, second phase)."""

from __future__ import annotations

import logging
import re
from contextlib import closing
from typing import TYPE_CHECKING

from rlt.config import SELF, TrainConfig
from rlt.data.mixtures import mixture_of
from rlt.errors import ConfigError
from rlt.outputs import Result, begin, complete_before
from rlt.training.arguments import check_saving, loading, sampling_context, trainer_arguments
from rlt.training.cards import finish_model
from rlt.training.examples import end_ids, fit_prompts, read_text
from rlt.training.loop import MetricsFile, run_trainer
from rlt.training.lora import peft_config
from rlt.types import JsonRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlt.reward.self_student import AveragedSelf, LiveSelf
    from rlt.reward.students import Scorer
    from rlt.reward.trl import TeacherReward
    from rlt.text.formats import Format

# Published teacher RL (SakanaAI/RLT 86a3f5c, run_cfg): every number of PAPER.md, section 4, that TRL has an option for.
DEFAULTS: JsonRow = {
    "learning_rate": 1e-6, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0, "max_steps": 125,
    "num_generations": 64, "temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_completion_length": 16384, "beta": 0.04,
    "loss_type": "grpo", "scale_rewards": "group", "num_iterations": 1, "ref_model_sync_steps": 32,
    "ref_model_mixup_alpha": 0.9, "logging_steps": 1, "save_strategy": "steps", "save_steps": 25,
}  # fmt: skip

SOURCE_REWARD = re.compile(r"rlt/source/(.+)/reward")


def run(config: TrainConfig) -> Result:
    """The trained teacher's model folder, with `metrics.jsonl` (parts of the reward, placebos, lengths, shares) and
    `samples.jsonl` (explanations with the parts of their reward).

    The teacher starts from `model`, which should be warmed up in the same format. Resumes from the last checkpoint.
    """
    if not config.student:
        raise ConfigError("train: `student` is missing: the model whose understanding is the reward.")
    done = complete_before("train", config)
    if done is not None:
        return done
    text = read_text("train", config, need=("answer",) if config.accuracy else ())
    problems, tokenizer = text.problems, text.tokenizer
    ends = end_ids(config, text)

    from datasets import Dataset
    from trl import GRPOConfig

    from rlt.reward.trl import TeacherReward, teacher_rows
    from rlt.training.sampling import engine_samples
    from rlt.training.teacher import SAMPLES_FILE, TeacherTrainer

    beta = config.trainer.get("beta", DEFAULTS["beta"])
    moving = {"sync_ref_model": bool(beta) and config.peft is None}
    defaults = {**DEFAULTS, **moving, **loading(config)}
    arguments = trainer_arguments(GRPOConfig, "train", config, config.trainer, defaults)
    check_saving("train", arguments)
    engine_samples(config.sampler, arguments)  # raises before a model is loaded
    lora = peft_config(config.peft)
    rows = teacher_rows(problems, text.fmt, tokenizer)
    kept, dropped = fit_prompts(
        problems, [str(row["prompt"]) for row in rows], tokenizer, completion=arguments.max_completion_length or 1,
        context=sampling_context(arguments, text.context), data=config.data,
    )  # fmt: skip
    folder = begin("train", config)
    students, own = _students(config, tokenizer, text.fmt)
    reward = TeacherReward(
        students, tokenizer, text.fmt, config, placement=config, model=config, end_ids=sorted(ends),
        placebos=config.placebos, keep_samples=config.keep_samples, seed=config.seed, tokens=config.tokens,
        sources=config.data.labels,
        shuffled=config.shuffle_rewards,
    )  # fmt: skip
    tokenizer.padding_side = "left"
    logging.getLogger("trl.trainer.grpo_trainer").setLevel(logging.ERROR)
    with closing(reward):
        _add_gain(config, text.fmt, reward)
        trainer = TeacherTrainer(
            model=config.model, reward=reward, args=arguments, train_dataset=Dataset.from_list([rows[i] for i in kept]),
            processing_class=tokenizer, peft_config=lora, sync_threshold=config.sync_threshold,
            batch_tokens=config.batch_tokens, own_student=own, ema_decay=config.ema_decay, sampler=config.sampler,
            needs_policy=config.kl_coef != 0 and not (config.accuracy and config.accuracy.only),
            callbacks=[MetricsFile(folder.path, also=[SAMPLES_FILE])],
        )  # fmt: skip
        trainer.mixture = mixture_of(config.data, [problems[i] for i in kept], config.seed)
        numbers = run_trainer(trainer, folder, tokenizer)
    numbers |= _last_metrics(trainer.state.log_history)
    numbers |= {"problems": len(kept), "dropped": len(dropped) + len(problems.dropped)}
    return finish_model(folder, config.model, config.data.path, numbers)


def _students(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, fmt: Format
) -> tuple[list[str | Scorer], LiveSelf | AveragedSelf | None]:
    """The students, and the one that follows the policy, if any."""
    from rlt.reward.self_student import AveragedSelf, LiveSelf

    if SELF not in config.student:
        return [*config.student], None
    own: LiveSelf | AveragedSelf | None = None
    if config.self_weights == "live":
        own = LiveSelf(tokenizer, config, config.batch_tokens)
    elif config.self_weights == "ema":
        own = AveragedSelf.load(config.model, fmt, config, config)
        own.name = f"{SELF} (ema)"
    first: str | Scorer = own or config.model
    return [first if name == SELF else name for name in config.student], own


def _add_gain(config: TrainConfig, fmt: Format, reward: TeacherReward) -> None:
    from rlt.reward.students import LocalModel
    from rlt.training.gain import LearningGain, heldout_rows

    if config.gain is None:
        return
    (student,) = reward.engine.students
    if not isinstance(student, LocalModel):
        raise ConfigError("`gain` needs a local student.")
    heldout = heldout_rows(config.gain.heldout, config.gain.heldout_limit, fmt, student.tokenizer)
    reward.gain = LearningGain(student, fmt, heldout, config.seed), config.gain.weight


def _last_metrics(history: list[dict[str, float]]) -> dict[str, float]:
    """Mean reward of the first and the last tenth of the steps, in total and for each source of a mixture."""
    metrics = {}
    names = dict.fromkeys(key for row in history for key in row if key == "reward" or SOURCE_REWARD.fullmatch(key))
    for name in names:
        rewards = [row[name] for row in history if name in row]
        tenth = max(1, len(rewards) // 10)
        of = f"{match[1]}_" if (match := SOURCE_REWARD.fullmatch(name)) else ""
        metrics[f"{of}reward_first"] = sum(rewards[:tenth]) / tenth
        metrics[f"{of}reward_last"] = sum(rewards[-tenth:]) / tenth
    return metrics
