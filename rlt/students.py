"""Who scores: a model in this process, or a student served by vLLM. Both give the log-probs of chosen tokens."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rlt import logprobs, models
from rlt.config import ModelOptions, RewardOptions, StudentOptions
from rlt.errors import ConfigError, ServerError
from rlt.formats import Format, check_template
from rlt.logprobs import Head, Progress, Row
from rlt.server import Server

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlt.generation import Engine


class Scorer(Protocol):
    """Anything that knows how likely a text's tokens are."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    context: int | None
    """Tokens that a text may have, where known."""

    def check(self, options: RewardOptions) -> None:
        """Raise ConfigError for a choice this scorer cannot make."""

    def logprobs(self, rows: Sequence[Row], temperature: float, progress: Progress | None = None) -> list[torch.Tensor]:
        """For each row `(n_kept,)` float32 log-probs, in nats, of its kept tokens; NaN where the model gave NaN."""

    def engine(self) -> Engine:
        """What continues prompts with this model, for the accuracy reward."""


class LocalModel:
    """A causal language model in this process: a student, or the teacher.

    `placement`: `same` (where the model is); `offload`: on the CPU, moved to the GPU while it is used; `sharded`: over
    all ranks, which then must score together, each with any number of rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        context: int | None = None,
        batch_tokens: int | None = None,
        packing: bool = False,
        placement: str = "same",
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.name = name or model.name_or_path or type(model).__name__
        self.context = context if context is not None else models.context_length(logprobs.causal_lm(model).config)
        self.vocabulary: int = logprobs.causal_lm(model).get_input_embeddings().num_embeddings
        self.batch_tokens, self.packing, self.placement = batch_tokens, packing, placement

    @classmethod
    def load(cls, path: str, fmt: Format, model: ModelOptions, options: StudentOptions) -> LocalModel:
        """The model of a folder or hub name, after its tokenizer and chat template were found to serve `fmt`."""
        return cls.from_tokenizer(path, checked_tokenizer(path, fmt, model), model, options)

    @classmethod
    def from_tokenizer(
        cls, path: str, tokenizer: PreTrainedTokenizerBase, model: ModelOptions, options: StudentOptions
    ) -> LocalModel:
        """The model of a folder or hub name, whose tokenizer is loaded already."""
        place = options.student_placement
        device = "cpu" if place in ("offload", "sharded") else None if place == "same" else place
        dtype: str = model.dtype
        if device == "cpu" and dtype == "auto" and models.default_device().type != "cpu":
            # `auto` is about where the model computes, not where its weights rest.
            dtype = str(models.load_config(path, model.trust_remote_code).dtype or torch.float32).removeprefix("torch.")
        weights = models.load_model(path, dtype, model.trust_remote_code, device)
        if place == "sharded":
            models.shard(weights)
        return cls(
            weights, tokenizer, name=path, batch_tokens=options.batch_tokens, packing=options.packing,
            placement=place if place in ("offload", "sharded") else "same",
        )  # fmt: skip

    def check(self, options: RewardOptions) -> None:
        """Raises ConfigError for `exact` with a sharded model: ranks with different lengths would wait for each other."""
        if self.placement == "sharded" and options.resolved().estimator == "exact":
            raise ConfigError(f"{self.name}: the estimator `exact` needs a student that is whole; use `k1` or `k3`.")

    def logprobs(self, rows: Sequence[Row], temperature: float, progress: Progress | None = None) -> list[torch.Tensor]:
        """For each row `(n_kept,)` float32 log-probs of its kept tokens, on the CPU."""
        with self.in_place():
            return logprobs.token_logprobs(
                self.model, rows, temperature=temperature, batch_tokens=self.batch_tokens, packing=self.packing,
                progress=progress,
            )  # fmt: skip

    def hidden(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """For each row the `(n_kept, H)` hidden states that predict its kept tokens."""
        with self.in_place():
            return logprobs.hidden_states(self.model, rows, batch_tokens=self.batch_tokens, packing=self.packing)

    def engine(self) -> Engine:
        """Continues prompts with this model, in this process."""
        from rlt.engines.local import LocalEngine

        return LocalEngine.of(self.model, self.tokenizer)

    def head(self) -> Head:
        """The whole output layer. Where weights are sharded, every rank must call this together."""
        return logprobs.output_head(self.model)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While open, an offloaded model is on the GPU; nested uses move it once."""
        home = next(self.model.parameters()).device
        device = models.default_device()
        if self.placement != "offload" or home == device:
            yield
            return
        self.model.to(device)  # type: ignore[arg-type]  # transformers 5 annotates its own class here
        try:
            yield
        finally:
            self.model.to(home)  # type: ignore[arg-type]
            torch.cuda.empty_cache()


