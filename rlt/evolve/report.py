"""What came of an archive: progress while it grows; then tables, trees of teachers, `results.json` and `archive.svg`."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from rlt.data.rows import write_text
from rlt.evolve.figure import draw
from rlt.evolve.selection import Teacher, best_of, best_so_far
from rlt.evolve.worker import chains_of
from rlt.progress import clock
from rlt.recipe import Recipe
from rlt.results.intervals import mean_with_interval
from rlt.results.tables import paragraph, report_width, text_table
from rlt.terminal import fitted
from rlt.types import AnyRow

FIGURE, RESULTS, TEXT = "archive.svg", "results.json", "report.txt"
Teachers = Mapping[int, Teacher]


class Watch:
    """Tells which teachers have been made since it last looked."""

    def __init__(self, recipe: Recipe) -> None:
        self.chains, self.started = chains_of(recipe), time.monotonic()
        self.total = sum(chain.options.children + 1 for chain in self.chains)
        self.told = {(index, number) for index, chain in enumerate(self.chains) for number in chain.archive.teachers()}
        if self.told:
            print(f"  {len(self.told)} made before", flush=True)

    def missing(self) -> int:
        return sum(len(chain.missing()) for chain in self.chains)

    def tell(self) -> None:
        for index, chain in enumerate(self.chains):
            for number, teacher in chain.archive.teachers().items():
                if (index, number) not in self.told:
                    self.told.add((index, number))
                    at = f"[{clock(time.monotonic() - self.started)} {len(self.told)}/{self.total}]"
                    print(fitted(f"{at} seed {chain.archive.seed} {chain.archive.arm} {line_of(teacher)}"), flush=True)


def write_report(recipe: Recipe) -> str:
    """The report with the trees of the first seed, once the whole one, `results.json` and the figure stand in the run's
    folder.
    """
    chains = chains_of(recipe)
    known: dict[str, dict[int, Teachers]] = {}
    finals: dict[str, dict[int, Mapping[int, float]]] = {}
    for chain in chains:
        known.setdefault(chain.archive.arm, {})[chain.archive.seed] = chain.archive.teachers()
        finals.setdefault(chain.archive.arm, {})[chain.archive.seed] = chain.archive.final
    arms = {arm: _of_arm(known[arm], finals[arm]) for arm in known}
    rows = [
        {"arm": arm, "seed": seed, **_row(teacher), "final": finals[arm][seed].get(number)}
        for arm in known
        for seed, teachers in known[arm].items()
        for number, teacher in teachers.items()
    ]
    write_text(recipe.folder / RESULTS, json.dumps({"arms": arms, "teachers": rows}, indent=1) + "\n")
    draw(recipe.folder / FIGURE, known)
    tables = [_table(arms), _curves(arms), *_differences(arms)]
    trees = {
        (seed, arm): f"{arm}, seed {seed}: score of each teacher's students, and what was mutated\n"
        + "\n".join(tree(teachers))
        for arm in known
        for seed, teachers in known[arm].items()
    }
    write_text(recipe.folder / TEXT, "\n\n".join([*tables, *trees.values()]) + "\n")
    shown = [text for (seed, _), text in trees.items() if seed == recipe.head.seeds[0]]
    where = f"all trees: {recipe.folder / TEXT}; figure: {recipe.folder / FIGURE}"
    return "\n\n".join(["", *tables, *shown, where])


# -- numbers -----------------------------------------------------------------------------------------------------------


def _row(teacher: Teacher) -> AnyRow:
    made = teacher.draft
    return {
        "number": made.number, "parent": made.parent, "score": teacher.score, "stage": teacher.stage,
        "screen": teacher.screen, "seconds": round(teacher.seconds, 1), "mutated": [*made.mutated],
        "settings": dict(made.settings), "folder": made.id,
    }  # fmt: skip


def _of_arm(teachers: Mapping[int, Teachers], finals: Mapping[int, Mapping[int, float]]) -> AnyRow:
    """Of one arm, over its seeds: the best score, its students on the final questions, and what it cost."""
    final = [finals[seed][best_of(known)] for seed, known in teachers.items() if best_of(known) in finals[seed]]
    stages = [teacher.stage for known in teachers.values() for number, teacher in known.items() if number]
    return {
        "best": _interval([best_so_far(known)[-1] for known in teachers.values()]),
        "final": _interval(final) if len(final) == len(teachers) else None,
        "final_of_first": _interval([known[0] for known in finals.values()]) if final else None,
        "best_so_far": [_interval(values) for values in zip(*map(best_so_far, teachers.values()), strict=True)],
        "minutes": fmean(sum(one.seconds for number, one in known.items() if number) for known in teachers.values())
        / 60,
        "stages": {stage: stages.count(stage) for stage in ("full", "screened", "diverged")},
    }


def _interval(values: Sequence[float]) -> AnyRow:
    estimate = mean_with_interval(values)
    low, high = estimate.bounds or (None, None)
    return {"mean": estimate.mean, "low": low, "high": high, "seeds": [*values]}


# -- text --------------------------------------------------------------------------------------------------------------


def line_of(teacher: Teacher) -> str:
    """`3 <- 1  0.432  train.kl_coef=0.8`, with the stage where it was not fully evaluated."""
    made = teacher.draft
    changed = " ".join(f"{key}={_shown(made.settings[key])}" for key in made.mutated)
    parent = "" if made.parent is None else f" <- {made.parent}"
    return (
        f"{made.number}{parent}  {teacher.score:.3f}"
        + f" ({teacher.stage})" * (teacher.stage != "full")
        + f"  {changed}"
    )


def tree(teachers: Teachers, number: int = 0, depth: int = 0) -> Iterator[str]:
    """Lines: each teacher below its parent; `*` is the best one."""
    mark = "*" if number == best_of(teachers) else " "
    indent = "  " * depth
    yield textwrap.fill(
        f"{mark} {indent}{line_of(teachers[number])}", report_width(), subsequent_indent=f"    {indent}",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    for child, teacher in teachers.items():
        if teacher.draft.parent == number:
            yield from tree(teachers, child, depth + 1)


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cell(interval: AnyRow | None) -> str:
    if interval is None:
        return "-"
    ends = "" if interval["low"] is None else f" [{interval['low']:.2f}, {interval['high']:.2f}]"
    return f"{interval['mean']:.3f}{ends}"


def _table(arms: Mapping[str, AnyRow]) -> str:
    head = ["arm", "best score", "final", "final, by seed", "full", "screened", "diverged", "minutes"]
    rows = [
        [arm, _cell(one["best"]), *_final(one["final"]), *map(str, one["stages"].values()), f"{one['minutes']:.1f}"]
        for arm, one in arms.items()
    ]
    first = next(iter(arms.values()))["final_of_first"]
    rows += [["(first teacher)", "", *_final(first), "", "", "", ""]] if first else []
    about = (
        "Solve rates, mean over seeds with 95 % intervals. best score: of the best teacher's students, on the questions that "
        "chose it (too high, being a maximum). final: of the same students on questions that chose nothing. full, screened, "
        "diverged: children by the last evaluation they got. minutes: all children of one repeat, on one thread."
    )
    return f"{text_table(head, rows, 1, width=report_width())}\n\n{paragraph(about)}"


def _final(interval: AnyRow | None) -> list[str]:
    return [_cell(interval), " ".join(f"{rate:.2f}" for rate in (interval or {"seeds": []})["seeds"])]


def _curves(arms: Mapping[str, AnyRow]) -> str:
    count = len(next(iter(arms.values()))["best_so_far"])
    rows = [[arm, *(f"{one['mean']:.3f}" for one in values["best_so_far"])] for arm, values in arms.items()]
    return (
        f"Best score after so many children, mean over seeds\n\n{text_table(['arm', *map(str, range(count))], rows, 1)}"
    )


def _differences(arms: Mapping[str, AnyRow]) -> Iterator[str]:
    key = "final" if all(one["final"] for one in arms.values()) else "best"
    lines = []
    for arm in [arm for arm in arms if "archive" in arms and arm != "archive"]:
        pairs = zip(arms["archive"][key]["seeds"], arms[arm][key]["seeds"], strict=True)
        lines.append(f"archive minus {arm}: {_cell(_interval([ours - theirs for ours, theirs in pairs]))}")
    if lines:
        yield f"Differences in `{key}`, by seed, with 95 % intervals over seeds\n\n" + "\n".join(lines)
