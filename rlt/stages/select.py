"""Select the explanations that a student learns from, with a reason for each dropped one.

If a problem has several explanations, the method keeps one that fits the student's context and ranks by reward
(SakanaAI/RLT README, on students of 32B). Texts stay as the teacher wrote them: one that does not fit is dropped whole.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from tqdm import tqdm

from rlt.config import DataConfig, SelectConfig, SourceConfig
from rlt.data.code_rows import code_row
from rlt.data.explanations import explanation_of, schema, write_card
from rlt.data.problems import labelled, rows_of
from rlt.data.rows import read_rows, write_rows
from rlt.errors import DataError, ModelError
from rlt.models.loading import context_length, load_config, load_tokenizer
from rlt.outputs import Result, StageFolder, begin, complete_before
from rlt.results.benchmarks import ResponseRow
from rlt.terminal import quiet
from rlt.text.formats import Format, check_template, load_format, render_student
from rlt.text.tokens import tokenize
from rlt.types import Explanation, JsonRow, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_CHOSEN = "another explanation of its problem was chosen"


def run(config: SelectConfig) -> Result:
    """A folder with `selected.jsonl` (or `band-1.jsonl`, lowest, to `band-N.jsonl`), `report/dropped.jsonl` and a card.

    Rows have the columns of `rlt collect`, and with `scores` the score. Raises DataError if scores and data do not belong
    together, or if nothing is left.
    """
    done = complete_before("select", config)
    if done is not None:
        return done
    fmt = load_format(config.format)
    fits = Fits(fmt, _students(config, fmt))
    rows = tqdm(_read(config, fmt), desc="select", unit=" rows", leave=False, disable=quiet())
    candidates = [_candidate(config, fits, *row) for row in rows]
    places, metrics = choose(config, candidates)
    dropped = [row for row, place in zip(candidates, places, strict=True) if place is None]
    reasons = Counter((row.reason or NOT_CHOSEN).partition(":")[0] for row in dropped)
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    metrics = {
        "selected": len(candidates) - len(dropped),
        "dropped": dict(reasons.most_common()),
        **_coverage(candidates, places),
        **metrics,
    }
    if len(dropped) == len(candidates):
        raise DataError(f"{config.data.path}: none of {len(candidates)} explanations can be selected: {listed}.")
    folder = begin("select", config)
    _write(config, fmt, folder, places, dropped)
    _card(config, folder, metrics)
    print(
        f"select: {len(candidates) - len(dropped)} of {len(candidates)} explanations kept"
        + (f" (dropped: {listed})" if listed else "")
    )
    return folder.finish(metrics)


# -- what could be chosen ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of the data: `reason` says why it cannot be chosen; `score` is its value of `by`."""

    id: str
    problem: str
    reason: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Fits:
    """Decides whether an explanation can be an example for a student.

    `students`: tokenizer and context in tokens of each. The student's whole text (system prompt, question, thought,
    solution, end of turn) is rendered in its format, and its tokens are counted exactly.
    """

    fmt: Format
    students: Sequence[tuple[PreTrainedTokenizerBase, int | None]] = ()

    def reason(self, explanation: Explanation, *, closed: bool = True) -> str | None:
        """Why it is dropped, or None. `closed`: it must close its tag and contain no other."""
        if closed and not explanation.closed:
            return "it never closes its tag"
        if closed and self.fmt.tag_inside(explanation.text) is not None:
            return "it contains a tag of the format"
        for tokenizer, context in self.students:
            try:
                length = self.tokens(tokenizer, explanation)
            except ModelError as error:
                return f"the chat template rewrites it: {error}"
            if context is not None and length > context:
                return "the student's text is longer than its context"
        return None

    def tokens(self, tokenizer: PreTrainedTokenizerBase, explanation: Explanation) -> int:
        """Tokens of the student's text."""
        text = self.fmt.as_written(explanation.text.removesuffix(self.fmt.padding))  # as distillation has it
        return len(tokenize(tokenizer, [render_student(self.fmt, tokenizer, explanation.problem, text)])[0].ids)


def _students(config: SelectConfig, fmt: Format) -> list[tuple[PreTrainedTokenizerBase, int | None]]:
    students = []
    for path in config.student:
        context = config.student_context or context_length(load_config(path, config.trust_remote_code))
        tokenizer = load_tokenizer(path, config.trust_remote_code)
        check_template(fmt, tokenizer)
        students.append((tokenizer, context))
    return students


