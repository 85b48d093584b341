"""The policy as its own student, sharded over two ranks by FSDP2 that score different numbers of rows; and its average."""

import json
import sys

import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from rlt.config import RewardOptions, StudentOptions
from rlt.errors import ConfigError
from rlt.models.loading import load_model, load_tokenizer
from rlt.reward.scoring import RewardEngine
from rlt.reward.self_student import AveragedSelf, LiveSelf
from rlt.reward.students import LocalModel
from rlt.text.formats import load_format
from rlt.types import Explanation, Problem

model_folder, other_folder, out = sys.argv[1:]
dist.init_process_group("gloo")
rank = dist.get_rank()
tokenizer, fmt, options = load_tokenizer(model_folder), load_format("words"), RewardOptions()
texts = ["a + 4 7 " * (n + 1) for n in range(3)][: 3 - 2 * rank]  # three rows on one rank, one on the other
items = [Explanation(Problem(str(n), "3 a + 4 ?", "7"), text) for n, text in enumerate(texts)]


def sharded(path):
    model = load_model(path, device="cpu")
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    return model


def rewards(student):
    return [row.parts.reward for row in RewardEngine([student], fmt, options).score(items)]


whole = LocalModel(load_model(model_folder, device="cpu"), tokenizer)
policy = sharded(model_folder)
live = LiveSelf(tokenizer, options)
live.attach(policy)
difference = max(abs(a - b) for a, b in zip(rewards(live), rewards(whole), strict=True))

average = AveragedSelf(load_model(other_folder, device="cpu"), tokenizer, batch_tokens=StudentOptions().batch_tokens)
before = {name: weight.clone() for name, weight in average.model.named_parameters()}
average.follow(policy, 0.75)
theirs = dict(whole.model.named_parameters())
off = max(
    (weight - (0.75 * before[name] + 0.25 * theirs[name])).abs().max().item()
    for name, weight in average.model.named_parameters()
)
try:
    LiveSelf(tokenizer, RewardOptions(estimator="exact")).attach(policy)
    refused = False
except ConfigError:
    refused = True
with open(f"{out}.{rank}", "w") as file:
    json.dump({"rows": len(items), "difference": difference, "average": off, "refused": refused}, file)
dist.barrier()
dist.destroy_process_group()
