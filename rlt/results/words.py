"""The report in words: tables, the meaning of their columns, and three summary sentences."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rlt.config import ReportConfig
from rlt.results.intervals import MeanEstimate, mean_with_interval
from rlt.results.rankings import Ranking
from rlt.results.rounds import Round, parted
from rlt.results.sources import SourceNumbers, cells
from rlt.results.students import Arm, Difference, Solved, differences, solve_rate
from rlt.results.summary import PARTS, Results, Scores
from rlt.results.sweep import Reached, Sweep, labelled
from rlt.results.tables import KEEP, Table, paragraph, said_once

MEASURES = {
    "reward": ("reward", "the objective of RL: r_ss - kl_coef * r_kl + penalties, in nats"),
    "r_ss": ("r_ss", "log-prob of the solution for a student that read the explanation: mean + alpha * minimum"),
    "r_kl": ("r_kl", "how unexpected the explanation is to the student: KL, mean + alpha * maximum"),
    "explanation_kl_mean": ("mean KL", "part of r_kl: mean over the explanation's tokens, in nats"),
    "kl_max": ("largest KL", "part of r_kl: the largest of a single token, in nats"),
    "explanation_tokens": ("tokens", "mean tokens per explanation"),
    "lift_over_empty": ("lift over empty", "r_ss minus r_ss with an empty explanation"),
    "lift_over_shuffled": ("lift over other", "r_ss minus r_ss with another question's explanation"),
    "unclosed_rate": ("unclosed", "share of explanations that never close their tag"),
    "leak_rate": ("leaks", "share that give the answer away before the first step"),
    "every_step_right": ("every step right", "share with every step, in order and with the correct value"),
    "wrong_value": ("wrong value", "share with a step whose value is wrong"),
    "fully_correct": ("fully correct", "share with exactly the correct steps and nothing else"),
}
"""Measure -> its name in tables and its meaning."""


def terminal_report(config: ReportConfig, results: Results) -> str:
    """The report for a terminal, at most 100 columns wide: details, notes, three sentences, main table."""
    found = tables(config, results)
    parts = [str(table) for table in found[1:]]
    if config.note:
        parts.append(paragraph(config.note))
    if results.incomplete:
        parts.append(paragraph(f"Left out because incomplete: {', '.join(results.incomplete)}."))
    seconds = [f"{name} {value:.0f}" for name, value in results.seconds.items() if value >= 0.5]
    if seconds:
        parts.append(paragraph(f"Seconds per step, all seeds together: {', '.join(seconds)}."))
    parts.append("\n".join(paragraph(sentence) for sentence in sentences(config, results)))
    return "\n\n".join([*parts, *map(str, found[:1])])


def seed_report(config: ReportConfig, results: Results) -> str:
    """The first table of a single seed's results."""
    found = tables(config, results)
    return str(found[0]) if found else "(nothing to show: no evaluate or score step is complete)"


def tables(config: ReportConfig, results: Results) -> list[Table]:
    """The tables for which there are results, in the report's order."""
    found = []
    if results.arms:
        found += [_students(results.arms), _students_by_seed(results.arms)]
        if against := _against(config, results.arms):
            found.append(_differences(against))
    if results.rounds:
        found.append(_rounds(results.rounds))
    if results.rankings:
        found.append(_rankings(results.rankings))
    if results.sweep:
        found.append(_sweep(results.sweep))
    if results.reached:
        found.append(_reached(results.reached))
    if results.teacher:
        found.append(_teacher(results))
    if results.bands:
        found.append(_bands(results))
    found += [_variants(one) for one in results.scores] + [_sources(*one) for one in results.sources.items()]
    return said_once(found)


# -- tables ------------------------------------------------------------------------------------------------------------


