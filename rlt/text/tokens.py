"""From rendered text to token ids, with the token spans of its parts known by construction.

Text is tokenized once, with character offsets. A span holds the tokens whose characters all lie inside it, so a first or
last token that merges with a tag is excluded. Nothing searches for one list of tokens in another.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from rlt.errors import ModelError, ScoringError
from rlt.text.formats import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Token ids `(T,)` of one text, the characters `[start, end)` of each, and each part's first character and tokens.

    Example: text "ab|cd", part "x" = characters 3..5, ids [7, 8, 9] with offsets [(0, 2), (2, 3), (3, 5)] has starts
    {"x": 3} and spans {"x": range(2, 3)}.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    starts: dict[str, int]
    spans: dict[str, range]

    def boundaries(self, part: str) -> list[int]:
        """`(n + 1,)` character positions around the part's tokens, counted from the part's start.

        Characters that no token covers (spaces that a tokenizer drops) belong to the next token.
        """
        span, origin = self.spans[part], self.starts[part]
        if len(span) == 0:
            return []
        before = self.offsets[span.start - 1][1] if span.start > 0 else 0
        return [max(0, before - origin)] + [self.offsets[i][1] - origin for i in span]


def tokenize(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered]) -> list[Tokenized]:
    """Each text as token ids and spans. No special tokens are added: the chat template already wrote them.

    A text with a `prompt` starts with the prompt's own tokens, as an engine receives them. If they are the first tokens of
    the whole text, the rest follows from there; otherwise what follows the prompt is tokenized separately.
    Raises ModelError for a tokenizer without character offsets (a "slow" one).
    """
    whole = _encode(tokenizer, [item.text for item in rendered])
    begun = [i for i, item in enumerate(rendered) if item.prompt is not None]
    prompts = _encode(tokenizer, [rendered[i].text[: rendered[i].prompt] for i in begun])
    apart = [i for i, (ids, _) in zip(begun, prompts, strict=True) if whole[i][0][: len(ids)] != ids]
    rest = _encode_continuations(tokenizer, [rendered[i].text[rendered[i].prompt :] for i in apart])
    prompt_of = dict(zip(begun, prompts, strict=True))
    for i, (ids, offsets) in zip(apart, rest, strict=True):
        shift = rendered[i].prompt or 0
        whole[i] = (prompt_of[i][0] + ids, prompt_of[i][1] + [(a + shift, b + shift) for a, b in offsets])
    return [
        Tokenized(
            ids,
            offsets,
            {part: start for part, (start, _) in item.spans.items()},
            {part: token_span(offsets, *span) for part, span in item.spans.items()},
        )
        for (ids, offsets), item in zip(whole, rendered, strict=True)
    ]


Encoded = tuple[list[int], list[tuple[int, int]]]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Encoded]:
    if not texts:
        return []
    # verbose=False: no warning about texts longer than the model's context, which the caller checks.
    encoded = with_whole_offsets(tokenizer)(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False,
        return_attention_mask=False, return_token_type_ids=False,
    )  # fmt: skip
    return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))


def _encode_continuations(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Encoded]:
    """Ids and offsets of texts that continue another one: without the space that some tokenizers put before any text."""
    if not _pads_with_space(tokenizer):
        return _encode(tokenizer, texts)
    results = []
    for ids, offsets in _encode(tokenizer, ["\n" + text for text in texts]):
        first = next((i for i, (_, end) in enumerate(offsets) if end > 1), len(ids))
        results.append((ids[first:], [(max(0, a - 1), b - 1) for a, b in offsets[first:]]))
    return results


def _pads_with_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a space before a text, as SentencePiece does, and strips one when it decodes."""
    if not tokenizer.is_fast:
        return False
    decoder = tokenizer.backend_tokenizer.decoder
    state = b"" if decoder is None else decoder.__getstate__()
    return b'"Strip"' in state or b'"Metaspace"' in state


_WHOLE: WeakKeyDictionary[PreTrainedTokenizerBase, PreTrainedTokenizerBase] = WeakKeyDictionary()


