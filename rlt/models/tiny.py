"""Small models from scratch: tokenizers of two families with a chat template, and a randomly initialised Llama."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rlt.text.formats import Format
from rlt.types import JsonMap

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, UNK, END, USER = "<pad>", "<unk>", "<end>", "<user>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }} "
    "{% elif m['role'] == 'user' %}" + USER + " {{ m['content'] }} "
    "{% else %}{% generation %}{{ m['content'] }}" + END + "{% endgeneration %}{% endif %}{% endfor %}"
)
# Untied embeddings with wide initialisation: tied ones with the usual 0.02 did not learn arithmetic at this size.
DEFAULT_SHAPE: JsonMap = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}


def word_tokenizer(words: Iterable[str], fmt: Format) -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template, in which each of `words` and each tag of `fmt` is one token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokens = [PAD, UNK, END, USER, *fmt.tags.all(), *words]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(dict.fromkeys(tokens))}, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if "\n" in tokens:  # programs consist of lines
        blanks = pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([blanks, pre_tokenizers.Split("\n", "isolated")])  # type: ignore[list-item]
    return _fast(tokenizer, fmt)


def bpe_tokenizer(words: Iterable[str], fmt: Format) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as GPT-2's family: each of `words` is one token together with the space before it.

    The same texts have other token ids and other boundaries than with `word_tokenizer`, as students of two model families do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=[PAD, UNK, END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([f" {word}" for word in words], trainer)
    return _fast(tokenizer, fmt)


TOKENIZERS = {"words": word_tokenizer, "bpe": bpe_tokenizer}


def _fast(tokenizer: Tokenizer, fmt: Format) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens([PAD, UNK, END])
    # Tags are ordinary tokens, not special ones: decoding "without special tokens" must not drop them.
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in (USER, *fmt.tags.all())])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, eos_token=END, padding_side="left",
        clean_up_tokenization_spaces=False, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_llama(tokenizer: PreTrainedTokenizerFast, seed: int, shape: JsonMap | None = None) -> LlamaForCausalLM:
    """A randomly initialised Llama for `tokenizer`; `shape` overrides `DEFAULT_SHAPE` (arguments of LlamaConfig)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokens = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = LlamaConfig.from_dict({"vocab_size": len(tokenizer), **tokens, **DEFAULT_SHAPE, **(shape or {})})
    return LlamaForCausalLM(config)