class ServedStudent:
    """A student behind vLLM's OpenAI-compatible server: token ids in, `prompt_logprobs` out.

    Its tokenizer is loaded from the path or hub name that the server reports for its model, or from what follows `#` in
    the address (`http://host:8000/v1#Qwen/Qwen2.5-7B-Instruct`). The server gives the log-probs of its own temperature
    of 1 and no hidden states, so other temperatures and the estimator `exact` are refused.
    """

    def __init__(
        self, server: Server, tokenizer: PreTrainedTokenizerBase, model: str, *, context: int | None = None
    ) -> None:
        self.server, self.tokenizer, self.model, self.context = server, tokenizer, model, context
        self.name = server.url

    @classmethod
    def connect(cls, address: str, fmt: Format, options: ModelOptions) -> ServedStudent:
        """The first model of the server at `address`; raises ServerError where there is none.

        The key of a server that wants one comes from the environment variable OPENAI_API_KEY.
        """
        url, _, path = address.partition("#")
        server = Server(url, "OPENAI_API_KEY" if os.environ.get("OPENAI_API_KEY") else None)
        served = server.request("GET", "models").get("data")
        if not served:
            raise ServerError(f"{url}: the server has no model.")
        model = served[0]["id"]
        tokenizer = checked_tokenizer(path or served[0].get("root") or model, fmt, options)
        return cls(server, tokenizer, model, context=served[0].get("max_model_len"))

    def check(self, options: RewardOptions) -> None:
        """Raise ConfigError for a temperature other than 1 and for `exact`, with the reason."""
        if options.score_temperature != 1.0:
            raise ConfigError(
                f"{self.name}: `score_temperature` is {options.score_temperature}, but a server gives log-probs at "
                "temperature 1 only, and other temperatures do not follow from those. Set `score_temperature: 1`, or "
                "load the student from a folder."
            )
        if options.estimator == "exact":
            raise ConfigError(
                f"{self.name}: the estimator `exact` needs whole next-token distributions, which no server "
                "gives. Use `k1` or `k3`, or load the student from a folder."
            )

    def logprobs(self, rows: Sequence[Row], temperature: float, progress: Progress | None = None) -> list[torch.Tensor]:
        """For each row `(n_kept,)` float32 log-probs of its kept tokens; many requests are under way at once."""
        asked = []
        for row in rows:
            # One token must be generated. vLLM leaves its prefix cache aside where prompt log-probs are asked for.
            body = {"model": self.model, "prompt": list(row.ids[: row.read + 1]), "max_tokens": 1, "prompt_logprobs": 0}
            asked.append(self.server.submit("POST", "completions", body))
        results = []
        for row, future in zip(rows, asked, strict=True):
            results.append(self._kept(row, future.result()))
            if progress is not None:
                progress(1, row.read)
        return results

    def _kept(self, row: Row, answer: dict[str, Any]) -> torch.Tensor:
        given = (answer.get("choices") or [{}])[0].get("prompt_logprobs")
        if given is None or len(given) != row.read + 1:
            raise ServerError(f"{self.name}: no `prompt_logprobs` in its answer; the server of a student must be vLLM.")
        values = []
        for position in (position for span in row.keep for position in span):
            entry = given[position].get(str(row.ids[position]))
            if entry is None:
                raise ServerError(f"{self.name}: it gives log-probs of other tokens than those that were sent.")
            values.append(float("nan") if entry["logprob"] is None else entry["logprob"])
        return torch.tensor(values, dtype=torch.float32)

    def engine(self) -> Engine:
        """Continues prompts with the served model."""
        from rlt.config import EngineOptions
        from rlt.generation import build_engine

        key = "OPENAI_API_KEY" if os.environ.get("OPENAI_API_KEY") else None
        options = EngineOptions(engine="openai", url=self.name, served_model=self.model, api_key_env=key)
        return build_engine(options, self.tokenizer.name_or_path)

    def close(self) -> None:
        """Close the connections."""
        self.server.close()


def is_url(student: str) -> bool:
    """Whether a student is a server's address."""
    return student.startswith(("http://", "https://"))


def checked_tokenizer(path: str, fmt: Format, options: ModelOptions) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, found to have a chat template that keeps every part of `fmt`; raises ModelError."""
    models.load_config(path, options.trust_remote_code)
    tokenizer = models.load_tokenizer(path, options.trust_remote_code)
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
    """Each student's server or tokenizer, once all that can be refused without weights was not.

    `teacher` is the teacher's tokenizer, where there is a teacher. Raises ConfigError, ModelError or ServerError.
    """
    if not options.student:
        raise ConfigError("`student`: name at least one: a model folder, a hub name, or a server's address.")
    repeated = [path for path in options.student if options.student.count(path) > 1]
    if repeated:
        raise ConfigError(f"`student`: {repeated[0]} is named twice.")
    found: Opened = {
        path: ServedStudent.connect(path, fmt, model) if is_url(path) else checked_tokenizer(path, fmt, model)
        for path in options.student
    }
    for path, student in found.items():
        if isinstance(student, ServedStudent):
            student.check(reward.resolved())
        elif teacher is not None:
            check_estimator(path, student, teacher, reward.resolved())
    return found


def load_students(opened: Opened, model: ModelOptions, options: StudentOptions) -> list[Scorer]:
    """The students, with the weights of those that are not served."""
    return [
        student if isinstance(student, ServedStudent) else LocalModel.from_tokenizer(path, student, model, options)
        for path, student in opened.items()
    ]


def check_estimator(
    name: str, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, options: RewardOptions
) -> None:
    """Raise ConfigError for `exact` between different tokenizers."""
    if options.estimator == "exact" and not same_tokens(student, teacher):
        raise ConfigError(
            f"{name}: the estimator `exact` compares whole next-token distributions, and this student's tokenizer is "
            "not the teacher's. Use `k1` or `k3`."
        )


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether a token id means the same text to both tokenizers."""
    return one is other or one.get_vocab() == other.get_vocab()
