"""From rendered text to token ids, with the token spans of its parts known by construction.

Text is tokenized once, with character offsets; a span holds the tokens whose characters lie wholly inside it. A first
or last token that merges with a tag is therefore outside. Nothing searches for a list of tokens in another.
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
    """Token ids `(T,)` of one text, the characters `[start, end)` of each, and for each part where its text starts and
    its range of tokens.

    Example: text "ab|cd", part "x" = characters 3..5, ids [7, 8, 9] with offsets [(0, 2), (2, 3), (3, 5)] has starts
    {"x": 3} and spans {"x": range(2, 3)}.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    starts: dict[str, int]
    spans: dict[str, range]

    def boundaries(self, part: str) -> list[int]:
        """`(n + 1,)` character positions, counted from the part's start, before and after each of its tokens.

        Characters that no token covers (spaces that a tokenizer drops) belong to the token after them.
        """
        span, origin = self.spans[part], self.starts[part]
        if len(span) == 0:
            return []
        before = self.offsets[span.start - 1][1] if span.start > 0 else 0
        first = self.offsets[span.start][0] if before > origin else origin
        return [first - origin] + [self.offsets[i][1] - origin for i in span]


def tokenize(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered]) -> list[Tokenized]:
    """Each text as token ids and spans. The chat template already wrote every special token, so none is added.

    Raises ModelError for a tokenizer without character offsets (a "slow" one).
    """
    if not rendered:
        return []
    # verbose: a tokenizer's own warning about long texts is about inputs of a model; who scores checks the context.
    encoded = with_whole_offsets(tokenizer)(
        [item.text for item in rendered], add_special_tokens=False, return_offsets_mapping=True, verbose=False,
        return_attention_mask=False, return_token_type_ids=False,
    )  # fmt: skip
    rows = zip(encoded["input_ids"], encoded["offset_mapping"], rendered, strict=True)
    return [
        Tokenized(
            ids,
            offsets,
            {part: start for part, (start, _) in item.spans.items()},
            {part: token_span(offsets, *span) for part, span in item.spans.items()},
        )
        for ids, offsets, item in rows
    ]


_WHOLE: WeakKeyDictionary[PreTrainedTokenizerBase, PreTrainedTokenizerBase] = WeakKeyDictionary()


def with_whole_offsets(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """`tokenizer`, or a copy of it where it would report " word" without its space (`trim_offsets` of byte-level BPE).

    Raises ModelError for a tokenizer without character offsets (a "slow" one).
    """
    if not tokenizer.is_fast:
        raise ModelError(f"{tokenizer.name_or_path}: a fast tokenizer is needed; this one gives no character offsets.")
    if tokenizer not in _WHOLE:
        whole = tokenizer
        post = tokenizer.backend_tokenizer.post_processor
        if post is not None and b'"trim_offsets":true' in post.__getstate__():
            whole = copy.deepcopy(tokenizer)
            # Only adds special tokens and trims offsets; scoring wants neither.
            whole.backend_tokenizer.post_processor = None
        else:
            return tokenizer  # not kept: a value that is its own key would never be freed
        _WHOLE[tokenizer] = whole
    return _WHOLE[tokenizer]


def token_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> range:
    """The tokens whose characters lie wholly in `[start, end)`; empty where there is none.

    Several tokens that are bytes of one character all have that character's offsets, and count.
    """
    inside = [i for i, (a, b) in enumerate(offsets) if start <= a < b <= end]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


def sampled_boundaries(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, list[int]]:
    """`(text, boundaries)` of sampled token ids `(n,)`: their text, and the `(n + 1,)` positions around each in it.

    The ids stay as they are: where encoding the text again gives the same ids, its offsets are used; else the ids are
    decoded one after another. Tokens that end inside a character all have that character's end, as in `Tokenized`.
    Raises ScoringError where the ids' text is not made of its tokens' texts.
    """
    text = decode(tokenizer, ids)
    (again,) = tokenize(tokenizer, [Rendered(text, {"all": (0, len(text))})])
    if again.ids == list(ids):
        return text, [0, *(end for _, end in again.offsets)]
    from tokenizers.decoders import DecodeStream

    stream, written = DecodeStream(ids=[], skip_special_tokens=False), ""
    ends: list[int] = []
    for count, token in enumerate(ids, 1):
        piece = stream.step(tokenizer.backend_tokenizer, token)
        if piece is not None or count == len(ids):
            # Tokens that gave no text alone are bytes of this piece's first character; cut-off bytes, U+FFFD.
            written = text if count == len(ids) else written + (piece or "")
            ends += [len(written)] * (count - len(ends))
            if not text.startswith(written):
                raise ScoringError(
                    f"the sampled tokens decode to other text together than one by one, at {written[-20:]!r}"
                )
    boundaries = [0, *ends]
    return text, boundaries


def common_stretches(ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[range, range]]:
    """Shortest stretches of text on whose boundaries two tokenizations agree: pairs of token ranges, in order.

    `ours` and `theirs` are the `(n + 1,)` boundary positions of each tokenization over the same text (see
    `Tokenized.boundaries`). A token of either side that lies outside what both cover (a first or last one that merged
    with a tag on one side only) is in no stretch.

    Example: boundaries [0, 2, 5, 6] and [0, 5, 6] give [(0..2, 0..1), (2..3, 1..2)].
    """
    # Of several tokens that end at one character (bytes of it), the last one counts: a dict keeps that.
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
    """Pairs of token ranges over the same text: `common_stretches`, token by token where both sides have the same ids.

    `same_tokens`: the two vocabularies are one, so that an id means the same token on both sides. Then tokenizations
    that are equal give one pair a token, also where several tokens are bytes of one character.
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
    """The ids of a text that has all its special tokens already; never truncated, whatever its tokenizer.json says.

    Straight from the tokenizers library where that is inside: for one text the way around costs ten times as much, and
    beside a server on the same machine that is the server's time.
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
    """The text of sampled ids, special tokens included: a format's tags may be special tokens."""
    if tokenizer.is_fast:
        return str(tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False))
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
