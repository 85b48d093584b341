"""The `transformers` engine: generation in this process, batched by length, repeatable request by request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.cache_utils import DynamicCache, DynamicLayer

from rlt.config import EngineOptions
from rlt.engines.base import Completion, Request, Sampling, budget, cut, empty
from rlt.errors import ConfigError
from rlt.models.loading import context_length, load_model, load_tokenizer
from rlt.models.logprobs import Row, token_logprobs
from rlt.text.tokens import decode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Requests are sorted by length within so many batches: enough for little padding, few enough to be drawn lazily.
SORTED_BATCHES = 8
# Steps between looks at the text for stop strings, and at which rows are finished.
LOOK_EVERY = 16


@dataclass(frozen=True, slots=True)
class _Prompt:
    request: Request
    ids: list[int]
    room: int


class HfEngine:
    """Continues prompts with a transformers model.

    Every request has its own random numbers, which depend on its seed and the position alone. A completion is therefore
    the same whatever it is batched with, as far as the model's numbers are (on a CPU in float32: to the last bits).

    `engine_options` go to `from_pretrained`, but for `continuous_batching`: true, or options of transformers'
    ContinuousBatchingConfig, lets transformers' own paged scheduler fill places as they become free. Its random numbers
    are those of all requests together: no request has a seed of its own then.
    """

    def __init__(
        self, options: EngineOptions, model: str, *, dtype: str = "auto", trust_remote_code: bool = False
    ) -> None:
        loading = dict(options.engine_options)
        continuous = loading.pop("continuous_batching", False)
        try:
            loaded = load_model(model, dtype, trust_remote_code, **loading)
        except TypeError as error:
            raise ConfigError(f"`engine_options`: {error}") from error
        self._init(loaded, load_tokenizer(model, trust_remote_code), options.batch_size, continuous)

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64) -> HfEngine:
        """An engine for a model that is loaded already."""
        engine = cls.__new__(cls)
        engine._init(model, tokenizer, batch_size, False)
        return engine

    def _init(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        continuous: bool | dict[str, Any],
    ) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.continuous: dict[str, Any] | None = {} if continuous is True else continuous or None
        self.window = batch_size * SORTED_BATCHES
        self.context_length = context_length(model.config)
        self.name = f"transformers {transformers.__version__}"
        self.end_ids = end_ids(model, tokenizer)

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `rlt.engines.base.Engine`; completions come batch by batch."""
        source = iter(requests)
        write = self._write if self.continuous is None else self._write_continuously
        while window := list(islice(source, self.window)):
            encoded = self.tokenizer([r.prompt for r in window], add_special_tokens=False, verbose=False)["input_ids"]
            prompts = [
                _Prompt(request, ids, budget(len(ids), sampling, self.context_length))
                for request, ids in zip(window, encoded, strict=True)
            ]
            yield from (empty(p.request, len(p.ids)) for p in prompts if p.room == 0)
            # Longest first, so that what does not fit in memory fails at the beginning.
            ready = sorted((p for p in prompts if p.room > 0), key=lambda p: -len(p.ids))
            together = self.batch_size if self.continuous is None else max(1, len(ready))
            for start in range(0, len(ready), together):
                yield from write(ready[start : start + together], sampling)

    def close(self) -> None:
        """Free the model's memory."""
        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _write(self, batch: Sequence[_Prompt], sampling: Sampling) -> list[Completion]:
        device = self.model.device
        width = max(len(p.ids) for p in batch)
        ids = torch.tensor([[0] * (width - len(p.ids)) + p.ids for p in batch], device=device)
        mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in batch], device=device)
        seeds = torch.tensor([p.request.seed for p in batch], device=device)
        room = torch.tensor([p.room for p in batch], device=device)
        ends = torch.tensor(sorted(self._ends(sampling)), device=device)
        rows = torch.arange(len(batch), device=device)  # which rows of the batch are still being written
        steps = max(p.room for p in batch)
        tokens = torch.zeros(len(batch), steps, dtype=torch.long, device=device)
        logprobs = torch.zeros(len(batch), steps, device=device)
        lengths = torch.zeros(len(batch), dtype=torch.long, device=device)
        live = torch.ones(len(batch), dtype=torch.bool, device=device)  # of `rows`
        cache = _cache(self.model)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        for step in range(steps):
            logits = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1].float()  # fmt: skip
            chosen = sample(logits, sampling, seeds, step)
            tokens[rows, step] = chosen
            logprobs[rows, step] = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
            lengths[rows] += live
            live = live & ~torch.isin(chosen, ends) & (step + 1 < room[rows])
            if (step + 1) % LOOK_EVERY == 0 or step + 1 == steps or device.type == "cpu":
                if (step + 1) % LOOK_EVERY == 0 and sampling.stop:
                    live = live & ~self._stopped(tokens[rows, : step + 1], live, sampling.stop)
                left = int(live.sum())
                if left == 0:
                    break
                if 2 * left <= len(rows) and _can_select(cache):
                    keep = live.nonzero()[:, 0]
                    cache.batch_select_indices(keep)
                    rows, mask, positions, seeds = rows[keep], mask[keep], positions[keep], seeds[keep]
                    chosen, live = chosen[keep], live[keep]
            ids = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            positions = positions[:, -1:] + 1
        rows_of = zip(batch, tokens.tolist(), logprobs.cpu(), lengths.tolist(), strict=True)
        return [self._completion(p, ids[:n], values[:n], sampling) for p, ids, values, n in rows_of]

    def _ends(self, sampling: Sampling) -> set[int]:
        """Tokens after which a row is finished: the ends of a turn, and stop strings that are one token."""
        singles = (self.tokenizer.encode(tag, add_special_tokens=False) for tag in sampling.stop)
        return self.end_ids | {ids[0] for ids in singles if len(ids) == 1}

    def _stopped(self, tokens: torch.Tensor, live: torch.Tensor, stop: Sequence[str]) -> torch.Tensor:
        """`(B,)`: which rows have a stop string in what was written since the last look (and a tag's length before)."""
        # A token has at least one byte of text, or a character's; a tag spans at most as many tokens as it has bytes.
        tail = tokens[:, -(LOOK_EVERY + max(len(tag.encode()) for tag in stop)) :].tolist()
        alive = live.tolist()
        written = (decode(self.tokenizer, ids) if on else "" for ids, on in zip(tail, alive, strict=True))
        return torch.tensor([any(tag in text for tag in stop) for text in written], device=tokens.device)

    def _completion(
        self, prompt: _Prompt, ids: list[int], logprobs: torch.Tensor | None, sampling: Sampling
    ) -> Completion:
        kept, text, stopped = cut(self.tokenizer, ids, sampling.stop, self.end_ids)
        total = None if logprobs is None else float(logprobs[: len(kept)].double().sum())
        reason = "stop" if stopped else "length"
        seed = prompt.request.seed if self.continuous is None and sampling.temperature > 0 else None
        return Completion(prompt.request.key, text, reason, len(prompt.ids), len(kept), tuple(kept), total, seed)

    # -- continuous batching -----------------------------------------------------------------------------------------

    def _write_continuously(self, batch: Sequence[_Prompt], sampling: Sampling) -> list[Completion]:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        room = max(p.room for p in batch)
        how = GenerationConfig(
            max_new_tokens=room, do_sample=sampling.temperature > 0, temperature=sampling.temperature or None,
            top_p=sampling.top_p, top_k=sampling.top_k or 0, eos_token_id=sorted(self._ends(sampling)),
            pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        try:
            ours = {"seed": batch[0].request.seed, "max_requests_per_batch": self.batch_size}
            config = ContinuousBatchingConfig(**{**ours, **(self.continuous or {})})
        except TypeError as error:
            raise ConfigError(f"`engine_options.continuous_batching`: {error}") from error
        model: Any = self.model
        outputs = model.generate_batch([p.ids for p in batch], how, config, progress_bar=False)
        if len(outputs) != len(batch):
            raise RuntimeError(f"continuous batching returned {len(outputs)} of {len(batch)} completions")
        completions = []
        for prompt, output in zip(batch, outputs.values(), strict=True):
            if output.error is not None:
                raise RuntimeError(f"continuous batching failed: {output.error}")
            completions.append(self._completion(prompt, output.generated_tokens[: prompt.room], None, sampling))
        return self._scored(batch, completions)

    def _scored(self, batch: Sequence[_Prompt], completions: Sequence[Completion]) -> list[Completion]:
        """With `logprob_sum`: the scheduler gives log-probs of the truncated, tempered distribution only."""
        from dataclasses import replace

        rows = [
            Row([*p.ids, *(c.token_ids or ())], [range(len(p.ids), len(p.ids) + c.completion_tokens)])
            for p, c in zip(batch, completions, strict=True)
        ]
        sums = token_logprobs(self.model, rows)
        return [replace(c, logprob_sum=float(s.double().sum())) for c, s in zip(completions, sums, strict=True)]


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that end a turn: the model's generation configuration's, and the tokenizer's."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = configured if isinstance(configured, list) else [configured]
    return {token for token in [*ids, tokenizer.eos_token_id] if token is not None}


# -- sampling --------------------------------------------------------------------------------------------------------


def sample(logits: torch.Tensor, sampling: Sampling, seeds: torch.Tensor, step: int) -> torch.Tensor:
    """`(B,)` token ids sampled from `(B, V)` float32 logits.

    The cumulative distribution is inverted at one uniform number, which depends on the row's seed `(B,)` and the step.
    Top-k is applied before top-p, as vLLM and transformers do.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scaled = logits / sampling.temperature
    if sampling.top_k is None and sampling.top_p >= 1:
        return _invert(scaled.softmax(-1), uniform(seeds, step))
    ordered, order = scaled.sort(-1, descending=True)
    if sampling.top_k is not None:
        ordered[:, sampling.top_k :] = -torch.inf
    probs = ordered.softmax(-1)
    if sampling.top_p < 1:
        # The token that crosses top_p stays: what is dropped is what lies wholly above.
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= sampling.top_p, 0.0)
    return order.gather(1, _invert(probs, uniform(seeds, step))[:, None])[:, 0]


def _invert(weights: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    cumulative = weights.double().cumsum(-1)
    chosen = torch.searchsorted(cumulative, (at * cumulative[:, -1])[:, None], right=True)[:, 0]
    # Rounding can point past the last token with any weight.
    last = weights.shape[-1] - 1 - (weights.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(chosen, last)


def uniform(seeds: torch.Tensor, step: int) -> torch.Tensor:
    """`(B,)` float64 in [0, 1): the splitmix64 hash of each seed and the step (Steele, Lea and Flood 2014).

    A hash, because a generator for each row costs a Python call a row and token.
    """
    x = ((seeds << 32) + step + 1) * _GOLDEN
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        x = (x ^ _shifted(x, shift)) * factor
    x = x ^ _shifted(x, 31)
    return _shifted(x, 11).double() * 2.0**-53


# The constants of splitmix64, as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right: torch's keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


# -- cache -----------------------------------------------------------------------------------------------------------


class _GrowingLayer(DynamicLayer):
    """A DynamicLayer with spare room: transformers' own copies all keys and values at every token."""

    keys: torch.Tensor
    values: torch.Tensor
    _room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._room is None or end > self._room[0].shape[-2]:
            spare = end + max(64, end // 4)
            grown = []
            for old, new in ((self.keys, key_states), (self.values, value_states)):
                room = new.new_empty(*new.shape[:-2], spare, new.shape[-1])
                if start:
                    room[..., :start, :] = old
                grown.append(room)
            self._room = (grown[0], grown[1])
        keys, values = self._room
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._room = None


def _cache(model: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _can_select(cache: DynamicCache) -> bool:
    return all(hasattr(layer, "batch_select_indices") for layer in cache.layers)