def _students(arms: Sequence[Arm]) -> Table:
    first = arms[0].seeds[0].sampled
    described, greedy = any(arm.description for arm in arms), any(one.greedy for arm in arms for one in arm.seeds)
    decodings = list(dict.fromkeys(arm.decoding for arm in arms))
    counts = {len(arm.seeds) > 1 for arm in arms}
    over = "over seeds" if counts == {True} else "over problems" if counts == {False} else "over seeds, or problems"
    meanings = [("solved", f"share solved at {' or '.join(decodings)}, mean over seeds [95 % interval {over}]")]
    if greedy:
        meanings.append(("greedy", "the same students with greedy decoding"))
    head = ["arm", *(["what the student learned from"] if described else []), "solved"]
    head += [*(["greedy"] if greedy else []), *(["decoding"] if len(decodings) > 1 else []), "seeds"]
    rows = []
    for arm in arms:
        row = [arm.name, *([arm.description or ""] if described else []), _rate([one.sampled for one in arm.seeds])]
        if greedy:
            row.append(_rate([one.greedy for one in arm.seeds if one.greedy is not None]))
        if len(decodings) > 1:
            row.append(arm.decoding)
        rows.append([*row, str(len(arm.seeds))])
    title = f"Students: share of held-out problems solved ({first.problems} problems, {_samples(first)} each)"
    return Table(title, head, rows, tuple(meanings))


def _students_by_seed(arms: Sequence[Arm]) -> Table:
    seeds = sorted({one.seed for arm in arms for one in arm.seeds})
    greedy = any(one.greedy for arm in arms for one in arm.seeds)
    rows = []
    for arm in arms:
        of = {one.seed: one for one in arm.seeds}
        cells = []
        for seed in seeds:
            one = of.get(seed)
            second = f" / {one.greedy.rate:.3f}" if one and one.greedy else ""
            cells.append("-" if one is None else f"{one.sampled.rate:.3f}{second}")
        rows.append([arm.name, *cells])
    decodings = " or ".join(dict.fromkeys(arm.decoding for arm in arms))
    title = f"Students of each seed, at {decodings}{' / greedy' if greedy else ''}"
    return Table(title, ["arm", *(f"seed {seed}" for seed in seeds)], rows, split=True)


def _differences(against: Sequence[Difference]) -> Table:
    ours = against[0].ours
    rows = [
        [one.other, f"{one.estimate.mean:+z.3f}", _bounds(one.bounds), f"{one.ahead} of {one.estimate.count}"]
        for one in against
    ]
    over = "questions, paired" if against[0].estimate.count == 1 else "seeds (Student's t)"
    meanings = (
        ("difference", f"solve rate of {ours} minus that of the other arm with the same seed, mean over seeds"),
        ("95 % interval", f"over {over}; inconclusive if it includes 0"),
        ("ahead in", f"number of seeds in which {ours} solves more"),
    )
    return Table(
        f"{ours} against the other arms", ["other arm", "difference", "95 % interval", "ahead in"], rows, meanings
    )


def _rounds(rounds: Sequence[Round]) -> Table:
    names = list(dict.fromkeys(name for one in rounds for name in one.measures))
    numbers = sorted({one.number for one in rounds})
    by_number = {number: [one for one in rounds if one.number == number] for number in numbers}
    cells = {}
    for number, of in by_number.items():
        decisions = [one.decision for one in of if one.decision is not None]
        accepted = f"{sum(one['accepted'] for one in decisions)} of {len(decisions)}" if decisions else "-"
        gains = f"{fmean(one['gain'] for one in decisions):+z.3f}" if decisions else "-"
        values = [[one.measures[name] for one in of if name in one.measures] for name in names]
        cells[number] = [str(len(of)), accepted, gains, *(f"{fmean(each):z.3f}" if each else "-" for each in values)]
    heads = ["seeds", "accepted", "gain", *(_measure(name) for name in names)]
    rows = [[head, *(cells[number][i] for number in numbers)] for i, head in enumerate(heads)]
    meanings = [
        ("seeds", "seeds that reached the round; all numbers are means over these"),
        ("accepted", "rounds whose gain has a lower bound above 0, corrected for the number of looks"),
        ("gain", "solve rate minus that of the best previous round, on the questions that decide acceptance"),
        ("NAME: reward", "mean reward in that score step; compare the round's own judge with a fixed one"),
        ("distinct N", "different word N-grams in the explanations, as a share of all"),
        ("copying", "share of the solution's word n-grams that occur in its explanation"),
        *(MEASURES[name] for name in names if name in MEASURES),
    ]
    return Table("Rounds", ["", *(f"round {number}" for number in numbers)], rows, tuple(meanings), split=True)


