"""Teacher RL without TRL: GRPO in plain torch, its rewards from a running service. Usage: grpo_without_trl.py OUTPUT [STEPS]

The quickstart's world with seed 0: models of 0.15M parameters, chained arithmetic. It warms a teacher up and trains the
student of the reward (`rlt run`), starts `rlt serve` on that student, and trains the teacher with the rewards that it
answers. Two and a half minutes on one core; OUTPUT gets the teacher, rewards.json and rewards.svg.
"""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlt.config import DataConfig
from rlt.data.problems import load_problems
from rlt.integrations.service import RewardService
from rlt.text.formats import load_format, teacher_prompt

PROMPTS, GROUP, LENGTH, LEARNING_RATE, CLIP = 16, 16, 32, 5e-4, 0.2
TEMPERATURE, SCORE_TEMPERATURE = 0.7, 1.0  # of sampling, and of the reward's log-probs


def train(teacher, tokenizer, prompts, problems, service, steps):
    """The mean reward, r_ss and r_kl of each step: GRPO, one update on each batch, advantages scaled by the group's spread."""
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 5, 1 - step / steps))
    order, curve = torch.randperm(len(prompts)), []
    for step in range(steps):
        chosen = [int(order[(step * PROMPTS + i) % len(order)]) for i in range(PROMPTS) for _ in range(GROUP)]
        ids, mask, start = sample(teacher, tokenizer, [prompts[i] for i in chosen])
        with torch.no_grad():
            old = logprobs(teacher, ids, mask, start, TEMPERATURE)
            known = logprobs(teacher, ids, mask, start, SCORE_TEMPERATURE)
        written = mask[:, start:].bool()
        rows = [
            {"question": problems[i].question, "solution": problems[i].solution, "temperature": SCORE_TEMPERATURE,
             "token_ids": ids[n, start:][written[n]].tolist(), "logprobs": known[n][written[n]].tolist()}
            for n, i in enumerate(chosen)
        ]  # fmt: skip
        scored = service.score(rows)
        rewards = torch.tensor([service.number(row) for row in scored])
        groups = rewards.view(PROMPTS, GROUP)
        advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).view(-1, 1)
        ratio = (logprobs(teacher, ids, mask, start, TEMPERATURE) - old).exp()
        gain = torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        loss = -(gain * written).sum() / written.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        means = {name: sum(row[name] for row in scored) / len(scored) for name in ("reward", "r_ss", "r_kl")}
        curve.append({"step": step + 1, **{name: round(mean, 4) for name, mean in means.items()}})
        print("  ".join(f"{name} {value}" for name, value in curve[-1].items()), flush=True)
    return curve


@torch.no_grad()
def sample(teacher, tokenizer, prompts):
    """Token ids (B, T), the mask of what is prompt or completion, and where completions start."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    ids = teacher.generate(
        **batch, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, max_new_tokens=LENGTH,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    start = batch["input_ids"].shape[1]
    ended = (ids[:, start:] == tokenizer.eos_token_id).cumsum(1)
    alive = (ended - (ids[:, start:] == tokenizer.eos_token_id).long()) == 0  # the end itself is sampled too
    return ids, torch.cat([batch["attention_mask"], alive.long()], 1), start


def logprobs(teacher, ids, mask, start, temperature):
    """The log-prob (B, T - start) of each completion token, in nats."""
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = teacher(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, start - 1 : -1]
    return (logits.float() / temperature).log_softmax(-1).gather(-1, ids[:, start:, None])[..., 0]


@contextlib.contextmanager
def served(student):
    """A running `rlt serve`, with the quickstart's reward."""
    command = [
        sys.executable, "-m", "rlt", "serve", "--port", "0", "--student", str(student), "--policy", str(student),
        "--format", "words", "--score-temperature", str(SCORE_TEMPERATURE), "--unclosed-penalty", "-6", "--floor", "-8",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield RewardService(process.stdout.readline().split()[1])
    finally:
        process.terminate()
        process.wait()


def picture(curve, path):
    """The rewards as an SVG of one line."""
    values = [point["reward"] for point in curve]
    low, high, width, height = min(values), max(values), 640, 240
    x = [50 + (width - 70) * i / max(1, len(values) - 1) for i in range(len(values))]
    y = [20 + (height - 60) * (high - value) / (high - low or 1) for value in values]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="#fff"/><polyline points="{line}" fill="none" stroke="#1f6feb" '
        f'stroke-width="2"/><text x="8" y="{min(y) + 4:.0f}">{high:.2f}</text><text x="8" y="{max(y) + 4:.0f}">{low:.2f}</text>'
        f'<text x="{width / 2:.0f}" y="{height - 8}">step (1 to {len(values)})</text>'
        '<text x="50" y="14">mean reward of a step</text></svg>\n'
    )


def prepare(output):
    """The folder with the corpus, the student and the warmed-up teacher: the quickstart's own steps, for seed 0."""
    for step in ("heldout", "corpus", "student", "warmup"):
        command = [sys.executable, "-m", "rlt", "run", "quickstart", "--folder", str(output), "--name", "run"]
        subprocess.run([*command, "--seeds", "[0]", "--jobs", "1", "--only", step], check=True)
    return output / "run"


def main(run, output, steps):
    """Train, and leave the teacher, rewards.json and rewards.svg in `output`."""
    began = time.monotonic()
    torch.manual_seed(0)
    fmt = load_format("words")
    tokenizer = AutoTokenizer.from_pretrained(run / "warmup", padding_side="left")
    teacher = AutoModelForCausalLM.from_pretrained(run / "warmup", dtype=torch.float32)
    problems = load_problems(DataConfig(path=str(run / "corpus.jsonl")), fmt)
    prompts = [teacher_prompt(fmt, tokenizer, problem) for problem in problems]
    with served(run / "student") as service:
        curve = train(teacher, tokenizer, prompts, problems, service, steps)
        info = service.info()
    teacher.save_pretrained(output / "teacher")
    tokenizer.save_pretrained(output / "teacher")
    tenth = max(1, steps // 10)
    first, last = (sum(p["reward"] for p in part) / tenth for part in (curve[:tenth], curve[-tenth:]))
    record = {"first": round(first, 4), "last": round(last, 4), "options": info["options"], "steps": curve}
    (output / "rewards.json").write_text(json.dumps(record, indent=1) + "\n")
    picture(curve, output / "rewards.svg")
    print(
        f"mean reward {first:.2f} over the first {tenth} steps, {last:.2f} over the last; {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    main(prepare(folder), folder, int(sys.argv[2]) if len(sys.argv) > 2 else 60)
