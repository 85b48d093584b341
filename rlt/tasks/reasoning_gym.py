"""reasoning-gym: each of its generators is a task, `reasoning_gym/NAME`.

A task generates problems and grades with the generator's own scorer. The `answer` of a problem is JSON, `{"answer",
"metadata"}`, as the scorer needs it. The solution is the answer; if the metadata has a worked solution, it is that one,
followed by the answer in `<answer>` tags.

The first of these found in a response is scored: the last `<answer>...</answer>`, the last `\\boxed{...}`, the whole
solution. A score of 1 is correct; every score is recorded.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import functools
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, fields
from importlib import import_module, util
from types import ModuleType
from typing import TYPE_CHECKING, cast

from rlt.errors import ConfigError, DependencyError
from rlt.tasks import Verdict, experts
from rlt.types import JsonMap, JsonRow, Problem

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

PREFIX = "reasoning_gym/"
BLOCK = 1_000_000
"""Entries per seed. reasoning-gym seeds entry i of a data set with `seed + i`, so its seeds 0 and 1 share all entries but
one; here they share none."""
SIZE = 500  # entries of one data set, reasoning-gym's default: some are generated all at once
REPEATS = 1000  # consecutive known questions after which no others are expected

WORKED = {"gsm_symbolic": "answer_cot"}
"""Generator -> the metadata with a worked solution."""
EXAMPLE = {
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
    "graph_color": "possible_answer",
}
"""Generator with several right answers -> the metadata with one of them."""
UNSUPPORTED = {
    "composite": "it mixes other generators; list them in `data` instead",
    "boxnet": "it has no answer to learn from",
    "rush_hour": "it has no answer to learn from",
}
"""Generator -> why it cannot be a task."""
# Scorers that evaluate a model's text as Python. The first get only literals, the second only mathematical names.
_EVALUATING = (
    "algorithmic.string_insertion", "algorithmic.spiral_matrix", "algorithmic.binary_matrix", "algorithmic.number_sorting",
    "games.n_queens",
)  # fmt: skip
_PARSING = ("simple_integration", "intermediate_integration", "polynomial_multiplication", "puzzle24", "countdown")
_MATHEMATICS = re.compile(
    r"(?:\b(?:[A-Za-z]|sin|cos|tan|asin|acos|atan|sinh|cosh|tanh|exp|log|ln|sqrt|pi|Abs)\b|[\d\s+\-*/^(),]|\d\.|\.\d)+"
)


@dataclass(frozen=True)
class ReasoningGym:
    """The task of one generator."""

    generator: str

    CHEAP = False  # other people's scorers: graded in processes that can be killed

    @property
    def name(self) -> str:
        return PREFIX + self.generator

    def check_options(self, options: JsonRow) -> None:
        """Raise ConfigError for unknown or invalid options of the generator."""
        self._dataset(options, seed=0, size=1)

    def generate(
        self, count: int, seed: int, options: JsonRow | None = None, exclude: Iterable[str] = ()
    ) -> list[Problem]:
        """`count` problems with distinct questions, none of which is in `exclude`; `options` are the generator's own.

        Seeds do not share entries. Raises ConfigError for invalid options, and if there are too few questions.
        """
        seen, problems, repeats = set(exclude), list[Problem](), 0
        for index, entry in enumerate(self._entries(seed, options or {})):
            repeats = repeats + 1 if entry["question"] in seen else 0
            if not repeats:
                seen.add(str(entry["question"]))
                problems.append(self._problem(entry, f"{seed}-{index}"))
            if len(problems) == count or repeats == REPEATS:
                break
        if len(problems) < count:
            raise ConfigError(
                f"{self.name}: there are only {len(problems)} different questions with these options, not {count}."
            )
        return problems

    def grade(self, solution: str, answer: str, question: str) -> Verdict:
        """The scorer's verdict on the answer in `solution`. May take unbounded time; `rlt.tasks.grading` limits it."""
        extracted = extract(solution)
        entry = {"question": question, **json.loads(answer)}
        if self.generator in ("arc_agi", "rearc"):  # their scorers compare tuples, which JSON does not have
            entry["metadata"]["output"] = tuple(map(tuple, entry["metadata"]["output"]))
        if self.generator in _PARSING and not _MATHEMATICS.fullmatch(extracted):
            return Verdict(False, extracted, score=0.0)
        if self.generator == "game_of_life_halting":  # its scorer accepts any text: bool("False") is True
            same = extracted.casefold() == str(entry["answer"]).casefold()
            return Verdict(same, extracted, score=float(same))
        try:
            score = float(self._scorer.score_answer(extracted, entry))
        except Exception as error:  # scorers raise anything for unexpected answers
            return Verdict(False, extracted, f"the scorer of {self.name} raised {type(error).__name__}: {error}")
        return Verdict(score >= 1.0, extracted, score=score)

    def check_answer(self, answer: str, question: str) -> str | None:
        """Why no response can be graded against this answer, or None."""
        try:
            read = json.loads(answer)
        except ValueError:
            read = None
        if not isinstance(read, dict) or not {"answer", "metadata"} <= read.keys():
            return f"must be JSON with `answer` and `metadata`, as written by the stage `problems` for {self.name}"
        return None

    def prepare(self) -> None:
        """Import what grading needs."""
        _ = self._scorer

    # -- the package -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _scorer(self) -> ProceduralDataset:
        return self._dataset({}, seed=0, size=1)

    def _dataset(self, options: JsonRow, seed: int, size: int) -> ProceduralDataset:
        kind, settings = package().DATASETS[self.generator]
        known = {field.name: field for field in fields(settings) if field.name not in ("seed", "size")}
        for name in options:
            if name not in known:
                hint = _near(name, known) or f"; options are {', '.join(known) or 'none'}"
                raise ConfigError(f"{self.name}: unknown option {name!r}{hint}.")
        values = {name: _as_default(value, known[name]) for name, value in options.items()}
        try:
            config = settings(**values, seed=seed, size=size)
            if hasattr(config, "validate"):
                config.validate()
            return kind(config=config)
        except (AssertionError, TypeError, ValueError, KeyError) as error:
            raise ConfigError(f"{self.name}: options {options}: {error or type(error).__name__}.") from error

    def _entries(self, seed: int, options: JsonRow) -> Iterator[JsonRow]:
        for start in range(0, BLOCK - SIZE, SIZE):
            try:
                dataset = self._dataset(options, seed * BLOCK + start, SIZE)
                yield from (dataset[index] for index in range(SIZE))
            except ValueError as error:
                if "2**32" not in str(error):
                    raise
                raise ConfigError(  # a limit of numpy's old generator
                    f"{self.name}: `seed` {seed} is too large; use one below {2**32 // BLOCK}."
                ) from error

    def _problem(self, entry: JsonRow, key: str) -> Problem:
        answer, metadata = entry["answer"], cast(JsonMap, entry["metadata"])
        if self.generator in EXAMPLE:
            example = metadata[EXAMPLE[self.generator]]
            solution = example if isinstance(example, str) else json.dumps(example)
        elif self.generator in WORKED:
            solution = f"{str(metadata[WORKED[self.generator]]).strip()}\n\n<answer>{answer}</answer>"
        else:
            solution = str(answer)
        kept = json.dumps({"answer": answer, "metadata": metadata}, ensure_ascii=False)
        return Problem(key, str(entry["question"]), solution, kept, task=self.name)