def _rankings(rankings: Sequence[Ranking]) -> Table:
    count = max(len(one.bands) for one in rankings)
    between = [f"band {i}" for i in range(2, count)]
    head = ["ranking", "seeds", "lowest", *between, "highest", "highest - lowest", "Spearman"]
    rows = []
    for one in rankings:
        lowest, *others, highest = (f"{solve_rate(band)[0]:.3f}" for band in one.bands)
        missing = ["-"] * (count - len(one.bands))  # students of the bands between, which not every ranking needs
        cells = [lowest, *others, *missing, highest, _difference(one.gain), _estimate(one.spearman)]
        rows.append([one.name, str(len(one.rates)), *cells])
    meanings = (
        ("lowest ... highest", "share solved by students of that band of the ranking alone, mean over seeds"),
        (
            "highest - lowest",
            "mean over seeds ± half of the 95 % interval; of one seed [95 % interval over problems, paired]",
        ),
        ("Spearman", "rank correlation of band and solve rate within a seed, mean over seeds ± the same"),
    )
    return Table("Which ranking of explanations predicts what students learn", head, rows, meanings, split=True)


def _sweep(sweep: Sweep) -> Table:
    names = list(dict.fromkeys(name for one in sweep.points for name in one.measures))
    rows = []
    for number, value in enumerate(sweep.values):
        of = [one for one in sweep.points if one.number == number]
        values = [[one.measures[name] for one in of if name in one.measures] for name in names]
        cells = [_estimate(mean_with_interval(each)) if each else "-" for each in values]
        rows.append([labelled(value), str(len(of)), *cells])
    meanings = (
        ("solved", "share that the arm's students solve; all numbers are means over seeds ± half of the 95 % interval"),
        *(MEASURES[name] for name in names if name in MEASURES),
    )
    head = [sweep.setting, "seeds", *(_measure(name) for name in names)]
    return Table(f"Students and explanations by {sweep.setting}", head, rows, meanings, split=True)


def _reached(reached: Sequence[Reached]) -> Table:
    seeds = list(dict.fromkeys(seed for one in reached for seed in one.steps))
    rows = [
        [one.variant, *(_steps(one, seed) for seed in seeds), str(sum(step is not None for step in one.steps.values()))]
        for one in reached
    ]
    first = reached[0]
    meanings = (
        ("seed", f"first step at which {first.metric}, mean of five logged steps, is at least {first.level:g}; in brackets "
                 f"the mean with which RL ended where it never got there"),
        ("reached", "seeds that got there"),
    )  # fmt: skip
    title = f"RL steps until {first.metric} reaches {first.level:g}"
    return Table(title, ["from", *(f"seed {seed}" for seed in seeds), "reached"], rows, meanings)


def _steps(one: Reached, seed: int) -> str:
    if seed not in one.steps:
        return "-"
    return f"({one.last[seed]:.2f})" if one.steps[seed] is None else str(one.steps[seed])


def _of_rounds(rounds: Sequence[Round]) -> list[str]:
    """Change of each judge's mean reward from round 1 to the last round with all seeds: a rise for one judge is drift."""
    seeds = {one.seed for one in rounds}
    numbers = [n for n in {one.number for one in rounds} if n and {o.seed for o in rounds if o.number == n} == seeds]
    if len(numbers) < 2:
        return []
    first, last = min(numbers), max(numbers)
    moved = []
    for name in dict.fromkeys(name for one in rounds if one.number == first for name in one.measures):
        ends = [[o.measures[name] for o in rounds if o.number == n and name in o.measures] for n in (first, last)]
        if name.endswith(": reward") and all(ends):
            moved.append(f"{name.partition(':')[0]} {fmean(ends[1]) - fmean(ends[0]):+z.2f}")
    accepted = sorted({one.number for one in rounds if one.decision and one.decision["accepted"]})
    listed = ", ".join(map(str, accepted)) or "none"
    changes = f" Change of the mean rewards from round {first} to {last}: {', '.join(moved)}." if moved else ""
    return [f"Rounds accepted in at least one seed: {listed}.{changes}"]


