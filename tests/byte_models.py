"""Small models and tokenizers for tests of the reward: byte-level BPE of any text, Llamas with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlt.text.formats import Format

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} [end] {% endfor %}"
TEXT = (
    "What is 2 + 3? Add three to two, which gives five.\n\nThe answer is 5.\n\n"
    "<|begin_of_thought|>\n\nSo the first step is to add.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>It is 5."
    "<|end_of_solution|> <|begin_of_explanation|>\n\nwell,\n\n<|end_of_explanation|>"
)


def byte_tokenizer(
    text: Sequence[str] = (TEXT,),
    vocabulary: int = 330,
    tags: Sequence[str] = (),
    template: str = CHATML,
    trim_offsets: bool = False,
    special_tags: bool = False,
    split_words: bool = True,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `text`; `tags` become tokens of their own. Without `split_words` anything merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split_words)
    tokenizer.decoder = decoders.ByteLevel()
    if trim_offsets:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator([*text] * 3, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    add = tokenizer.add_special_tokens if special_tags else tokenizer.add_tokens
    add([AddedToken(tag, normalized=False) for tag in tags])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return fast


def tiny_model(tokenizer: PreTrainedTokenizerFast, seed: int, **shape: object) -> LlamaForCausalLM:
    """A Llama with two layers and weights wide enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    options = {
        "vocab_size": len(tokenizer) + 5,  # as in most checkpoints, larger than the tokenizer
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**{**options, **shape})).eval()


def save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    """The folder's path, once model and tokenizer are in it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# -- the published way, one row at a time, written from its description ----------------------------------------------


def published(
    fmt: Format,
    tokenizer: PreTrainedTokenizerFast,
    student: LlamaForCausalLM,
    teacher: LlamaForCausalLM,
    row: dict[str, str],
    temperature: float = 0.7,
) -> dict[str, float]:
    """The reward's parts, by searching for encoded parts inside encoded texts; ValueError where that finds nothing."""
    tags, prefix = fmt.tags, fmt.tags.explanation.open + fmt.padding
    text = row["completion"] if "completion" in row else row["explanation"] + fmt.padding + tags.explanation.close
    penalty = 0.0
    if tags.explanation.close not in text:
        text, penalty = text + tags.explanation.close, -1.0
    thought = (prefix + text).partition(tags.explanation.open)[2].partition(tags.explanation.close)[0]
    solution = tags.solution.open + row["solution"] + tags.solution.close

    def chat(system: str | None, assistant: str) -> list[int]:
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages += [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": assistant}]
        return tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)

    theirs = chat(fmt.teacher_system_prompt, solution + fmt.delimiter + prefix + text)
    ours = chat(fmt.student_system_prompt, tags.thought.open + thought + tags.thought.close + fmt.delimiter + solution)
    completion = tokenizer.encode(prefix + text, add_special_tokens=False)
    part = _inside(tokenizer.encode(thought, add_special_tokens=False), completion)
    before = tokenizer.encode(solution + fmt.delimiter, add_special_tokens=False)
    t = _find(theirs, part, after=_find(theirs, before, 0) + len(before))
    s = _find(ours, part, 0)
    piece = _inside(tokenizer.encode(row["solution"], add_special_tokens=False), ours)
    e = len(ours) - len(piece) - _find(ours[::-1], piece[::-1], 0)
    theirs_lp, ours_lp = _all_logprobs(teacher, theirs, temperature), _all_logprobs(student, ours, temperature)
    kl = theirs_lp[t - 1 : t - 1 + len(part)] - ours_lp[s - 1 : s - 1 + len(part)]
    ss = ours_lp[e - 1 : e - 1 + len(piece)]
    r_ss, r_kl = ss.mean() + 0.01 * ss.min(), kl.mean() + 0.01 * kl.max()
    return {
        "reward": (r_ss - 3 * r_kl + penalty).item(),
        "r_ss": r_ss.item(),
        "r_kl": r_kl.item(),
        "solution_log_prob_mean": ss.mean().item(),
        "solution_log_prob_min": ss.min().item(),
        "explanation_kl_mean": kl.mean().item(),
        "explanation_kl_max": kl.max().item(),
        "format_penalty": penalty,
        "solution_tokens": len(piece),
        "explanation_tokens": len(part),
    }


def _all_logprobs(model: LlamaForCausalLM, ids: list[int], temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].float() / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def _inside(part: list[int], whole: list[int]) -> list[int]:
    """The part, or the part without its first and/or last token, whichever is found first."""
    for candidate in (part, part[1:], part[:-1], part[1:-1]):
        if candidate and any(whole[i : i + len(candidate)] == candidate for i in range(len(whole))):
            return candidate
    raise ValueError("the published code finds no such tokens")


def _find(whole: list[int], part: list[int], after: int) -> int:
    for i in range(after, len(whole) - len(part) + 1):
        if whole[i : i + len(part)] == part:
            return i
    raise ValueError("the published code finds no such tokens")
