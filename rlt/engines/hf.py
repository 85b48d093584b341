"""The `transformers` engine: generation in this process, batched by length, repeatable request by request."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlt.config import EngineOptions
from rlt.engines.base import Completion, Request, Sampling, budget, cut, empty
from rlt.engines.sampling import sample
from rlt.errors import ConfigError
from rlt.models.loading import context_length, load_model, load_tokenizer
from rlt.text.tokens import decode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Requests are sorted by length within this many batches: enough for little padding, few enough to draw lazily.
SORTED_BATCHES = 8
# Steps between searches of the text for stop strings.
LOOK_EVERY = 16


@dataclass(frozen=True, slots=True)
class _Prompt:
    request: Request
    ids: list[int]
    room: int


class HfEngine:
    """Continues prompts with a transformers model.

    A request's random numbers depend only on its seed and the position. Its completion therefore does not depend on the
    rest of its batch, as far as the model's logits do not (in float32 on a CPU: up to the last bits).

    `engine_options` are passed to `from_pretrained`.
    """

    def __init__(
        self, options: EngineOptions, model: str, *, dtype: str = "auto", trust_remote_code: bool = False
    ) -> None:
        try:
            loaded = load_model(model, dtype, trust_remote_code, **options.engine_options)
        except TypeError as error:
            raise ConfigError(f"`engine_options`: {error}") from error
        self._init(loaded, load_tokenizer(model, trust_remote_code), options.batch_size)

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64) -> HfEngine:
        """An engine for a loaded model."""
        engine = cls.__new__(cls)
        engine._init(model, tokenizer, batch_size)
        return engine

    def _init(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.window = batch_size * SORTED_BATCHES
        self.context_length = context_length(model.config)
        self.name = f"transformers {transformers.__version__}"
        self.end_ids = end_ids(model, tokenizer)

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `rlt.engines.base.Engine`; completions are returned batch by batch."""
        source = iter(requests)
        while window := list(islice(source, self.window)):
            encoded = self.tokenizer([r.prompt for r in window], add_special_tokens=False, verbose=False)["input_ids"]
            prompts = [
                _Prompt(request, ids, budget(len(ids), sampling, self.context_length))
                for request, ids in zip(window, encoded, strict=True)
            ]
            yield from (empty(p.request, len(p.ids)) for p in prompts if p.room == 0)
            # Longest first, so that a batch that does not fit in memory fails at the start.
            ready = sorted((p for p in prompts if p.room > 0), key=lambda p: -len(p.ids))
            for start in range(0, len(ready), self.batch_size):
                yield from self._write(ready[start : start + self.batch_size], sampling)

    def close(self) -> None:
        """Free the model's memory."""
        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, temperature: float
    ) -> list[tuple[list[int], torch.Tensor]]:
        """For each prompt of token ids, one batch of all: the sampled ids, and their `(C,)` float32 log-probs in nats at
        `temperature`, before any truncation. Ends at an end-of-turn token, which is included, or after `max_tokens`; there
        are no stop strings.
        """
        batch = [
            _Prompt(Request("", "", seed), [*ids], budget(len(ids), sampling, self.context_length))
            for ids, seed in zip(prompts, seeds, strict=True)
        ]
        return self._tokens(batch, sampling, temperature)

    @torch.inference_mode()
    def _write(self, batch: Sequence[_Prompt], sampling: Sampling) -> list[Completion]:
        written = zip(batch, self._tokens(batch, sampling, 1.0), strict=True)
        return [self._completion(prompt, ids, values, sampling) for prompt, (ids, values) in written]

    def _tokens(
        self, batch: Sequence[_Prompt], sampling: Sampling, temperature: float
    ) -> list[tuple[list[int], torch.Tensor]]:
        device, steps = self.model.device, max(p.room for p in batch)
        ends = torch.tensor(sorted(self._ends(sampling)), device=device)
        tokens = torch.zeros(len(batch), steps, dtype=torch.long, device=device)
        logprobs = torch.zeros(len(batch), steps, device=device)
        lengths = torch.zeros(len(batch), dtype=torch.long, device=device)
        with _grouped_attention(self.model):
            rows = _Rows(self.model, batch)
            for step in range(steps):
                chosen, nats = sample(rows.logits, sampling, rows.seeds, step, temperature)
                tokens[rows.numbers, step], logprobs[rows.numbers, step] = chosen, nats
                lengths[rows.numbers] += rows.live
                rows.live = rows.live & ~torch.isin(chosen, ends) & (step + 1 < rows.room)
                if sampling.stop and (step + 1) % LOOK_EVERY == 0:
                    stopped = self._stopped(tokens[rows.numbers, : step + 1], rows.live, sampling.stop)
                    rows.live = rows.live & ~stopped
                # On a GPU, each check synchronizes with all queued work.
                look = device.type == "cpu" or (step + 1) % LOOK_EVERY == 0
                if step + 1 == steps or (look and not rows.any_left()):
                    break
                rows.forward(tokens[rows.numbers, step])
        rows_of = zip(tokens.tolist(), logprobs.cpu(), lengths.tolist(), strict=True)
        return [(ids[:count], values[:count]) for ids, values, count in rows_of]

    def _ends(self, sampling: Sampling) -> set[int]:
        """Tokens that finish a row: end-of-turn tokens, and stop strings of one token."""
        singles = (self.tokenizer.encode(tag, add_special_tokens=False) for tag in sampling.stop)
        return self.end_ids | {ids[0] for ids in singles if len(ids) == 1}

    def _stopped(self, tokens: torch.Tensor, live: torch.Tensor, stop: Sequence[str]) -> torch.Tensor:
        """`(B,)`: which live rows wrote a stop string since the last search."""
        # A token has at least one byte of text, so a tag spans at most as many tokens as it has bytes.
        tail = tokens[:, -(LOOK_EVERY + max(len(tag.encode()) for tag in stop)) :].tolist()
        texts = (decode(self.tokenizer, ids) if on else "" for ids, on in zip(tail, live.tolist(), strict=True))
        return torch.tensor([any(tag in text for tag in stop) for text in texts], device=tokens.device)

    def _completion(self, prompt: _Prompt, ids: list[int], logprobs: torch.Tensor, sampling: Sampling) -> Completion:
        kept, text, stopped = cut(self.tokenizer, ids, sampling.stop, self.end_ids)
        total, reason = float(logprobs[: len(kept)].double().sum()), "stop" if stopped else "length"
        seed = prompt.request.seed if sampling.temperature > 0 else None
        return Completion(prompt.request.key, text, reason, len(prompt.ids), len(kept), tuple(kept), total, seed)


