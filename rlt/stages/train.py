"""Teacher RL: GRPO with the reward of a Reinforcement-Learned Teacher (paper, section 3, second phase)."""

from __future__ import annotations

import logging
from typing import Any

from rlt.cards import write_model_card
from rlt.config import TrainConfig
from rlt.data import load_problems
from rlt.errors import ConfigError, DataError
from rlt.formats import check_template, load_format
from rlt.models import context_length, load_config, load_tokenizer
from rlt.runs import Result, begin
from rlt.training import MetricsFile, loading, peft_config, run_trainer, trainer_arguments

# Published teacher RL (SakanaAI/RLT 86a3f5c, run_cfg): every number of PAPER.md, section 4, that TRL has an option for.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-6, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0, "max_steps": 125,
    "num_generations": 64, "temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_completion_length": 16384, "beta": 0.04,
    "loss_type": "grpo", "scale_rewards": "group", "num_iterations": 1, "ref_model_sync_steps": 32,
    "ref_model_mixup_alpha": 0.9, "logging_steps": 1, "save_strategy": "steps", "save_steps": 25,
}  # fmt: skip


def run(config: TrainConfig) -> Result:
    """The RL-trained teacher's model folder, with `metrics.jsonl` (each part of the reward, placebos, lengths, shares) and
    `samples.jsonl` (explanations with their parts).

    The teacher starts from `model`, which should be warmed up in the same format. Goes on from the last checkpoint.
    """
    fmt = load_format(config.format)
    if not config.student:
        raise ConfigError("train: `student` is missing: the model whose understanding is the reward.")
    problems = load_problems(config.data, fmt, need=("answer",) if config.accuracy else ())
    print(f"train: {config.data.path}: {problems.summary()}", flush=True)
    limit = context_length(load_config(config.model, config.trust_remote_code))
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    check_template(fmt, tokenizer)
    folder = begin("train", config)
    if folder.result:
        return folder.result

    from datasets import Dataset
    from trl import GRPOConfig

    from rlt.teacher_reward import TeacherReward, teacher_rows
    from rlt.teacher_trainer import SAMPLES_FILE, TeacherTrainer

    beta = config.trainer.get("beta", DEFAULTS["beta"])
    moving = {"sync_ref_model": bool(beta) and config.peft is None}
    arguments = trainer_arguments(GRPOConfig, folder, config.trainer, {**DEFAULTS, **moving, **loading(config)})
    _check_saving(arguments)
    rows = teacher_rows(problems, fmt, tokenizer)
    _check_prompts(rows, tokenizer, limit, arguments.max_completion_length)
    reward = TeacherReward(
        config.student, tokenizer, fmt, config, placement=config, model=config, placebos=config.placebos,
        keep_samples=config.keep_samples,
    )  # fmt: skip
    tokenizer.padding_side = "left"
    logging.getLogger("trl.trainer.grpo_trainer").setLevel(logging.ERROR)
    trainer = TeacherTrainer(
        model=config.model, reward=reward, args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, peft_config=peft_config(config.peft), sync_threshold=config.sync_threshold,
        needs_policy=config.kl_coef != 0 and not (config.accuracy and config.accuracy.only),
        callbacks=[MetricsFile(folder.path, also=[SAMPLES_FILE])],
    )  # fmt: skip
    numbers = run_trainer(trainer, folder, tokenizer)
    numbers |= _last_metrics(trainer.state.log_history)
    write_model_card(folder, config.model, config.data.path, numbers)
    return folder.finish(numbers)


def _check_prompts(rows: list[dict[str, Any]], tokenizer: Any, limit: int | None, completion: int) -> None:
    lengths = [len(ids) for ids in tokenizer([row["prompt"] for row in rows], add_special_tokens=False)["input_ids"]]
    longest = max(range(len(rows)), key=lengths.__getitem__)
    if limit is not None and lengths[longest] + completion > limit:
        raise DataError(
            f"problem {longest}: its prompt has {lengths[longest]} tokens; with `trainer.max_completion_length` {completion} "
            f"that is over the teacher's context of {limit}. Lower it to {limit - lengths[longest]}, or drop long problems."
        )


def _check_saving(arguments: Any) -> None:
    # Completions are generated for several steps at once; a checkpoint between those steps could not be resumed exactly.
    cycle = arguments.steps_per_generation * arguments.num_iterations / arguments.gradient_accumulation_steps
    if arguments.save_strategy == "steps" and arguments.save_steps >= 1 and cycle > 1 and arguments.save_steps % cycle:
        raise ConfigError(
            f"train: `trainer.save_steps` {arguments.save_steps} must be a multiple of {cycle:g}, the steps that one "
            "generation serves; else a resumed run would differ from one never cut off."
        )


def _last_metrics(history: list[dict[str, Any]]) -> dict[str, float]:
    rewards = [row["reward"] for row in history if "reward" in row]
    if not rewards:
        return {}
    tenth = max(1, len(rewards) // 10)
    return {
        "reward_first": sum(rewards[:tenth]) / tenth,
        "reward_last": sum(rewards[-tenth:]) / tenth,
    }
