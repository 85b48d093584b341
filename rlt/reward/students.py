"""Scorers of chosen tokens: a model in this process, or a student served by vLLM."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import nn

from rlt.config import ModelOptions, RewardOptions, StudentOptions, is_url
from rlt.engines.client import PROBE, Client, check_tokenizer, served_model
from rlt.engines.openai import part
from rlt.errors import ConfigError, RltError, ScoringError, ServerError
from rlt.models import loading, logprobs
from rlt.models.heads import Head, causal_lm, token_ranks, vocabulary
from rlt.models.logprobs import Progress, Row
from rlt.tasks import load_grader
from rlt.text.formats import Format, check_template
from rlt.types import JsonRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlt.engines.base import Engine


class Scorer(Protocol):
    """Anything that gives log-probs of a text's tokens."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    context: int | None
    """Maximum tokens of a text, if known."""

    def check(self, options: RewardOptions) -> None:
        """Raise ConfigError for options that this scorer does not support."""

    def logprobs(
        self, rows: Sequence[Row], temperature: float, progress: Progress | None = None
    ) -> Sequence[torch.Tensor | RltError]:
        """For each row, `(n_kept,)` float32 log-probs, in nats, of its kept tokens; NaN where the model gave NaN.

        A row that this scorer cannot read has a ScoringError instead. If the server is lost for good, that row and all
        later ones have the ServerError.
        """

    def engine(self) -> Engine:
        """An engine with this model, for the accuracy reward."""


class LocalModel:
    """A causal language model in this process: a student or the teacher.

    `placement`: `same` (where the model is); `offload` (on the CPU, moved to the GPU while in use); `sharded` (over all
    ranks, which must then score together, each with any number of rows).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        context: int | None = None,
        batch_tokens: int | None = None,
        placement: str = "same",
    ) -> None:
        self.model: nn.Module = model
        self.tokenizer = tokenizer
        self.name = name or model.name_or_path or type(model).__name__
        self.context = context if context is not None else loading.context_length(causal_lm(model).config)
        self.vocabulary = vocabulary(causal_lm(model))
        self.batch_tokens, self.placement = batch_tokens, placement

    @classmethod
    def load(cls, path: str, fmt: Format, model: ModelOptions, options: StudentOptions) -> Self:
        """The model of a folder or hub name, after checking its tokenizer and chat template with `fmt`."""
        return cls.from_tokenizer(path, checked_tokenizer(path, fmt, model), model, options)

    @classmethod
    def from_tokenizer(
        cls, path: str, tokenizer: PreTrainedTokenizerBase, model: ModelOptions, options: StudentOptions
    ) -> Self:
        """The model of a folder or hub name, with its loaded tokenizer."""
        place = options.student_placement
        device = "cpu" if place in ("offload", "sharded") else None if place == "same" else place
        dtype: str = model.dtype
        if device == "cpu" and dtype == "auto" and loading.default_device().type != "cpu":
            # `auto` refers to the device where the model computes, not where its weights are stored.
            dtype = str(loading.load_config(path, model.trust_remote_code).dtype or torch.float32).removeprefix(
                "torch."
            )
        weights = loading.load_model(path, dtype, model.trust_remote_code, device)
        if place == "sharded":
            loading.shard(weights)
        return cls(
            weights, tokenizer, name=path, batch_tokens=options.batch_tokens,
            placement=place if place in ("offload", "sharded") else "same",
        )  # fmt: skip

    def check(self, options: RewardOptions) -> None:
        """Raise ConfigError for options that a sharded model does not support."""
        if self.placement == "sharded":
            check_sharded(self.name, options)

    def logprobs(self, rows: Sequence[Row], temperature: float, progress: Progress | None = None) -> list[torch.Tensor]:
        """For each row, `(n_kept,)` float32 log-probs of its kept tokens, on the CPU."""
        with self.in_place():
            return logprobs.token_logprobs(
                self.model, rows, temperature=temperature, batch_tokens=self.batch_tokens, progress=progress,
            )  # fmt: skip

    def hidden(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """For each row, the `(n_kept, H)` hidden states that predict its kept tokens."""
        with self.in_place():
            return logprobs.hidden_states(self.model, rows, batch_tokens=self.batch_tokens)

    @property
    def can_rank(self) -> bool:
        """Whether `ranks` works: the whole output layer is here and is one matrix product."""
        return self.placement != "sharded" and logprobs.has_plain_head(self.model)

    def ranks(self, rows: Sequence[Row]) -> list[list[int]]:
        """For each row, the `(n_kept,)` ranks, from 1, of its kept tokens in the distributions that predict them."""
        with self.in_place():
            head, states = self.head(), logprobs.hidden_states(self.model, rows, batch_tokens=self.batch_tokens)
            targets = [torch.tensor([row.ids[i] for span in row.keep for i in span]) for row in rows]
            found = [token_ranks(head, hidden, wanted) for hidden, wanted in zip(states, targets, strict=True)]
        return [ranks.tolist() for ranks in found]

    def engine(self) -> Engine:
        """An engine with this model, in this process."""
        from rlt.engines.hf import HfEngine

        return HfEngine.of(causal_lm(self.model), self.tokenizer)

    def head(self) -> Head:
        """The whole output layer. If weights are sharded, every rank must call this."""
        return logprobs.output_head(self.model)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which an offloaded model is on the GPU; nested uses move it once."""
        home = next(self.model.parameters()).device
        device = loading.default_device()
        if self.placement != "offload" or home == device:
            yield
            return
        self.model.to(device)
        try:
            yield
        finally:
            self.model.to(home)
            torch.cuda.empty_cache()