class ChainSum(ReasoningGym):
    """The task `reasoning_gym/chain_sum`, with experts that explain sums of one-digit numbers by every running sum."""

    MIXTURES = experts.MIXTURES

    def explain(self, problem: Problem, mixture: str, rng: random.Random) -> str:
        """An explanation by an expert drawn from `mixture`: `+ 3 7 - 9 -2`."""
        first, *rest = json.loads(problem.answer or "")["metadata"]["expression"].split()
        value, steps, slips = int(first), [], []
        for sign, number in zip(rest[::2], rest[1::2], strict=True):
            value += int(number) if sign == "+" else -int(number)
            steps.append(f"{sign} {number} {value}")
            slips.append(f"{sign} {number} {value + rng.choice((-2, -1, 1, 2))}")
        return experts.explanation(self.name, steps, slips, problem.solution, mixture, rng)

    def vocabulary(self) -> list[str]:
        """Every word of questions, explanations and solutions, for sums of at most five one-digit numbers."""
        options: JsonRow = {"min_digits": 1, "max_digits": 1, "min_terms": 2, "max_terms": 5}
        asked = [word for problem in self.generate(20, 0, options) for word in problem.question.split()]
        return [*dict.fromkeys(asked), *map(str, range(-47, 48)), "+", "-", *experts.WORDS]


@functools.cache
def task(name: str) -> ReasoningGym:
    """The task `reasoning_gym/NAME`; raises ConfigError with similar names, DependencyError without the package."""
    generator = name.removeprefix(PREFIX)
    names = package().DATASETS
    if generator not in names:
        near = _near(generator, names, prefix=PREFIX) or f"; it has {len(names)}, such as {PREFIX}knights_knaves"
        raise ConfigError(f"task {name!r}: reasoning-gym has no such generator{near}.")
    if generator in UNSUPPORTED:
        raise ConfigError(f"task {name!r} cannot be used: {UNSUPPORTED[generator]}.")
    return (ChainSum if generator == "chain_sum" else ReasoningGym)(generator)


@functools.cache
def package() -> ModuleType:
    """reasoning-gym's registry, with scorers that evaluate no code; raises DependencyError if it is not installed."""
    if util.find_spec("reasoning_gym") is None:
        raise DependencyError("tasks `reasoning_gym/...` need reasoning-gym: pip install 'rlt[reasoning-gym]'")
    import_module("reasoning_gym")
    for module in _EVALUATING:
        # A module's own name takes precedence over the builtin. For literals, both give the same value.
        import_module(f"reasoning_gym.{module}").__dict__["eval"] = ast.literal_eval
    import_module("reasoning_gym.arithmetic.bitwise_arithmetic").__dict__["eval"] = _bitwise
    return import_module("reasoning_gym.factory")


def _bitwise(expression: str) -> object:
    """The value of an expression of hexadecimal numbers; checked, because metadata may come from anywhere."""
    if not re.fullmatch(r"(?:0x[0-9a-f]+|[\s()+\-*&|^~]|<<|>>)*", expression):
        raise ValueError(f"{expression!r} is not arithmetic of hexadecimal numbers")
    return builtins.eval(expression, {"__builtins__": {}})


def extract(solution: str) -> str:
    """The part of a solution that is scored; the order is in the module's docstring."""
    tagged = re.findall(r"<answer>(.*?)</answer>", solution, re.DOTALL)
    boxed = re.findall(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", solution)
    return str((tagged or boxed or [solution])[-1]).strip()


def _as_default(value: object, field: Field[object]) -> object:
    """A list as a tuple, which YAML does not have, if the generator's default is a tuple; other values unchanged."""
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return tuple(value) if isinstance(value, list) and isinstance(default, tuple) else value


def _near(name: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, list(known), n=2)
    return f"; did you mean {' or '.join(prefix + one for one in near)}?".rstrip("?") if near else ""