def _teacher(results: Results) -> Table:
    names = list(dict.fromkeys(name for one in results.teacher for name in [*one.before, *one.after]))
    rows = []
    for name in names:
        cells = [f"{_short(one.before.get(name))} -> {_short(one.after.get(name))}" for one in results.teacher]
        rows.append([_measure(name), *cells])
    decoding = f" (written at {results.teacher_decoding})" if results.teacher_decoding else ""
    title = f"Teacher: explanations of held-out problems, before -> after RL{decoding}"
    meanings = tuple(MEASURES[name] for name in names if name in MEASURES)
    return Table(title, ["", *(f"seed {one.seed}" for one in results.teacher)], rows, meanings, split=True)


def _bands(results: Results) -> Table:
    first = results.bands[0]
    inner = [f"band {i}" for i in range(2, len(first.solved))]
    head = ["seed", "lowest", *inner, "highest", "Spearman"] if len(first.solved) > 1 else ["seed", "band", "Spearman"]
    rows = [[str(one.seed), *(f"{rate:.3f}" for rate in one.rates), f"{one.spearman:.2f}"] for one in results.bands]
    rising = sum(one.rises for one in results.bands)
    meanings = (
        ("lowest ... highest", f"share solved at {first.solved[0].decoding} by a student of that band only"),
        ("Spearman", f"rank correlation of band and solve rate; 1 if each band solves more than the one below, "
                     f"as in {rising} of {len(results.bands)} seeds"),
    )  # fmt: skip
    return Table("Students of explanations by reward band", head, rows, meanings, split=True)


def _variants(scores: Scores) -> Table:
    parts = [part for part in PARTS if any(part in variant.means for variant in scores.variants)]
    names = {"lift_over_empty": "over empty", "lift_over_shuffled": "over other"}
    rows = []
    for variant in scores.variants:
        cells = [_estimate(variant.means[part]) if part in variant.means else "-" for part in parts]
        rows.append([variant.name, str(variant.rows - variant.errors), *cells])
    errors = sum(variant.errors for variant in scores.variants)
    of_seed = "" if scores.seed is None else f", seed {scores.seed}"
    meanings = [("rows", "scored rows" + (f"; {errors} left out because of errors" if errors else ""))]
    meanings += [(names.get(part, MEASURES[part][0]), MEASURES[part][1]) for part in parts]
    title = f"Rewards of step `{scores.step}`{of_seed}: mean over rows ± half of the 95 % interval"
    return Table(title, ["variant", "rows", *(names.get(part, part) for part in parts)], rows, tuple(meanings))


def _sources(step: str, numbers: SourceNumbers) -> Table:
    head, rows = cells(numbers)
    measures = [MEASURES.get(name, MEASURES["unclosed_rate"]) for name in head[2:]]
    head = [*head[:2], *(name for name, _ in measures)]
    return Table(f"Sources of the mixture in step `{step}`: means over their scored rows", head, rows, tuple(measures))


# -- sentences ---------------------------------------------------------------------------------------------------------


def sentences(config: ReportConfig, results: Results) -> list[str]:
    """What was compared, the result, and its certainty; one sentence if there is nothing to compare."""
    if len(results.arms) > 1:
        return _of_students(config, results.arms) + _of_rounds(results.rounds) + parted(results.rounds)
    if len(results.rankings) > 1:
        return _of_rankings(results.rankings)
    if results.teacher:
        return _of_teacher(results)
    several = [one for one in results.scores if len(one.variants) > 1]
    if several:
        return [sentence for one in several for sentence in _of_variants(one)]
    return ["Nothing to compare: a report needs two complete arms, or two variants of a `score` step."]


