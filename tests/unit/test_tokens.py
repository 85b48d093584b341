"""Token spans, and the alignment of two tokenizations of one text."""

import pytest
from byte_models import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rlt.text.formats import Rendered
from rlt.text.tokens import aligned, common_stretches, sampled_texts, token_span, tokenize

COARSE, FINE = byte_tokenizer(vocabulary=420, split_words=False), byte_tokenizer(vocabulary=256)
VISIBLE = bytes_to_unicode()
TRIMMED = byte_tokenizer(vocabulary=330, trim_offsets=True)


def test_a_span_holds_tokens_that_lie_wholly_inside():
    offsets = [(0, 2), (2, 5), (5, 6), (6, 9)]
    assert token_span(offsets, 2, 6) == range(1, 3)
    assert token_span(offsets, 1, 8) == range(1, 3)  # the first and last token merge with what is outside
    assert token_span(offsets, 3, 5) == range(0)


def test_bytes_of_one_character_all_count():
    assert token_span([(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], 1, 2) == range(1, 4)


def test_common_stretches_by_hand():
    assert common_stretches([0, 2, 5, 6], [0, 5, 6]) == [(range(0, 2), range(0, 1)), (range(2, 3), range(1, 2))]
    assert common_stretches([0, 1, 2], [0, 1, 2]) == [(range(0, 1), range(0, 1)), (range(1, 2), range(1, 2))]
    assert common_stretches([1, 3, 4], [0, 3, 4]) == [(range(1, 2), range(1, 2))]  # one side's first token merged
    assert common_stretches([], [0, 1]) == []


def test_equal_ids_are_aligned_token_by_token_inside_a_character():
    pairs = aligned([1, 2, 3], [0, 1, 1, 2], [1, 2, 3], [0, 1, 1, 2], same_tokens=True)
    assert [(list(a), list(b)) for a, b in pairs] == [([0], [0]), ([1], [1]), ([2], [2])]


@pytest.mark.parametrize("tokenizer", [COARSE, FINE, TRIMMED], ids=["coarse", "bytes", "trimmed offsets"])
@given(before=st.text(max_size=8), part=st.text(max_size=20), after=st.text(max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_text_is_covered_and_the_span_never_leaves_its_part(tokenizer, before, part, after):
    text = before + part + after
    (tokens,) = tokenize(tokenizer, [Rendered(text, {"part": (len(before), len(before) + len(part))})])
    assert [start for start, _ in tokens.offsets[:1]] == [0] * bool(text)
    for (_, end), (start, _) in zip(tokens.offsets, tokens.offsets[1:], strict=False):
        assert start <= end  # no character without a token
    span = tokens.spans["part"]
    inside = tokenizer.decode(tokens.ids[span.start : span.stop])
    assert inside.replace("�", "") in part or not inside.strip("�")
    if tokenizer is FINE:
        assert len(span) == len(part.encode())  # one token a byte: nothing merges


@given(text=st.text(min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_stretches_cover_the_text_once_on_both_sides(text):
    one, two = (tokenize(t, [Rendered(text, {"all": (0, len(text))})])[0] for t in (COARSE, FINE))
    pairs = common_stretches(one.boundaries("all"), two.boundaries("all"))
    assert [i for a, _ in pairs for i in a] == list(range(len(one.ids)))
    assert [i for _, b in pairs for i in b] == list(range(len(two.ids)))


@given(text=st.text(max_size=20), seed=st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_sampled_tokens_keep_their_places_in_the_text(text, seed):
    # Canonical tokens, or one a byte, as a sampler may produce.
    bytewise = COARSE.convert_tokens_to_ids([VISIBLE[byte] for byte in text.encode()])
    pieces = [COARSE.encode(text, add_special_tokens=False), bytewise]
    chosen = seed.choice(pieces)
    ((decoded, boundaries),) = sampled_texts(COARSE, [chosen])
    assert decoded == text
    assert (boundaries[0], boundaries[-1], len(boundaries)) == (0, len(text), len(chosen) + 1)
    assert boundaries == sorted(boundaries)


def test_a_cut_off_character_is_one_replacement_character():
    ids = FINE.encode("a😀", add_special_tokens=False)[:-1]
    assert sampled_texts(FINE, [ids]) == [("a�", [0, 1, 2, 2, 2])]
