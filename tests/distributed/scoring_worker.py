"""Log-probs under a model sharded over two ranks by FSDP2, with uneven rows: 3 on one rank, none or 1 on the other."""

import json
import sys

import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from rlt.models.loading import load_model
from rlt.models.logprobs import Row, hidden_states, token_logprobs

model_folder, out = sys.argv[1:]
dist.init_process_group("gloo")
rank = dist.get_rank()
rows = [
    Row([5, 6, 7, 8, 9, 10], [range(2, 6)]),
    Row([9, 8, 7], [range(1, 3)]),
    Row([11, 12, 13, 14, 15], [range(4, 5)]),
]
alone = load_model(model_folder, device="cpu")
expected = token_logprobs(alone, rows, temperature=0.7)

sharded = load_model(model_folder, device="cpu")
for layer in sharded.model.layers:
    fully_shard(layer)
fully_shard(sharded)
uneven = rows if rank == 0 else []
first = token_logprobs(sharded, uneven, temperature=0.7, batch_tokens=6)
second = token_logprobs(sharded, rows if rank == 0 else rows[:1], temperature=0.7)
states = hidden_states(sharded, uneven, batch_tokens=6)
worst = max(
    [(a - b).abs().max().item() for mine in (first, second) for a, b in zip(mine, expected, strict=False)], default=0.0
)
with open(f"{out}.{rank}", "w") as file:
    json.dump({"worst": worst, "rows": [len(first), len(second), len(states)]}, file)
dist.barrier()
dist.destroy_process_group()
