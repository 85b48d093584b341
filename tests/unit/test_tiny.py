"""Tokenizers of tiny models: two families that read the same texts in other tokens."""

from rlt.models.tiny import bpe_tokenizer, word_tokenizer
from rlt.tasks import arithmetic
from rlt.text.formats import load_format

FMT = load_format("words")
TEXT = "<user> 3 d - 4 wait ?<explain> d - 4 9</explain><answer> 9</answer><end>"


def test_each_family_reads_a_word_as_one_token_and_the_text_comes_back() -> None:
    words, bpe = (make(arithmetic.vocabulary(), FMT) for make in (word_tokenizer, bpe_tokenizer))
    assert [token.removeprefix("Ġ") for token in bpe.tokenize(TEXT)] == words.tokenize(TEXT)
    assert bpe.decode(bpe(TEXT)["input_ids"]) == TEXT
    assert words(TEXT)["input_ids"] != bpe(TEXT)["input_ids"]


def test_a_byte_level_tokenizer_knows_every_text() -> None:
    bpe = bpe_tokenizer(["so"], FMT)
    assert bpe.decode(bpe("so é 😀\n\tx")["input_ids"]) == "so é 😀\n\tx"
