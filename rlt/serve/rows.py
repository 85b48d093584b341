"""From request rows to explanations to score, with errors that name the row and the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from rlt.data.explanations import explanation_of
from rlt.errors import DataError, ScoringError
from rlt.reward.sampled import sampled_explanations
from rlt.reward.sides import Side
from rlt.text.formats import Format
from rlt.types import Explanation, JsonMap, JsonRow, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RequestRow(BaseModel):
    """One row of `POST /score`.

    The explanation is finished text (`explanation`), raw text as the teacher wrote it (`completion`), or the policy's
    sampled tokens (`token_ids`). `logprobs`: the policy's log-prob of each of `token_ids`, in nats, at `temperature`.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str
    solution: str
    explanation: str | None = None
    completion: str | None = None
    answer: str | int | float | None = None
    system: str | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Reader:
    """Reads request rows for one service: its format, the policy's tokenizer, the temperature of log-probs, limits."""

    fmt: Format
    tokenizer: PreTrainedTokenizerBase
    temperature: float
    estimator: str
    max_characters: int

    def read(self, row: object, number: int) -> tuple[Explanation, Side | None]:
        """The explanation of a row and, with `logprobs`, the policy's side. Raises DataError, naming row (from 0) and field.

        Raises ScoringError for sampled tokens that cannot be read.
        """
        where = f"row {number}"
        try:
            given = RequestRow.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the row"
            raise DataError(f"{where}: `{field}`: {first['msg'].lower()}") from error
        texts = (given.question, given.solution, given.explanation, given.completion, given.system)
        length = sum(len(text) for text in texts if text is not None)
        if length > self.max_characters or len(given.token_ids or ()) > self.max_characters:
            raise DataError(f"{where}: has {length} characters; the limit is {self.max_characters}")
        if given.token_ids is None:
            if given.logprobs is not None:
                raise DataError(f"{where}: `logprobs` without `token_ids`: add the tokens that they belong to")
            values = given.model_dump(include={"question", "solution", "explanation", "completion", "answer", "system"})
            return explanation_of(
                {k: v for k, v in values.items() if v is not None}, where, str(number), self.fmt
            ), None
        return self._sampled(given, where, number)

    def _sampled(self, given: RequestRow, where: str, number: int) -> tuple[Explanation, Side | None]:
        ids = given.token_ids or []
        bad = next((token for token in ids if not 0 <= token < len(self.tokenizer)), None)
        if bad is not None:
            raise DataError(
                f"{where}: `token_ids`: {bad} is not a token of {self.tokenizer.name_or_path}; start the service with "
                "`--policy`"
            )
        known = None
        if given.logprobs is not None:
            self._check_logprobs(given, where)
            known = torch.tensor(given.logprobs, dtype=torch.float32)
        # The texts are checked as for a row without tokens.
        checked = explanation_of(
            {"question": given.question, "solution": given.solution, "completion": "", "system": given.system}, where,
            str(number), self.fmt,
        ).problem  # fmt: skip
        answer = None if given.answer is None else str(given.answer)
        problem = Problem(checked.id, checked.question, checked.solution, answer, system=checked.system)
        ends = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id} - {None}
        (sampled,) = sampled_explanations(self.fmt, self.tokenizer, [problem], [ids], [known], ends)
        if isinstance(sampled, ScoringError):  # sampled by the policy: not the caller's mistake
            raise ScoringError(f"{where}: `token_ids`: {sampled}")
        return sampled

    def _check_logprobs(self, given: RequestRow, where: str) -> None:
        values = given.logprobs or []
        if len(values) != len(given.token_ids or ()):
            raise DataError(
                f"{where}: `logprobs` has {len(values)} values for {len(given.token_ids or ())} `token_ids`"
            )
        if not all(math.isfinite(value) and value <= 1e-3 for value in values):
            raise DataError(f"{where}: `logprobs` must be finite and not above 0 (natural logarithms)")
        if self.estimator == "exact":
            raise DataError(f"{where}: the estimator `exact` needs a teacher in the service; omit `logprobs`")
        if given.temperature is None:
            raise DataError(f"{where}: `temperature` is missing; set it to that of the `logprobs`")
        if given.temperature != self.temperature:
            raise DataError(
                f"{where}: `logprobs` are at temperature {given.temperature:g}, but this service scores at "
                f"{self.temperature:g}, and they cannot be converted. Sample at {self.temperature:g}, start the service with "
                "another `--score-temperature`, or omit `logprobs`"
            )


def label_row(label: object, completion: str, where: str) -> JsonRow:
    """The row of an engine that passes only a `label`: a JSON object with `question` and `solution`.

    Raises DataError for any other label.
    """
    try:
        values = json.loads(label) if isinstance(label, str) else label
    except (json.JSONDecodeError, RecursionError):
        values = None
    if not isinstance(values, Mapping) or not {"question", "solution"} <= values.keys():
        raise DataError(
            f'{where}: the label must be a JSON object such as {{"question": "...", "solution": "..."}} (also `answer`, '
            "`system`), because the reward needs the solution"
        )
    return {**values, "completion": completion}


def after_prompt(query: str, prompt: str, where: str) -> str:
    """The response in a `query` that starts with its `prompt`; raises DataError if it does not."""
    if not query.startswith(prompt):
        raise DataError(f"{where}: `query` does not start with its `prompts`, so the response cannot be found")
    return query[len(prompt) :]


def policy_tokens(output: Sequence[JsonMap]) -> JsonRow:
    """`token_ids` and `logprobs` of a NeMo Gym response, if its `output` has them; otherwise empty."""
    turns = [item for item in output if item.get("generation_token_ids") is not None]
    if len(turns) > 1:
        raise DataError(f"row 0: {len(turns)} turns of the policy; the reward is for one explanation")
    if not turns:
        return {}
    return {"token_ids": turns[0]["generation_token_ids"], "logprobs": turns[0].get("generation_log_probs")}