class _Rows:
    """The unfinished rows of a batch and the logits `(B, V)` of their next tokens.

    Prompts are left-padded. `numbers` `(B,)` are the rows' places in the batch; `live` marks those not finished. A prompt
    shared by several requests is read once.
    """

    logits: torch.Tensor

    def __init__(self, model: PreTrainedModel, batch: Sequence[_Prompt]) -> None:
        self.model, self.cache, device = model, _cache(model), model.device
        self.selectable = all(hasattr(layer, "batch_select_indices") for layer in self.cache.layers)
        prompts = [tuple(p.ids) for p in batch]
        distinct = list(dict.fromkeys(prompts)) if self.selectable else prompts
        width = max(map(len, distinct))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in distinct], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in distinct], device=device)
        self.mask, self.positions = mask, (mask.cumsum(1) - 1).clamp(min=0)
        self.seeds = torch.tensor([p.request.seed for p in batch], device=device)
        self.room = torch.tensor([p.room for p in batch], device=device)
        self.numbers = torch.arange(len(batch), device=device)
        self.live = torch.ones(len(batch), dtype=torch.bool, device=device)
        self._read(ids)
        if len(distinct) < len(prompts):
            place = {prompt: number for number, prompt in enumerate(distinct)}
            owners = torch.tensor([place[prompt] for prompt in prompts], device=device)
            self.cache.batch_select_indices(owners)
            self.logits, self.mask, self.positions = self.logits[owners], self.mask[owners], self.positions[owners]

    def forward(self, chosen: torch.Tensor) -> None:
        """Append the tokens `(B,)` to the rows."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(chosen), 1)], 1)
        self.positions = self.positions[:, -1:] + 1
        self._read(chosen[:, None])

    def any_left(self) -> bool:
        """Whether any row is unfinished. Drops the finished rows once they are half of the batch."""
        left = int(self.live.sum())
        if self.selectable and 0 < 2 * left <= len(self.live):
            keep = self.live.nonzero()[:, 0]
            self.cache.batch_select_indices(keep)
            self.numbers, self.mask, self.positions = self.numbers[keep], self.mask[keep], self.positions[keep]
            self.seeds, self.room, self.live = self.seeds[keep], self.room[keep], self.live[keep]
        return left > 0

    def _read(self, ids: torch.Tensor) -> None:
        output = self.model(
            input_ids=ids, attention_mask=self.mask, position_ids=self.positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        self.logits = output.logits[:, -1].float()


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that end a turn: those of the model's generation configuration and of the tokenizer."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = configured if isinstance(configured, list) else [configured]
    return {token for token in [*ids, tokenizer.eos_token_id] if token is not None}


# -- cache -----------------------------------------------------------------------------------------------------------


class _GrowingLayer(DynamicLayer):
    """A DynamicLayer with spare room; transformers' own layer copies all keys and values at every token."""

    keys: torch.Tensor
    values: torch.Tensor
    _room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
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


# -- attention ---------------------------------------------------------------------------------------------------------

GROUPED = "rlt_grouped_sdpa"


def _grouped(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """`(B, 1, H, D)` attention of one new token per row, without copying keys and values for every query head.

    With a mask, transformers repeats the cached keys and values `(B, K, T, D)` for the H / K queries that share them, at
    every token. Here, those queries take the place of a sequence's positions: `(B, K, H / K, D)`.
    """
    batch, heads, length, size = query.shape
    kv = key.shape[1]
    if length != 1 or kv == heads or attention_mask is None or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)  # type: ignore[arg-type]
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, kv, heads // kv, size), key, value, attn_mask=attention_mask, scale=scaling
    )
    return mixed.reshape(batch, 1, heads, value.shape[-1]), None


AttentionInterface.register(GROUPED, _grouped)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextlib.contextmanager
def _grouped_attention(model: PreTrainedModel) -> Iterator[None]:
    """A context in which a text model with transformers' `sdpa` attention uses `_grouped`."""
    config = model.config
    if config._attn_implementation != "sdpa" or config.sub_configs:
        yield
        return
    config._attn_implementation = GROUPED
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
