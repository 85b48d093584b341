"""Teacher RL with plain TRL: GRPOTrainer and the reward r_ss. Usage: plain_trl.py TEACHER STUDENT PROBLEMS.jsonl OUTPUT

TEACHER and STUDENT are model folders or hub names; each problem has `question` and `solution`. `rlt train` adds r_kl,
which needs the policy's log-probs, and all else that a run needs.
"""

import sys

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from rlt.config import DataConfig
from rlt.data.problems import load_problems
from rlt.reward.trl import TeacherReward, teacher_rows
from rlt.text.formats import load_format

teacher, student, problems, output = sys.argv[1:5]
fmt = load_format("stratos")
tokenizer = AutoTokenizer.from_pretrained(teacher, padding_side="left")
rows = teacher_rows(load_problems(DataConfig(path=problems), fmt), fmt, tokenizer)
arguments = GRPOConfig(
    output_dir=output,
    max_steps=int(sys.argv[5]) if len(sys.argv) > 5 else 125,
    num_generations=4,
    max_completion_length=64,
    temperature=0.7,
    logging_steps=1,
    report_to="none",
    bf16=torch.cuda.is_available(),
    use_cpu=not torch.cuda.is_available(),
)
reward = TeacherReward(student, tokenizer, fmt)
trainer = GRPOTrainer(teacher, [reward], arguments, Dataset.from_list(rows), processing_class=tokenizer)
trainer.train()
trainer.save_model(output)
