"""Runs in verl's environment: batches through verl's dataset, agent loop worker and reward manager, as JSON on stdout.

The argument is a JSON object of jobs: `what` and what that needs. The engine is a stand-in that answers one text.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from verl.utils.config import validate_config


def configuration(recipe: str | None, changes: list[str]):
    """A recipe of recipes/verl with changes, or verl's defaults with them, as verl's own command composes it."""
    # Of a recipe the folder is found first and verl's defaults behind it, as with `--config-dir`.
    folder = os.path.abspath("recipes/verl") if recipe else str(files("verl.trainer") / "config")
    changes = ["hydra.searchpath=[pkg://verl.trainer.config]", *changes] if recipe else changes
    with initialize_config_dir(folder, version_base=None):
        config = compose(recipe or "ppo_trainer", overrides=changes)
    OmegaConf.resolve(config)
    return config


class Engine:
    """What the agent loop asks for tokens."""

    def __init__(self, ids: list[int], logprobs: bool) -> None:
        self.ids, self.logprobs, self.asked = ids, logprobs, []

    async def generate(self, *, request_id: str, prompt_ids: list[int], sampling_params: dict, **more: object):
        from verl.workers.rollout.replica import TokenOutput

        self.asked.append(prompt_ids)
        return TokenOutput(token_ids=self.ids, log_probs=[-1.0] * len(self.ids) if self.logprobs else None)


def rollout(config, rows: str, completion: str, logprobs: bool, validate: bool, loop: str) -> dict:
    """What verl makes of the rows in a file with the agent loop `loop`."""
    from transformers import AutoTokenizer
    from verl import DataProto
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
    from verl.trainer.ppo.reward import extract_reward
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    engine = Engine(tokenizer.encode(completion, add_special_tokens=False), logprobs)
    worker = AgentLoopWorker(config, engine)
    dataset = RLHFDataset(rows, tokenizer, config.data)
    batch = DataProto.from_single_dict(collate_fn([dataset[i] for i in range(len(dataset))]))
    batch.meta_info = {"validate": validate, "global_steps": 0}
    batch.non_tensor_batch.setdefault("agent_name", np.array([loop] * len(batch), dtype=object))
    made = asyncio.run(worker.generate_sequences(batch))
    answer = {"asked": [tokenizer.decode(ids) for ids in engine.asked], "ids": engine.ids}
    if "rm_scores" in made.batch:
        rewards, extra = extract_reward(made)
        answer |= {"rewards": rewards.sum(-1).tolist(), "extra": {key: list(map(float, v)) for key, v in extra.items()}}
        answer["placed"] = [row.nonzero().flatten().tolist() for row in rewards]
    return answer


def managed(config, rows: str, completion: str) -> list[dict]:
    """What verl's own reward manager returns for each row with our compute_score."""
    import torch
    from transformers import AutoTokenizer
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager

    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    manager = load_reward_manager(config, tokenizer)
    ids = torch.tensor([tokenizer.encode(completion, add_special_tokens=False)])

    async def all_of() -> list[dict]:
        answers = []
        for line in Path(rows).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            tensors = {"responses": ids, "attention_mask": torch.ones_like(ids), "prompts": ids[:, :1]}
            others = {"data_source": row["data_source"], "reward_model": row["reward_model"], "extra_info": {}}
            arrays = {key: np.array([value], dtype=object) for key, value in others.items()}
            manager.loop = asyncio.get_running_loop()
            answers.append(await manager.run_single(DataProto.from_dict(tensors, arrays)))
        return answers

    return asyncio.run(all_of())


def answer(what: str, recipe: str | None = None, changes: tuple[str, ...] = (), **asked: object) -> object:
    config = configuration(recipe, list(changes))
    if what == "config":
        validate_config(config, use_reference_policy=False, use_critic=False)
        return OmegaConf.to_container(config.trainer)
    return {"rollout": rollout, "managed": managed}[what](config, **asked)


def main() -> None:
    """A line for each job: its answer, or the error it ended with."""
    for name, job in json.loads(sys.argv[1]).items():
        try:
            told = {"answer": answer(**job)}
        except Exception as error:  # what a run would end with
            told = {"error": f"{type(error).__name__}: {error}"}
        print("ANSWER " + json.dumps({"name": name, **told}), flush=True)


if __name__ == "__main__":
    main()
