"""Three steps of teacher RL, run alone or by torchrun. Completions are canned (depend only on the prompt) or the engine's."""

import json
import sys
import zlib
from pathlib import Path

import torch

from rlt.config import TrainConfig
from rlt.pipeline import run_stage
from rlt.training.teacher import TeacherTrainer

CONFIG, RECORD, SAMPLER = sys.argv[1:]
records = []


def canned(self, prompt_ids, *args, **kwargs):
    """Completions of 1 to 9 tokens, the same for the same prompt and place in its group; every second one closes its tag."""
    close, end = self._tokenizer.convert_tokens_to_ids(["</explain>", "<end>"])
    completions = []
    for number, ids in enumerate(prompt_ids):
        generator = torch.Generator().manual_seed(zlib.crc32(str((ids, number % self.num_generations)).encode()))
        length = int(torch.randint(1, 10, (), generator=generator))
        words = torch.randint(12, 40, (length,), generator=generator).tolist()
        completions.append([*words, close, end] if number % 2 else [*words, end])
    return completions, None


def recorded(self, inputs, *args, **kwargs):
    rewards = original(self, inputs, *args, **kwargs)
    records.append(rewards.flatten().tolist())  # of all processes, in the order of the batch
    return rewards


original = TeacherTrainer._calculate_rewards
if SAMPLER == "canned":
    TeacherTrainer._generate_single_turn = canned
TeacherTrainer._calculate_rewards = recorded
run_stage("train", TrainConfig.model_validate_json(CONFIG))
Path(f"{RECORD}.{torch.distributed.get_rank() if torch.distributed.is_initialized() else 0}").write_text(
    json.dumps(records)
)