def _read(config: SelectConfig, fmt: Format) -> Iterator[tuple[str, Explanation | DataError, JsonRow | None]]:
    """`(default id, explanation, its row of scores)` of each row between `skip` and `limit`.

    The error of an invalid row is raised unless `on_invalid` is `skip`; then it takes the row's place. Scores belong to the
    whole file: raises DataError if row numbers or ids differ.
    """
    for source in config.data.sources:
        on_invalid = "skip" if "skip" in (config.data.on_invalid, source.on_invalid) else "error"
        yield from _read_source(config, source, on_invalid, fmt)


def _read_source(
    config: SelectConfig, data: DataConfig, on_invalid: str, fmt: Format
) -> Iterator[tuple[str, Explanation | DataError, JsonRow | None]]:
    stop = None if data.limit is None else data.skip + data.limit
    scores = None if config.scores is None else iter([row for _, row in read_rows(config.scores)])
    number = -1
    for number, (where, row) in enumerate(rows_of(data)):
        score = None if scores is None else next(scores, {})
        if score == {}:
            raise _other_rows(config)
        if number < data.skip or (stop is not None and number >= stop):
            continue
        try:
            row = code_row(row, where) if data.task == "code" else row
            read = (
                _right_response(row, where, fmt)
                if config.keep == "correct"
                else explanation_of(row, where, str(number), fmt, data.columns)
            )
            explanation: Explanation | DataError = _labelled(read, data)
        except NotRight as reason:
            explanation = reason
        except DataError as error:
            if on_invalid == "error":
                raise DataError(f"{error} Or set `on_invalid: skip`.") from error
            explanation = error
        if score is not None and isinstance(explanation, Explanation):
            _check_score(config, explanation, number, score)
        yield str(number), explanation, score
    if number < 0:
        raise DataError(f"{data.path}: has no rows.")
    if scores is not None and next(scores, None) is not None:
        raise _other_rows(config)


class NotRight(DataError):
    """A response that cannot be an example; the message is the reason. `key`, `question_id`: from its row."""

    def __init__(self, reason: str, row: JsonRow) -> None:
        super().__init__(reason)
        self.key, self.question_id = str(row["key"]), str(row["question_id"])


def _right_response(row: JsonRow, where: str, fmt: Format) -> Explanation:
    """Thought and solution of a correct response in the output of `rlt evaluate`; raises NotRight for any other."""
    for column in ("response", "correct", "question", "question_id", "sample", "key"):
        if row.get(column) is None:
            raise DataError(
                f"{where}: column `{column}` is missing; `keep: correct` reads responses.jsonl of `rlt evaluate`."
            )
    right = cast(ResponseRow, row)
    if not right["correct"]:
        raise NotRight("its answer is wrong", row)
    thought, solution = fmt.parse_response(right["response"])
    if thought is None or not solution:
        raise NotRight("it has no thought or no solution in the format's tags", row)
    problem = Problem(
        str(right["question_id"]), right["question"], solution, answer=right.get("answer"), task=right.get("task")
    )
    return Explanation(problem, thought.removeprefix(fmt.padding), id=right["key"], sample=right["sample"])


def _labelled(explanation: Explanation, source: DataConfig) -> Explanation:
    """The explanation with the task and name of its source."""
    name = f"{source.label}/{explanation.id}" if isinstance(source, SourceConfig) else explanation.id
    return replace(explanation, id=name, problem=labelled(explanation.problem, source))


def _other_rows(config: SelectConfig) -> DataError:
    counts = [sum(1 for _ in rows) for rows in (read_rows(config.scores or config.output), _all(config))]
    return DataError(
        f"{config.scores}: has {counts[0]} rows, and {config.data.path} has {counts[1]}. Score the same file again."
    )


def _all(config: SelectConfig) -> Iterator[object]:
    for source in config.data.sources:
        yield from rows_of(source)


def _check_score(config: SelectConfig, explanation: Explanation, number: int, score: JsonRow) -> None:
    where = f"{config.scores} row {number + 1}"
    if score.get("id") is not None and str(score["id"]) != explanation.id:
        raise DataError(
            f"{where}: `id` is {score['id']!r}, the data's is {explanation.id!r}. Score the same file again."
        )
    if config.by not in score:
        raise DataError(f"{where}: column `{config.by}` is missing.")
    if not isinstance(score[config.by], int | float | None):
        raise DataError(f"{where}: column `{config.by}` must hold numbers.")


