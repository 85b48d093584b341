"""The numbers of a run: students by arm, teacher, reward bands, scored variants."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import cast

from rlt.config import CollectConfig, ReportConfig
from rlt.data.rows import read_rows
from rlt.outputs import State, complete_state, versions
from rlt.recipe import Recipe, Step
from rlt.results.benchmarks import ResponseRow, evaluation
from rlt.results.comparison import Verdicts, verdicts
from rlt.results.intervals import MeanEstimate, mean_with_interval, spearman
from rlt.results.rankings import Ranking, rankings_of
from rlt.results.rounds import Round, inspected, rounds_of
from rlt.results.sources import SourceNumbers, mean_over_seeds
from rlt.results.students import Arm, ArmSeed, Solved, decoding
from rlt.results.sweep import Reached, Sweep, reached_of, sweep_of
from rlt.types import JsonMap, JsonRow

PARTS = ("reward", "r_ss", "r_kl", "lift_over_empty", "lift_over_shuffled")
"""Columns of `rlt score` in which variants are compared."""
_OF_TEACHER = (
    "reward", "r_ss", "r_kl", "explanation_kl_mean", "explanation_tokens", "lift_over_empty", "lift_over_shuffled",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TeacherSeed:
    """Means over one seed's held-out problems before and after RL, by measure (`reward`, `leak_rate`, ...)."""

    seed: int
    before: Mapping[str, float]
    after: Mapping[str, float]

    def to_row(self) -> JsonRow:
        """The row in results.json."""
        before = {f"{name}_before": value for name, value in self.before.items()}
        return {"seed": self.seed, **before, **{f"{name}_after": value for name, value in self.after.items()}}


@dataclass(frozen=True, slots=True)
class BandSeed:
    """Solve rates of one seed's students by reward band, lowest band first."""

    seed: int
    solved: tuple[Solved, ...]

    @property
    def rates(self) -> list[float]:
        return [one.rate for one in self.solved]

    @property
    def spearman(self) -> float:
        """Rank correlation of band and solve rate."""
        return spearman(self.rates)

    @property
    def rises(self) -> bool:
        """Whether each band's student solves more than the one below."""
        return all(low < high for low, high in zip(self.rates, self.rates[1:], strict=False))

    def to_row(self) -> JsonRow:
        """The row in results.json."""
        return {"seed": self.seed, self.solved[0].key: self.rates, "spearman": self.spearman}


@dataclass(frozen=True, slots=True)
class Variant:
    """Rewards of one variant of a score step: means over rows, and the difference from the first variant."""

    name: str
    rows: int
    errors: int
    means: Mapping[str, MeanEstimate]
    difference: MeanEstimate | None = None
    """Over rows that both variants scored; None for the first variant, and if rows do not correspond."""

    def to_row(self) -> JsonRow:
        """The row in results.json."""
        means = {name: asdict(value) for name, value in self.means.items()}
        difference = None if self.difference is None else asdict(self.difference)
        return {"rows": self.rows, "errors": self.errors, **means, "reward_minus_first": difference}


@dataclass(frozen=True, slots=True)
class Scores:
    """Variants of one score step of one seed (None: the recipe has a single seed)."""

    step: str
    seed: int | None
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """All numbers of a run. Incomplete steps are named in `incomplete` and left out of the rest."""

    name: str
    description: str
    arms: tuple[Arm, ...]
    teacher: tuple[TeacherSeed, ...]
    teacher_decoding: str | None
    """Decoding of the held-out explanations in `teacher`; None if unknown or not the same for all."""
    bands: tuple[BandSeed, ...]
    scores: tuple[Scores, ...]
    seconds: Mapping[str, float]
    incomplete: tuple[str, ...]
    versions: Mapping[str, str]
    rounds: tuple[Round, ...] = ()
    sweep: Sweep | None = None
    reached: tuple[Reached, ...] = ()
    rankings: tuple[Ranking, ...] = ()
    sources: Mapping[str, SourceNumbers] = field(default_factory=dict)
    """Score step of a mixture -> the numbers of each source, means over seeds."""

    def to_json(self) -> JsonRow:
        """The content of results.json."""
        return {
            "name": self.name,
            "description": self.description,
            "arms": {arm.name: {"description": arm.description, "seeds": [one.to_row() for one in arm.seeds]}
                     for arm in self.arms},
            "teacher": {"seeds": [one.to_row() for one in self.teacher]},
            "quarters": {"seeds": [one.to_row() for one in self.bands]},
            "scores": [{"step": one.step, "seed": one.seed, "variants": {v.name: v.to_row() for v in one.variants}}
                       for one in self.scores],
            **({"rounds": [one.to_row() for one in self.rounds]} if self.rounds else {}),
            **({"rankings": [one.to_row() for one in self.rankings]} if self.rankings else {}),
            **({"sweep": self.sweep.to_json()} if self.sweep else {}),
            **({"reaches": [one.to_row() for one in self.reached]} if self.reached else {}),
            **({"sources": dict(self.sources)} if self.sources else {}),
            "seconds": dict(self.seconds),
            "versions": dict(self.versions),
            "incomplete": list(self.incomplete),
        }  # fmt: skip