def _against(config: ReportConfig, arms: Sequence[Arm]) -> list[Difference]:
    """The headline's first arm, or the best one, against every other; the headline's second, or the next best, first."""
    by_name = {arm.name: arm for arm in arms}
    ranked = sorted(arms, key=lambda arm: arm.mean, reverse=True)
    ours, other = ranked[0], ranked[1].name if len(ranked) > 1 else ""
    if len(config.headline) == 2 and all(name in by_name for name in config.headline):
        ours, other = by_name[config.headline[0]], config.headline[1]
    return sorted(differences(arms, ours), key=lambda one: one.other != other)


def _of_students(config: ReportConfig, arms: Sequence[Arm]) -> list[str]:
    against = _against(config, arms)
    if not against:
        return ["Nothing to compare: no two arms share a seed and decoding settings."]
    mean = {arm.name: arm.mean for arm in arms}
    first, solved = against[0], arms[0].seeds[0].sampled
    ours, gap = first.ours, first.estimate
    count = gap.count
    compared = [ours, *(one.other for one in against)]
    seeds = "one seed" if count == 1 else f"{count} seeds"
    said = [
        f"Compared: students of {len(compared)} arms ({', '.join(compared)}) on {solved.problems} held-out problems, "
        f"{_samples(solved)} each at {next(arm.decoding for arm in arms if arm.name == ours)}, {seeds}."
    ]
    size = f"{abs(gap.mean):.2f}"
    verdict = "as many as" if size == "0.00" else f"{size} more than" if gap.mean > 0 else f"{size} LESS than"
    better = [one.other for one in against[1:] if round(one.estimate.mean, 2) < 0]
    beaten = f"; {', '.join(f'{name} ({mean[name]:.2f})' for name in better)} solved more than {ours}" if better else ""
    said.append(f"Result: {ours} solved {mean[ours]:.2f}, {verdict} {first.other} ({mean[first.other]:.2f}){beaten}.")
    if first.bounds is None:
        said.append("Certainty: one seed, so there is no interval over seeds, and other seeds may differ.")
        return said
    open_ = [one.other for one in against[1:] if not one.excludes_zero]
    rest = f"; inconclusive against {', '.join(open_)}" if open_ else ""
    settled = "excludes 0" if first.excludes_zero else "includes 0, so the result is inconclusive"
    over, told = f"{count} seeds", f"{ours} is ahead in {first.ahead} of {count}"
    if count == 1:
        over, told = "questions of this one seed", "other seeds may differ"
    chosen = "" if config.headline else ", and the two arms were picked after seeing the results"
    said.append(
        f"Certainty: the 95 % interval of the difference from {first.other} over {over} is {_bounds(first.bounds)} and "
        f"{settled}; {told}{rest}{chosen}."
    )
    return said


def _of_rankings(rankings: Sequence[Ranking]) -> list[str]:
    gains = {one.name: one.gain for one in sorted(rankings, key=lambda one: -abs(one.gain.estimate.mean))}
    count = max(gain.estimate.count for gain in gains.values())
    told = [f"{name} ({gain.estimate.mean:+z.2f})" for name, gain in gains.items()]
    sure = "one seed, so there is no interval over seeds, and other seeds may differ"
    if count > 1 or all(gain.bounds for gain in gains.values()):
        over = f"{count} seeds" if count > 1 else "problems of this one seed (other seeds may differ)"
        told_of = ", ".join(f"{name} {_bounds(gain.bounds)}" for name, gain in gains.items())
        sure = f"95 % intervals of these differences over {over}: {told_of}"
    return [
        f"Compared: {len(rankings)} rankings of explanations, by students of their bands, "
        f"{'one seed' if count == 1 else f'{count} seeds'}.",
        f"Result: highest minus lowest band, from the largest difference to the smallest: {', '.join(told)}.",
        f"Certainty: {sure}.",
    ]