def _candidate(
    config: SelectConfig, fits: Fits, default_id: str, explanation: Explanation | DataError, score: JsonRow | None
) -> Candidate:
    if isinstance(explanation, NotRight):
        return Candidate(explanation.key, explanation.question_id, str(explanation))
    if isinstance(explanation, DataError):
        return Candidate(default_id, default_id, f"it is invalid: {explanation}")
    reason = fits.reason(explanation, closed=config.keep in ("closed", "random", "best", "correct"))
    value = None if score is None else score[config.by]
    if reason is None and score is not None and value is None:
        reason = "it has no score" + (f": {score['error']}" if score.get("error") else "")
    return Candidate(explanation.id, explanation.problem.id, reason, value if isinstance(value, int | float) else None)


# -- the choice --------------------------------------------------------------------------------------------------------


def choose(config: SelectConfig, candidates: Sequence[Candidate]) -> tuple[list[int | None], JsonRow]:
    """For each candidate the number of its file, or None; and metrics of the choice."""
    if config.keep == "bands":
        return _bands(config, candidates)
    chosen = {i for i, candidate in enumerate(candidates) if candidate.reason is None}
    if config.keep in ("random", "best", "correct"):
        chosen = set(_one_each(config, candidates))
    return [0 if i in chosen else None for i in range(len(candidates))], {}


def _one_each(config: SelectConfig, candidates: Sequence[Candidate]) -> Iterator[int]:
    """Index of one candidate per problem: drawn by seed and problem, with the highest score, or the first."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, candidate in enumerate(candidates):
        if candidate.reason is None:
            groups[candidate.problem].append(i)
    for problem, group in groups.items():
        if config.keep == "random":
            yield random.Random(f"select {config.seed} {problem}").choice(group)
        elif config.keep == "correct":
            yield group[0]
        else:
            yield max(group, key=lambda i: candidates[i].score or 0.0)


def _bands(config: SelectConfig, candidates: Sequence[Candidate]) -> tuple[list[int | None], JsonRow]:
    """Bands of equal size, up to one row; of equal scores the earlier row ranks lower."""
    ranked = sorted((c.score, i) for i, c in enumerate(candidates) if c.reason is None and c.score is not None)
    if len(ranked) < config.bands:
        raise DataError(f"{config.scores}: {len(ranked)} scored rows are too few for {config.bands} bands.")
    places: list[int | None] = [None] * len(candidates)
    metrics: JsonRow = {}
    for band in range(config.bands):
        part = ranked[band * len(ranked) // config.bands : (band + 1) * len(ranked) // config.bands]
        for _, i in part:
            places[i] = band
        metrics[f"band_{band + 1}_mean"] = sum(score for score, _ in part) / len(part)
    return places, metrics


# -- what is written ---------------------------------------------------------------------------------------------------


def _files(config: SelectConfig) -> list[str]:
    names = [f"band-{band + 1}" for band in range(config.bands)] if config.keep == "bands" else ["selected"]
    return [f"{name}.{config.file_format}" for name in names]


def _write(
    config: SelectConfig, fmt: Format, folder: StageFolder, places: Sequence[int | None], dropped: Sequence[Candidate]
) -> None:
    more = _more(config)
    columns = schema(more) if config.file_format == "parquet" else None
    for file, name in enumerate(_files(config)):

        def rows(file: int = file) -> Iterator[JsonRow]:
            for place, (_, explanation, score) in zip(places, _read(config, fmt), strict=True):
                if place == file and isinstance(explanation, Explanation):
                    row = explanation.to_row(fmt.padding, fmt.tags.explanation.close)
                    yield row | {column: score[column] for column in more if score is not None}

        write_rows(folder.path / name, rows(), columns)
    reasons = ({"id": row.id, "reason": row.reason or NOT_CHOSEN} for row in dropped)
    write_rows(folder.path / "report" / "dropped.jsonl", reasons)


def _more(config: SelectConfig) -> dict[str, str]:
    """The column of scores that is kept, with its type."""
    return {} if config.scores is None else {config.by: "float64"}


def _coverage(candidates: Sequence[Candidate], places: Sequence[int | None]) -> JsonRow:
    problems = {row.problem for row in candidates}
    kept = {row.problem for row, place in zip(candidates, places, strict=True) if place is not None}
    return {"problems": len(problems), "problems_without": len(problems - kept)}


def _card(config: SelectConfig, folder: StageFolder, metrics: JsonRow) -> None:
    numbers = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in metrics.items())
    by = f" by `{config.by}` of `{config.scores}`" if config.scores else ""
    write_card(
        folder.path, {name.rpartition(".")[0]: name for name in _files(config)},
        f"# Explanations for a student\n\nFrom `{config.data.path}`, selected by `rlt select` (`keep: {config.keep}`{by}), "
        f"format `{config.format}` (Reinforcement-Learned Teachers, arXiv 2506.08388).\n\n{numbers}\n", _more(config),
    )  # fmt: skip
