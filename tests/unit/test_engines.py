"""What all engines share: budgets, seeds, where a completion ends, and which options go together."""

from __future__ import annotations

import sys

import pytest
from byte_models import byte_tokenizer
from real_tokenizers import real_tokenizer

from rlt.config import EngineOptions
from rlt.engines.base import Sampling, budget, cut, request_seed
from rlt.engines.build import build_engine
from rlt.errors import ConfigError, DependencyError
from rlt.text.tokens import encode

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token_id


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_a_seed_depends_on_its_parts_alone():
    assert request_seed(0, "a", 1) == request_seed(0, "a", 1)
    assert (
        len({request_seed(0, "a", 1), request_seed(1, "a", 1), request_seed(0, "b", 1), request_seed(0, "a", 2)}) == 4
    )
    assert 0 <= request_seed(0, "a", 1) < 2**31


def test_the_budget_is_what_the_context_leaves():
    assert [budget(n, Sampling(10), 32) for n in (5, 25, 32, 40)] == [10, 7, 0, 0]
    assert budget(10**6, Sampling(10), None) == 10


def test_an_end_token_stays_in_the_ids_and_not_in_the_text():
    assert cut(TOKENIZER, [*ids("ab"), END, *ids("c")], (), {END}) == ([*ids("ab"), END], "ab", True)


def test_a_stop_string_ends_text_and_ids_with_the_token_that_completes_it():
    written = ids("a b</stop>cd")
    kept, text, stopped = cut(TOKENIZER, written, ("</stop>",), {END})
    assert (text, stopped) == ("a b</stop>", True)
    assert kept == written[: len(kept)]
    assert "</stop>" in TOKENIZER.decode(kept)
    assert "</stop>" not in TOKENIZER.decode(kept[:-1])


def test_nothing_stops_what_runs_on():
    assert cut(TOKENIZER, ids("ab"), ("</stop>",), {END}) == (ids("ab"), "ab", False)


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(ConfigError, match="needs `url`"):
        build_engine(EngineOptions(engine="openai"), "x")
    with pytest.raises(ConfigError, match="`url` is for engine `openai`"):
        build_engine(EngineOptions(url="http://127.0.0.1:1/v1"), "x")


def test_a_missing_extra_gives_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(DependencyError, match=r"pip install 'rlt\[vllm\]'"):
        build_engine(EngineOptions(engine="vllm"), "x")


@pytest.mark.parametrize("name", ["mistral", "spaces_kept"])
def test_a_stop_string_is_found_behind_a_leading_space_of_sentencepiece(name):
    tokenizer = real_tokenizer(name)
    prompt = encode(tokenizer, "Why?")
    written = encode(tokenizer, "Why? So we add.</stop> more")[len(prompt) :]
    kept, text, stopped = cut(tokenizer, written, ("</stop>",), {tokenizer.eos_token_id})
    assert (text, stopped) == (" So we add.</stop>", True)
    assert kept == written[: len(kept)]