def with_whole_offsets(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """`tokenizer`, or a copy with untrimmed offsets if it leaves out the space of " word" (byte-level `trim_offsets`).

    Raises ModelError for a tokenizer without character offsets (a "slow" one).
    """
    if not tokenizer.is_fast:
        raise ModelError(f"{tokenizer.name_or_path}: needs a fast tokenizer; a slow one has no character offsets.")
    if tokenizer not in _WHOLE:
        whole = tokenizer
        post = tokenizer.backend_tokenizer.post_processor
        if post is not None and b'"trim_offsets":true' in post.__getstate__():
            whole = copy.deepcopy(tokenizer)
            # It only adds special tokens and trims offsets; scoring needs neither.
            whole.backend_tokenizer.post_processor = None
        else:
            return tokenizer  # not cached: a value that is its own key would never be freed
        _WHOLE[tokenizer] = whole
    return _WHOLE[tokenizer]


def token_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> range:
    """The tokens whose characters all lie in `[start, end)`; may be empty.

    Tokens that are bytes of one character all have that character's offsets, so all of them count.
    """
    inside = [i for i, (a, b) in enumerate(offsets) if start <= a < b <= end]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


def sampled_texts(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]
) -> list[tuple[str, list[int]] | ScoringError]:
    """For each row of sampled token ids `(n,)`, its text and the `(n + 1,)` character positions around its tokens.

    The ids never change. If encoding the text gives the same ids, its offsets are used; otherwise the ids are decoded one
    by one. Tokens that end inside a character get that character's end, as in `Tokenized`. A row whose text differs from
    its tokens' texts gets a ScoringError instead.
    """
    texts = [decode(tokenizer, ids) for ids in rows]
    results: list[tuple[str, list[int]] | ScoringError] = []
    for ids, text, (again, offsets) in zip(rows, texts, _encode_continuations(tokenizer, texts), strict=True):
        try:
            ends = [end for _, end in offsets] if again == list(ids) else _ends_one_by_one(tokenizer, ids, text)
            results.append((text, [0, *ends]))
        except ScoringError as error:
            results.append(error)
    return results


def _ends_one_by_one(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> list[int]:
    from tokenizers.decoders import DecodeStream

    stream, written = DecodeStream(ids=_anchor(tokenizer), skip_special_tokens=False), ""
    ends: list[int] = []
    for count, token in enumerate(ids, 1):
        piece = stream.step(tokenizer.backend_tokenizer, token)
        if piece is not None or count == len(ids):
            # Tokens without text of their own are bytes of this piece's first character; cut-off bytes are U+FFFD.
            written = text if count == len(ids) else written + (piece or "")
            ends += [len(written)] * (count - len(ends))
            if not text.startswith(written):
                raise ScoringError(
                    f"the sampled tokens decode to different text together and one by one, at {written[-20:]!r}"
                )
    return ends


def common_stretches(ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[range, range]]:
    """The shortest stretches of text whose boundaries two tokenizations share: pairs of token ranges, in order.

    `ours` and `theirs`: the `(n + 1,)` boundaries of each tokenization of the same text (see `Tokenized.boundaries`).
    Tokens outside the text that both cover (a first or last one that merged with a tag on one side only) are left out.

    Example: boundaries [0, 2, 5, 6] and [0, 5, 6] give [(0..2, 0..1), (2..3, 1..2)].
    """
    # Of several tokens that end at one character (its bytes), the last one counts: a dict keeps that one.
    ends = {position: index for index, position in enumerate(theirs)}
    stretches: list[tuple[range, range]] = []
    begin: tuple[int, int] | None = None
    for position, index in {position: index for index, position in enumerate(ours)}.items():
        other = ends.get(position)
        if other is None:
            continue
        if begin is not None and index > begin[0] and other > begin[1]:
            stretches.append((range(begin[0], index), range(begin[1], other)))
        begin = (index, other)
    return stretches


def aligned(
    our_ids: Sequence[int], ours: Sequence[int], their_ids: Sequence[int], theirs: Sequence[int], same_tokens: bool
) -> list[tuple[range, range]]:
    """Pairs of token ranges over the same text: `common_stretches`, split token by token where the ids are equal.

    `same_tokens`: both sides share one vocabulary, so an id means the same token. Equal tokenizations then give one pair
    per token, even where several tokens are bytes of one character.
    """
    pairs: list[tuple[range, range]] = []
    for our, their in common_stretches(ours, theirs):
        equal = same_tokens and list(our_ids[our.start : our.stop]) == list(their_ids[their.start : their.stop])
        if equal and len(our) > 1:
            pairs += [(range(a, a + 1), range(b, b + 1)) for a, b in zip(our, their, strict=True)]
        else:
            pairs.append((our, their))
    return pairs


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text that already has its special tokens; never truncated, whatever tokenizer.json says.

    Calls the tokenizers library directly where possible: for a single text, transformers takes ten times as long.
    """
    if not tokenizer.is_fast:
        return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    return list(backend.encode(text, add_special_tokens=False).ids)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of ids sampled after a prompt, with special tokens: a format's tags may be special tokens.

    Keeps a leading space, even if the tokenizer would strip it as the one it puts before every text.
    """
    if not tokenizer.is_fast:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    backend, anchor = tokenizer.backend_tokenizer, _anchor(tokenizer)
    text = str(backend.decode([*anchor, *ids], skip_special_tokens=False))
    return text[len(str(backend.decode(anchor, skip_special_tokens=False))) :] if anchor else text


_ANCHORS: WeakKeyDictionary[PreTrainedTokenizerBase, list[int]] = WeakKeyDictionary()


def _anchor(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The id of a letter to put before ids to decode, for tokenizers that strip a text's first space; otherwise none."""
    if tokenizer not in _ANCHORS:
        letter = tokenizer.encode("a", add_special_tokens=False)[-1:]
        _ANCHORS[tokenizer] = letter if _pads_with_space(tokenizer) else []
    return _ANCHORS[tokenizer]