def collect_results(config: ReportConfig, recipe: Recipe, only: int | None = None) -> Results:
    """The numbers of the run's complete steps; of one seed with `only`."""
    done = _Done(config, recipe, only)
    arms = tuple(arm for name in done.arm_names() if (arm := done.arm(name)) is not None)
    teacher = tuple(one for seed in done.seeds if (one := done.teacher(seed)) is not None)
    scores = config.scores or not (arms or teacher or any(step.round is not None for step in recipe.steps))
    return Results(
        name=recipe.head.name,
        description=recipe.head.description,
        arms=arms,
        teacher=teacher,
        teacher_decoding=done.teacher_decoding(),
        bands=tuple(row for seed in done.seeds if (row := done.bands(seed)) is not None),
        scores=tuple(done.scores()) if scores else (),
        seconds=done.seconds(),
        incomplete=done.incomplete(),
        versions=versions(),
        rounds=rounds_of(recipe, done.seeds, config.task),
        rankings=rankings_of(config, done.seeds, done.sampled),
        sweep=sweep_of(config, recipe, done.seeds),
        reached=reached_of(config.reaches, recipe, done.seeds) if config.reaches else (),
        sources=done.sources(),
    )


class _Done:
    """The complete steps of a run."""

    def __init__(self, config: ReportConfig, recipe: Recipe, only: int | None) -> None:
        self.config, self.recipe = config, recipe
        self.seeds = [seed for seed in recipe.head.seeds if only is None or seed == only]
        self.steps: dict[tuple[int | None, str], tuple[Step, State]] = {}
        for step in recipe.steps:
            counts = step.stage != "report" and step.seed in self.seeds
            if counts and (state := complete_state(step.config.output)) is not None:
                self.steps[step.seed, step.name] = step, state

    def incomplete(self) -> tuple[str, ...]:
        """Names of steps that are not complete in every seed."""
        ended = self.recipe.not_run()
        steps = [
            step for step in self.recipe.steps
            if step.stage != "report" and step.seed in self.seeds and step.key not in ended
        ]  # fmt: skip
        return tuple(sorted({step.name for step in steps if (step.seed, step.name) not in self.steps}))

    def seconds(self) -> dict[str, float]:
        """Seconds of each step, summed over variants and seeds."""
        total: dict[str, float] = defaultdict(float)
        for (_, name), (_, state) in self.steps.items():
            total[name.split("/")[0]] += state.get("seconds", 0.0)
        return {name: round(seconds, 1) for name, seconds in total.items()}

    def rows(self, seed: int | None, name: str) -> list[JsonRow]:
        """The rows that a step wrote; empty if it is not complete."""
        found = self.steps.get((seed, name))
        return [] if found is None else [row for _, row in read_rows(found[0].config.output)]

    # -- students ------------------------------------------------------------------------------------------------------

    def arm_names(self) -> list[str]:
        """The arms named in the report, else every evaluate step; bands have their own tables."""
        bands = {*self.config.bands, *(band for of in self.config.rankings.values() for band in of)}
        evaluated = [name for (_, name), (step, _) in self.steps.items() if step.stage == "evaluate"]
        return [name for name in self.config.arms or dict.fromkeys(evaluated) if name.split("/")[-1] not in bands]

    def arm(self, name: str) -> Arm | None:
        config, seeds = self.config, []
        for seed in self.seeds:
            sampled = self.solved(seed, f"{config.sampled}/{name}") or self.solved(seed, name)
            greedy = self.solved(seed, f"{config.greedy}/{name}") if config.greedy else None
            if sampled is not None:
                seeds.append(ArmSeed(seed, sampled, greedy))
        return Arm(name, config.arms.get(name), tuple(seeds)) if seeds else None

    def solved(self, seed: int, name: str) -> Solved | None:
        """The solve rate of an evaluate step; None if it is not complete."""
        step, state = self.steps.get((seed, name), (None, State()))
        if step is None or step.stage != "evaluate":
            return None
        metrics = evaluation(state["metrics"])
        of = list(metrics["benchmarks"].values())
        errors = [row["standard_error"] for row in of if row["standard_error"] is not None]
        interval = of[0].get("interval") if len(of) == 1 else None
        return Solved(
            rate=fmean(row["pass@1"] for row in of),
            standard_error=math.sqrt(sum(error**2 for error in errors)) / len(of) if errors else None,
            interval=None if interval is None else (interval[0], interval[1]),
            problems=sum(row["questions"] for row in of),
            samples=max(row["samples"] for row in of),
            temperature=metrics["temperature"],
            top_p=metrics.get("top_p"),
            verdicts=self._verdicts(step, list(metrics["benchmarks"])),
        )

    def _verdicts(self, step: Step, benchmarks: list[str]) -> Verdicts | None:
        path = step.config.output / "responses.jsonl"
        if len(self.recipe.head.seeds) > 1 or len(benchmarks) > 1 or not path.is_file():
            return None
        return verdicts((cast(ResponseRow, row) for _, row in read_rows(path)), benchmarks[0])

    def sampled(self, seed: int, arm: str) -> Solved | None:
        """The solve rate of an arm of the sampled step; None where it is not complete."""
        return self.solved(seed, f"{self.config.sampled}/{arm}")

    def bands(self, seed: int) -> BandSeed | None:
        """Students of the bands; None until all are evaluated."""
        solved = [self.sampled(seed, band) for band in self.config.bands]
        known = tuple(one for one in solved if one is not None)
        return BandSeed(seed, known) if known and len(known) == len(self.config.bands) else None

    # -- teachers ------------------------------------------------------------------------------------------------------

    def teacher(self, seed: int) -> TeacherSeed | None:
        if len(self.config.teachers) != 2:
            return None
        before, after = (self._measures(seed, variant) for variant in self.config.teachers)
        return TeacherSeed(seed, before, after) if before or after else None

    def teacher_decoding(self) -> str | None:
        names = [f"{self.config.explained}/{variant}" for variant in self.config.teachers]
        configs = [step.config for (_, name), (step, _) in self.steps.items() if name in names]
        found = {decoding(c.temperature, c.top_p) for c in configs if isinstance(c, CollectConfig)}
        return found.pop() if len(found) == 1 else None

    def _measures(self, seed: int, variant: str) -> dict[str, float]:
        """Means over held-out explanations: parts of the reward, and shares that the task's `inspect` finds."""
        scores = [row for row in self.rows(seed, f"{self.config.scored}/{variant}") if row["error"] is None]
        measures = {name: fmean(values) for name in _OF_TEACHER if (values := _numbers(scores, name))}
        if highest := _numbers(scores, "explanation_kl_max"):  # without a teacher there is no KL
            measures["kl_max"] = max(highest)
        explained = self.rows(seed, f"{self.config.explained}/{variant}") if scores else []
        if explained:
            measures["unclosed_rate"] = fmean(not row.get("closed", True) for row in explained)
        return measures | inspected(explained, self.config.task)

    # -- scored variants -----------------------------------------------------------------------------------------------

    def scores(self) -> Iterator[Scores]:
        """Score steps of every seed: `scores` or `scored` if the report names them, else all."""
        wanted = self.config.scores or (None if self.config.scored is None else [self.config.scored])
        for seed in self.seeds:
            names: dict[str, list[str]] = defaultdict(list)
            for (of_seed, name), (step, _) in self.steps.items():
                if of_seed == seed and step.stage == "score":
                    names[name.split("/")[0]].append(name)
            for head, variants in names.items():
                if wanted is None or head in wanted:
                    of = seed if len(self.recipe.head.seeds) > 1 else None
                    yield Scores(head, of, tuple(self._variants(seed, head, variants)))

    def sources(self) -> dict[str, SourceNumbers]:
        """The numbers of each source in every score step of a mixture, means over seeds."""
        found: dict[str, list[SourceNumbers]] = defaultdict(list)
        for (_, name), (step, state) in self.steps.items():
            if step.stage == "score" and "by_source" in state["metrics"]:
                found[name].append(cast(SourceNumbers, state["metrics"]["by_source"]))
        return {name: mean_over_seeds(seeds) for name, seeds in found.items()}

    def _variants(self, seed: int, head: str, names: Sequence[str]) -> Iterator[Variant]:
        first: list[JsonRow] = []
        for name in names:
            rows = self.rows(seed, name)
            scored = [row for row in rows if row["error"] is None]
            means = {part: mean_with_interval(values) for part in PARTS if (values := _numbers(scored, part))}
            variant = Variant(name.removeprefix(f"{head}/"), len(rows), len(rows) - len(scored), means)
            yield replace(variant, difference=_reward_difference(first, rows)) if first else variant
            first = first or rows


def _numbers(rows: Sequence[JsonMap], name: str) -> list[float]:
    """The numbers in a column, without rows that have none."""
    return [value for row in rows if isinstance(value := row.get(name), int | float)]


def _reward_difference(first: Sequence[JsonMap], rows: Sequence[JsonMap]) -> MeanEstimate | None:
    """Reward of `rows` minus that of `first`, paired by row; None if they do not have the same rows."""
    if [row.get("id") for row in first] != [row.get("id") for row in rows]:
        return None
    both = [(a, b) for a, b in zip(rows, first, strict=True) if a["error"] is None and b["error"] is None]
    pairs = zip(_numbers([a for a, _ in both], "reward"), _numbers([b for _, b in both], "reward"), strict=True)
    values = [ours - theirs for ours, theirs in pairs]
    return mean_with_interval(values) if values else None