class ServedStudent:
    """A student behind vLLM's OpenAI-compatible server: token ids in, `prompt_logprobs` out.

    Its tokenizer is loaded from the path or hub name that the server reports for its model, or from what follows `#` in
    the address (`http://host:8000/v1#Qwen/Qwen2.5-7B-Instruct`). The server gives log-probs at temperature 1 and no hidden
    states, so other temperatures and the estimator `exact` are rejected.
    """

    def __init__(
        self,
        server: Client,
        tokenizer: PreTrainedTokenizerBase,
        model: str,
        options: StudentOptions,
        *,
        name: str | None = None,
        context: int | None = None,
    ) -> None:
        self.server, self.tokenizer, self.model, self.context = server, tokenizer, model, context
        self.name, self.options = name or server.url, options
        self._pool = ThreadPoolExecutor(options.max_in_flight, thread_name_prefix="rlt-student")
        self._engine: Engine | None = None

    @classmethod
    def connect(cls, address: str, fmt: Format, model: ModelOptions, options: StudentOptions) -> ServedStudent:
        """The student at an address, after checking that its server is vLLM and has the same tokenizer.

        Raises ServerError if not, or if it serves several models and `options.served_model` does not name one of them.
        """
        url, _, path = address.partition("#")
        server = Client(
            url, options.student_api_key_env, timeout=options.timeout, retry_for=options.retry_for,
            max_in_flight=options.max_in_flight,
        )  # fmt: skip
        try:
            served = served_model(server, options.served_model)
            if served.owner != "vllm":
                raise ServerError(f"{url}: a student's server must be vLLM; others do not return `prompt_logprobs`.")
            path = path or served.root or served.id
            tokenizer = checked_tokenizer(path, fmt, model)
            check_tokenizer(server, served.id, tokenizer.encode(PROBE, add_special_tokens=False), path)
        except BaseException:
            server.close()
            raise
        return cls(server, tokenizer, served.id, options, name=address, context=served.context_length)

    def check(self, options: RewardOptions) -> None:
        """Raise ConfigError for a temperature other than 1 and for `exact`."""
        if options.score_temperature != 1.0:
            raise ConfigError(
                f"{self.name}: `score_temperature` is {options.score_temperature}, but servers give log-probs only at "
                "temperature 1, from which others cannot be computed. Set `score_temperature: 1`, or load the student "
                "from a folder."
            )
        if options.estimator == "exact":
            raise ConfigError(
                f"{self.name}: the estimator `exact` needs whole next-token distributions, which servers do not "
                "return. Use `k1` or `k3`, or load the student from a folder."
            )

    def logprobs(
        self, rows: Sequence[Row], temperature: float, progress: Progress | None = None
    ) -> Sequence[torch.Tensor | RltError]:
        """See `Scorer.logprobs`; sends many requests at once. An interrupted call closes the connections."""
        results: list[torch.Tensor | RltError] = []
        waiting: deque[Future[torch.Tensor]] = deque()
        rest = iter(rows)
        try:
            for row in rows:
                more = islice(rest, 2 * self.options.max_in_flight - len(waiting))
                waiting.extend(self._pool.submit(self._ask, wanted) for wanted in more)
                try:
                    results.append(waiting.popleft().result())
                except ServerError as error:
                    if not self._answers():
                        results += [error] * (len(rows) - len(results))
                        break
                    results.append(ScoringError(str(error)))
                if progress is not None:
                    progress(1, row.read)
        except BaseException:
            self.close()
            raise
        finally:
            for future in waiting:
                future.cancel()
        return results

    def _answers(self) -> bool:
        """Whether the server still answers: then a failed request is due to its row."""
        return bool(self.server.text(f"{self.server.url}/models"))

    def _ask(self, row: Row) -> torch.Tensor:
        # At least one token must be generated. vLLM bypasses its prefix cache for prompt log-probs.
        ids = list(row.ids[: row.read + 1])
        body: JsonRow = {"model": self.model, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
        answer = self.server.request("POST", "completions", body)
        values = []
        try:
            given = part(answer, "choices", list)[0]["prompt_logprobs"]
            if len(given) != len(ids):
                raise ValueError(f"{len(given)} for {len(ids)} tokens")
            for position in (position for span in row.keep for position in span):
                entry = given[position].get(str(ids[position]))
                if entry is None:
                    raise ServerError(f"{self.name}: it returned log-probs of other tokens than those sent.")
                values.append(float("nan") if entry["logprob"] is None else float(entry["logprob"]))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise ServerError(
                f"{self.name}: its answer has no valid `prompt_logprobs` ({type(error).__name__}: {error}); a student's "
                "server must be vLLM."
            ) from error
        return torch.tensor(values, dtype=torch.float32)

    def engine(self) -> Engine:
        """An engine with the served model, built once and closed with this student."""
        from rlt.config import EngineOptions
        from rlt.engines.build import build_engine

        if self._engine is None:
            own = self.options
            options = EngineOptions(
                engine="openai", url=self.server.url, served_model=self.model, api_key_env=own.student_api_key_env,
                max_in_flight=own.max_in_flight, timeout=own.timeout, retry_for=own.retry_for,
            )  # fmt: skip
            self._engine = build_engine(options, self.tokenizer.name_or_path)
        return self._engine

    def close(self) -> None:
        """Close the connections and cancel requests in flight."""
        self.server.close()
        self._pool.shutdown(cancel_futures=True)
        if self._engine is not None:
            self._engine.close()


def checked_tokenizer(path: str, fmt: Format, options: ModelOptions) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; raises ModelError if its chat template does not keep every part of `fmt`."""
    loading.load_config(path, options.trust_remote_code)
    tokenizer = loading.load_tokenizer(path, options.trust_remote_code)
    check_template(fmt, tokenizer)
    return tokenizer


Opened = dict[str, "ServedStudent | PreTrainedTokenizerBase"]


def open_students(
    fmt: Format,
    model: ModelOptions,
    options: StudentOptions,
    reward: RewardOptions,
    teacher: PreTrainedTokenizerBase | None = None,
) -> Opened:
    """Each student's server or tokenizer, after every check that needs no weights.

    `teacher` is the teacher's tokenizer, if there is a teacher. Raises ConfigError, ModelError or ServerError.
    """
    if not options.student:
        raise ConfigError("`student` is empty: name at least one model folder, hub name or server address.")
    repeated = [path for path in options.student if options.student.count(path) > 1]
    if repeated:
        raise ConfigError(f"`student`: {repeated[0]} is listed twice.")
    options_of_reward = reward.resolved()
    if options_of_reward.accuracy is not None:
        load_grader(options_of_reward.accuracy.task)
    found: Opened = {}
    try:
        for path in options.student:
            if is_url(path):
                found[path] = served = ServedStudent.connect(path, fmt, model, options)
                served.check(options_of_reward)
                continue
            if options.student_placement == "sharded":
                check_sharded(path, options_of_reward)
            found[path] = tokenizer = checked_tokenizer(path, fmt, model)
            if teacher is not None:
                check_estimator(path, tokenizer, teacher, options_of_reward)
    except BaseException:
        close_students(found.values())
        raise
    return found


def close_students(students: Iterable[object]) -> None:
    """Close the connections of served students and cancel requests in flight."""
    for student in students:
        if isinstance(student, ServedStudent):
            student.close()


def load_students(opened: Opened, model: ModelOptions, options: StudentOptions) -> list[Scorer]:
    """The students; loads the weights of those that are not served."""
    return [
        student if isinstance(student, ServedStudent) else LocalModel.from_tokenizer(path, student, model, options)
        for path, student in opened.items()
    ]


def check_sharded(name: str, options: RewardOptions) -> None:
    """Raise ConfigError for options that a student sharded over ranks does not support.

    Ranks have different numbers of tokens to compare or sample and would wait for each other forever.
    """
    if options.resolved().estimator == "exact":
        raise ConfigError(f"{name}: the estimator `exact` does not work with a sharded student. Use `k1` or `k3`.")
    if options.accuracy is not None:
        raise ConfigError(
            f"{name}: the accuracy reward does not work with a sharded student. Set `student_placement` to `same` or "
            "`offload`, or serve the student."
        )


def check_estimator(
    name: str, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, options: RewardOptions
) -> None:
    """Raise ConfigError for `exact` between different tokenizers."""
    if options.estimator == "exact" and not same_tokens(student, teacher):
        raise ConfigError(
            f"{name}: the estimator `exact` compares whole next-token distributions, but this student's tokenizer differs "
            "from the teacher's. Use `k1` or `k3`."
        )


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether every token id means the same in both tokenizers."""
    return one is other or one.get_vocab() == other.get_vocab()