def _of_teacher(results: Results) -> list[str]:
    both = [(one.before["reward"], one.after["reward"]) for one in results.teacher
            if "reward" in one.before and "reward" in one.after]  # fmt: skip
    if not both:
        return ["Nothing to compare: the teacher was not scored both before and after RL."]
    gap = mean_with_interval([after - before for before, after in both])
    before, after = fmean(one[0] for one in both), fmean(one[1] for one in both)
    seeds = "one seed" if len(both) == 1 else f"{len(both)} seeds"
    sure = "one seed, so there is no interval over seeds"
    if gap.half is not None:
        sure = f"the 95 % interval of the change over {len(both)} seeds is {_bounds(gap.bounds)} and "
        sure += "excludes 0" if gap.excludes_zero else "includes 0, so the result is inconclusive"
    return [
        f"Compared: the teacher's explanations of held-out problems before and after RL, {seeds}.",
        f"Result: the mean reward was {before:.2f} before and {after:.2f} after RL ({gap.mean:+.2f}).",
        f"Certainty: {sure}.",
    ]


def _of_variants(scores: Scores) -> list[str]:
    first = scores.variants[0]
    scored = [variant for variant in scores.variants if "reward" in variant.means]
    if not scored:
        return [f"Nothing to compare: no row of `{scores.step}` has a reward."]
    ranked = sorted(scored, key=lambda variant: variant.means["reward"].mean, reverse=True)
    best, worst = ranked[0], ranked[-1]
    of_seed = "" if scores.seed is None else f" in seed {scores.seed}"
    found: dict[str, list[str]] = {"excludes": [], "includes": [], "none": []}
    for variant in scores.variants[1:]:
        gap = variant.difference
        kind = "none" if gap is None or gap.half is None else "excludes" if gap.excludes_zero else "includes"
        found[kind].append(variant.name if gap is None else f"{variant.name} ({gap.mean:+.2f} {_bounds(gap.bounds)})")
    told = [f"{kind} 0 for {', '.join(found[kind])}" for kind in ("excludes", "includes") if found[kind]]
    if found["none"]:
        told.append(f"is unavailable for {', '.join(found['none'])}, which have different rows")
    return [
        f"Compared: the rewards of {len(scores.variants)} variants of `{scores.step}`{of_seed}, {first.rows} rows each.",
        f"Result: {best.name} has the highest mean reward ({best.means['reward'].mean:.2f}), {worst.name} the lowest "
        f"({worst.means['reward'].mean:.2f}).",
        f"Certainty: paired by row, the 95 % interval of the difference of reward from {first.name} {'; it '.join(told)}.",
    ]


# -- cells -------------------------------------------------------------------------------------------------------------


def _rate(solved: Sequence[Solved]) -> str:
    if not solved:
        return "-"
    mean, bounds = solve_rate(solved)
    return f"{mean:.3f}" + ("" if bounds is None else f"{KEEP}[{bounds[0]:.2f},{KEEP}{bounds[1]:.2f}]")


def _bounds(bounds: tuple[float, float] | None) -> str:
    return "none, one seed" if bounds is None else f"[{bounds[0]:z.2f}, {bounds[1]:z.2f}]"


def _estimate(estimate: MeanEstimate) -> str:
    return f"{estimate.mean:z.2f}" + ("" if estimate.half is None else f"{KEEP}±{KEEP}{estimate.half:.2f}")


def _difference(difference: Difference) -> str:
    seeds, bounds = _estimate(difference.estimate), difference.bounds
    if difference.estimate.half is not None or bounds is None:
        return seeds
    return f"{seeds}{KEEP}[{bounds[0]:z.2f},{KEEP}{bounds[1]:z.2f}]"


def _samples(solved: Solved) -> str:
    return "1 sample" if solved.samples == 1 else f"{solved.samples} samples"


def _measure(name: str) -> str:
    return MEASURES[name][0] if name in MEASURES else name.replace("_", " ")


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"
