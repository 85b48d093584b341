"""Requests in flight at a scheduler elsewhere: refilled as they end, and what a failed or abandoned one leaves."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from byte_models import byte_tokenizer
from real_tokenizers import real_tokenizer

from rlt.config import EngineOptions
from rlt.engines.base import Completion, InFlight, Request, Sampling
from rlt.engines.vllm import VllmEngine
from rlt.errors import DataError, RunError
from rlt.text.tokens import encode

REQUESTS = [Request(str(i), "What?", i) for i in range(7)]


class LastFirst(InFlight):
    """Ends the request that was handed in last; refuses those of `refused`, fails those of `failing`."""

    def __init__(self, window, refused=(), failing=(), context_length=None):
        super().__init__(byte_tokenizer(), context_length, window, ids=True)
        self.refused, self.failing = refused, failing
        self.flying, self.most, self.abandoned = [], 0, None

    def start(self, request, ids, room):
        if request.key in self.refused:
            raise DataError(f"{request.key} refused")
        self.flying.append(request.key)
        self.most = max(self.most, len(self.flying))
        return request.key

    def ended(self):
        key = self.flying.pop()
        return [(key, key.upper())]

    def completion(self, request, prompt_tokens, answer):
        if request.key in self.failing:
            raise RunError(f"{request.key} failed")
        return Completion(request.key, answer, "stop", prompt_tokens, 1)

    def abandon(self, tickets):
        self.abandoned = list(tickets)


def test_every_request_is_completed_and_no_more_than_the_window_are_in_flight():
    flight = LastFirst(window=3)
    assert sorted(c.key for c in flight.completions(REQUESTS, Sampling(4))) == list("0123456")
    assert flight.most == 3
    assert flight.abandoned == []


def test_requests_are_drawn_as_places_become_free():
    drawn = []
    source = (drawn.append(request.key) or request for request in REQUESTS)
    completions = LastFirst(window=2).completions(source, Sampling(4))
    next(completions)
    assert drawn == ["0", "1"]
    next(completions)
    assert drawn == ["0", "1", "2"]


@pytest.mark.parametrize(("flaw", "error"), [({"refused": "3"}, DataError), ({"failing": "3"}, RunError)])
def test_when_a_request_fails_those_in_flight_complete_and_no_other_begins(flaw, error):
    completions, written = LastFirst(window=4, **flaw).completions(REQUESTS, Sampling(4)), []
    with pytest.raises(error, match="3"):
        written.extend(completion.key for completion in completions)
    assert sorted(written) == ["0", "1", "2"]


def test_what_nobody_waits_for_is_abandoned():
    flight = LastFirst(window=3)
    completions = flight.completions(REQUESTS, Sampling(4))
    next(completions)
    completions.close()
    assert flight.abandoned == ["0", "1"]


def test_what_is_in_flight_is_abandoned_when_the_source_of_requests_fails():
    def source():
        yield from REQUESTS[:2]
        raise DataError("row 3")

    flight = LastFirst(window=3)
    with pytest.raises(DataError, match="row 3"):
        list(flight.completions(source(), Sampling(4)))
    assert flight.abandoned == ["0", "1"]


def test_a_prompt_that_fills_the_context_takes_no_place():
    (full,) = LastFirst(window=1, context_length=3).completions([Request("x", "a long prompt", 0)], Sampling(4))
    assert (full.finish_reason, full.completion_tokens) == ("length", 0)


# -- vLLM's part, by a stand-in (the real one: tests/servers/test_vllm_engine.py) ------------------------


class FakeScheduler:
    """Answers every request with its prompt's successor in `answers`."""

    def __init__(self, answers):
        self.answers, self.added, self.aborted = answers, [], []
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=2))

    def add_request(self, name, prompt, params):
        self.added.append((name, prompt["prompt_token_ids"], params))

    def step(self):
        if not self.answers:
            raise sys.modules["vllm.exceptions"].VLLMServerError("out\nof memory")
        name, prompt, _ = self.added.pop(0)
        return [SimpleNamespace(request_id=name, finished=True, prompt_token_ids=prompt, outputs=[self.answers.pop(0)])]

    def abort_request(self, names):
        self.aborted += names


def written(ids, finish_reason="length", stop_reason=None):
    logprobs = [{token: SimpleNamespace(logprob=-0.5)} for token in ids]
    return SimpleNamespace(token_ids=ids, finish_reason=finish_reason, stop_reason=stop_reason, logprobs=logprobs)


@pytest.fixture
def vllm_with(monkeypatch):
    """Makes a VllmEngine over a stand-in that gives those answers."""

    def make(tokenizer, answers, cpu=False):
        scheduler = FakeScheduler(answers)
        llm = SimpleNamespace(
            llm_engine=scheduler, get_tokenizer=lambda: tokenizer, model_config=SimpleNamespace(max_model_len=512)
        )
        module, params, errors = ModuleType("vllm"), ModuleType("vllm.sampling_params"), ModuleType("vllm.exceptions")
        module.LLM, module.__version__ = lambda model, **options: llm, "0"
        module.SamplingParams = SimpleNamespace
        module.platforms = SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: cpu))
        params.RequestOutputKind = SimpleNamespace(FINAL_ONLY=2)
        errors.VLLMClientError, errors.VLLMServerError = type("C", (Exception,), {}), type("S", (Exception,), {})
        for name, part in (("vllm", module), ("vllm.sampling_params", params), ("vllm.exceptions", errors)):
            monkeypatch.setitem(sys.modules, name, part)
        return VllmEngine(EngineOptions(engine="vllm"), "model")

    return make


def test_vllm_gets_the_seed_and_its_ids_become_text_and_log_prob(vllm_with):
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("so", add_special_tokens=False)
    engine = vllm_with(tokenizer, [written([*ids, tokenizer.eos_token_id], "stop")])
    (completion,) = engine.generate([Request("a", "What?", 7)], Sampling(9))
    assert (completion.text, completion.finish_reason, completion.seed) == ("so", "stop", 7)
    assert completion.logprob_sum == -0.5 * (len(ids) + 1)


def test_vllm_on_a_cpu_gets_no_seed_and_its_rows_claim_none(vllm_with):
    engine = vllm_with(byte_tokenizer(), [written([65])], cpu=True)
    assert engine.params(REQUESTS[0], 4, Sampling(4)).seed is None
    (completion,) = engine.generate(REQUESTS[:1], Sampling(4))
    assert completion.seed is None


def test_a_leading_space_of_sentencepiece_stays_in_what_vllm_wrote(vllm_with):
    tokenizer = real_tokenizer("mistral")
    ids = encode(tokenizer, "Why? So we add.")[len(encode(tokenizer, "Why?")) :]
    (completion,) = vllm_with(tokenizer, [written(ids)]).generate([Request("a", "Why?", 0)], Sampling(9))
    assert completion.text == " So we add."


def test_a_vllm_that_ended_a_request_otherwise_is_an_error_that_names_it(vllm_with):
    with pytest.raises(RunError, match="request 0: vLLM ended it with finish reason 'abort'"):
        list(vllm_with(byte_tokenizer(), [written([65], "abort")]).generate(REQUESTS[:1], Sampling(4)))


def test_a_vllm_that_dies_is_an_error_of_one_line(vllm_with):
    engine = vllm_with(byte_tokenizer(), [written([65])])
    with pytest.raises(RunError, match=r"died \(out of memory\)"):
        list(engine.generate(REQUESTS[:2], Sampling(4)))
