"""From rendered text to token ids, with the token spans of its parts known by construction.

Text is tokenized once, with character offsets; a span holds the tokens whose characters lie wholly inside it. A first
or last token that merges with a tag is therefore outside. Nothing searches for a list of tokens in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlt.errors import ModelError
from rlt.formats import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Token ids `(T,)` of one text, the character range of each token, and for each part its range of tokens.

    Example: text "ab|cd", part "x" = characters 3..5, ids [7, 8, 9] with offsets [(0, 2), (2, 3), (3, 5)] has spans
    {"x": range(2, 3)}.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    spans: dict[str, range]

    def boundaries(self, part: str, origin: int) -> list[int]:
        """`(n + 1,)` character positions, counted from `origin`, before and after each token of `part`."""
        span = self.spans[part]
        if len(span) == 0:
            return []
        return [self.offsets[span[0]][0] - origin] + [self.offsets[i][1] - origin for i in span]


def tokenize(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered]) -> list[Tokenized]:
    """Each text as token ids and spans. The chat template already wrote every special token, so none is added.

    Raises ModelError for a tokenizer without character offsets (a "slow" one).
    """
    if not tokenizer.is_fast:
        raise ModelError(f"{tokenizer.name_or_path}: a fast tokenizer is needed; this one gives no character offsets.")
    if not rendered:
        return []
    # A tokenizer's own `model_max_length` warning is about inputs of a model; the context is checked by who scores.
    encoded = tokenizer(
        [item.text for item in rendered], add_special_tokens=False, return_offsets_mapping=True, verbose=False,
        return_attention_mask=False,
    )
    rows = zip(encoded["input_ids"], encoded["offset_mapping"], rendered, strict=True)
    return [_tokenized(ids, offsets, item.spans) for ids, offsets, item in rows]


def _tokenized(ids: list[int], offsets: list[tuple[int, int]], spans: dict[str, tuple[int, int]]) -> Tokenized:
    covering = _without_gaps(offsets)
    return Tokenized(ids, covering, {part: token_span(covering, *span) for part, span in spans.items()})


def _without_gaps(offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    # Some tokenizers report " word" without its space (`trim_offsets`). The gap belongs to the token after it.
    covering, end = [], 0
    for start, stop in offsets:
        start = min(start, end)
        covering.append((start, max(start, stop)))
        end = max(end, stop)
    return covering


def token_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> range:
    """The tokens whose characters lie wholly in `[start, end)`; empty where there is none.

    Tokens that cover no character (a byte of an earlier character) count when they stand between tokens that do.
    """
    inside = [i for i, (a, b) in enumerate(offsets) if start <= a and b <= end and a < b]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


def common_stretches(ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[range, range]]:
    """Shortest stretches of text on whose boundaries two tokenizations agree: pairs of token ranges, in order.

    `ours` and `theirs` are the `(n + 1,)` boundary positions of each tokenization over the same text (see
    `Tokenized.boundaries`). Equal tokenizations give one pair of single tokens a token. A token of either side that
    lies outside what both cover (a first or last one that merged with a tag on one side only) is in no stretch.

    Example: boundaries [0, 2, 5, 6] and [0, 5, 6] give [(0..2, 0..1), (2..3, 1..2)].
    """
    positions: dict[int, int] = {}
    for index, position in enumerate(theirs):
        positions[position] = index  # the last of several tokens that end at one character (bytes of it)
    stretches, begin = [], None
    last: dict[int, int] = {position: index for index, position in enumerate(ours)}
    for position, index in last.items():
        other = positions.get(position)
        if other is None:
            continue
        if begin is not None and index > begin[0] and other > begin[1]:
            stretches.append((range(begin[0], index), range(begin[1], other)))
        begin = (index, other)
    return stretches
