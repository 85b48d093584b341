"""The report of a run: one results.json, one table in the terminal, one report.html. Numbers come from the run's files."""

from __future__ import annotations

import io
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rlt.config import ReportConfig
from rlt.errors import RunError
from rlt.recipe import Recipe, Step, recipe_of_run
from rlt.rows import read_rows
from rlt.runs import Result, read_state, versions, write_text
from rlt.statistics import student_t
from rlt.tables import text_table
from rlt.tasks import load_task


def run(config: ReportConfig) -> Result:
    """`results.json` and `report.html` (with the `suffix`) in the run's folder, and the same table printed.

    Made anew each time from what the steps left; steps that are not complete are named and left out.
    """
    started = time.monotonic()
    recipe = _recipe(config)
    results = collect_results(config, recipe)
    folder = Path(config.output)
    numbers, page = folder / f"results{config.suffix}.json", folder / f"report{config.suffix}.html"
    write_text(numbers, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_text(page, _html(config, recipe, results))
    print(f"\n{config.title}\n" if config.suffix and config.title else "")
    print(text_report(config, results))
    print(f"\nreport: {page}   numbers: {numbers}", flush=True)
    return Result(folder, {"report": str(page), "seconds": time.monotonic() - started})


def seed_table(config: ReportConfig, seed: int) -> str:
    """The table of one seed alone, for those who do not want to wait for the others."""
    results = collect_results(config, _recipe(config), only=seed)
    return text_table(*_arm_rows(config, results)) if results["arms"] else "(no evaluate step is complete)"


def _recipe(config: ReportConfig) -> Recipe:
    if not (config.output / "recipe.yaml").is_file():
        raise RunError(f"{config.output}: no recipe.yaml; a report is made of a run's folder. Use `rlt report RECIPE`.")
    return recipe_of_run(config.output)


# -- numbers -----------------------------------------------------------------------------------------------------------


def collect_results(config: ReportConfig, recipe: Recipe, only: int | None = None) -> dict[str, Any]:
    """All numbers of the run as in results.json: `arms`, `teacher`, `quarters`, `seconds`, each with a row a seed."""
    states = {
        (step.seed, step.name): (step, state)
        for step in recipe.steps
        if step.stage != "report" and (only is None or step.seed == only)
        and (state := read_state(step.config.output)) is not None and state.get("complete")
    }  # fmt: skip
    seeds = [seed for seed in recipe.head.seeds if only is None or seed == only]
    arms = config.arms or [
        name for name in dict.fromkeys(name for _, name in states) if _stage_of(states, name) == "evaluate"
    ]
    results: dict[str, Any] = {
        "name": recipe.head.name,
        "description": recipe.head.description,
        "arms": {arm: {"seeds": rows} for arm in arms if (rows := _arm(config, states, seeds, arm))},
        "teacher": {"seeds": [row for seed in seeds if (row := _teacher(config, states, seed))]},
        "quarters": {"seeds": [row for seed in seeds if (row := _bands(config, states, seed))]},
        "seconds": _seconds(states),
        "versions": versions(),
    }
    results["incomplete"] = sorted({s.name for s in recipe.steps if s.stage != "report" and s.seed in seeds
                                    and (s.seed, s.name) not in states})  # fmt: skip
    return results


States = dict[tuple[int | None, str], tuple[Step, dict[str, Any]]]


def _stage_of(states: States, name: str) -> str:
    return next(step.stage for (_, other), (step, _) in states.items() if other == name)


def _arm(config: ReportConfig, states: States, seeds: Sequence[int], arm: str) -> list[dict[str, Any]]:
    rows = []
    for seed in seeds:
        sampled = _solved(states, seed, f"{config.sampled}/{arm}") or _solved(states, seed, arm)
        greedy = _solved(states, seed, f"{config.greedy}/{arm}") if config.greedy else None
        if sampled is None:
            continue
        row = {"seed": seed, sampled["key"]: sampled["rate"], "standard_error": sampled["error"],
               "problems": sampled["questions"], "samples": sampled["samples"]}  # fmt: skip
        if greedy is not None:
            row["solve_rate_greedy"] = greedy["rate"]
        rows.append(row)
    return rows


def _solved(states: States, seed: int, name: str) -> dict[str, Any] | None:
    """The solve rate of an evaluate step, the mean over its benchmarks; None where no such step is complete."""
    if (seed, name) not in states or states[seed, name][0].stage != "evaluate":
        return None
    metrics = states[seed, name][1]["metrics"]
    of = list(metrics["benchmarks"].values())
    temperature = metrics["temperature"]
    key = "solve_rate_greedy" if temperature == 0 else f"solve_rate_t{str(temperature).replace('.', '')}"
    errors = [row["standard_error"] for row in of if row["standard_error"] is not None]
    return {
        "key": key,
        "rate": fmean(row["pass@1"] for row in of),
        "error": math.sqrt(sum(error**2 for error in errors)) / len(of) if errors else None,
        "questions": sum(row["questions"] for row in of),
        "samples": max(row["samples"] for row in of),
    }


def _teacher(config: ReportConfig, states: States, seed: int) -> dict[str, Any] | None:
    row: dict[str, Any] = {"seed": seed}
    for when, variant in zip(("before", "after"), config.teachers, strict=False):
        scored = states.get((seed, f"{config.scored}/{variant}"))
        if scored is None:
            continue
        scores = [score for _, score in read_rows(scored[0].config.output) if score["error"] is None]
        if not scores:
            continue
        for name in ("reward", "r_ss", "r_kl", "explanation_kl_mean", "explanation_tokens", "lift_over_empty",
                     "lift_over_shuffled"):  # fmt: skip
            values = [score[name] for score in scores if score.get(name) is not None]
            if values:
                row[f"{name}_{when}"] = fmean(values)
        highest = [score["explanation_kl_max"] for score in scores if score.get("explanation_kl_max") is not None]
        if highest:  # without a teacher nothing is known of the KL
            row[f"kl_max_{when}"] = max(highest)
        row |= {f"{name}_{when}": value for name, value in _inspected(config, states, seed, variant).items()}
    return row if len(row) > 1 else None


# What a task's `inspect` finds -> the name of its share in a report; others keep theirs.
_SHARES = {"leaks": "leak_rate", "complete": "every_step_right", "correct": "fully_correct"}


def _inspected(config: ReportConfig, states: States, seed: int, variant: str) -> dict[str, float]:
    """Shares of explanations that never closed, and of those of which each finding of the task's `inspect` holds."""
    explained = states.get((seed, f"{config.explained}/{variant}"))
    if explained is None:
        return {}
    rows = [row for _, row in read_rows(explained[0].config.output)]
    if not rows:
        return {}
    shares = {"unclosed_rate": fmean(not row.get("closed", True) for row in rows)}
    if config.task:
        seen = [load_task(config.task).inspect(row["explanation"], row["question"]) for row in rows]  # type: ignore[attr-defined]
        shares |= {_SHARES.get(name, name): fmean(one[name] for one in seen) for name in seen[0]}
    return shares


def _bands(config: ReportConfig, states: States, seed: int) -> dict[str, Any] | None:
    solved = [_solved(states, seed, f"{config.sampled}/{band}") for band in config.bands]
    known = [row for row in solved if row is not None]
    if not known or len(known) < len(config.bands):
        return None
    rates = [row["rate"] for row in known]
    return {"seed": seed, known[0]["key"]: rates, "spearman": spearman(rates)}


def spearman(values: Sequence[float]) -> float:
    """Spearman's rank correlation of `values` with their position (1: always rising). Ties share their rank."""
    ranks = [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values
    ]
    middle = (len(values) - 1) / 2
    top = sum((i - middle) * (rank - middle) for i, rank in enumerate(ranks))
    bottom = math.sqrt(sum((i - middle) ** 2 for i in range(len(ranks))) * sum((r - middle) ** 2 for r in ranks))
    return top / bottom if bottom else 0.0


def _seconds(states: States) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for (_, name), (_, state) in states.items():
        total[name.split("/")[0]] += state.get("seconds", 0.0)
    return {name: round(seconds, 1) for name, seconds in total.items()}


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % t interval of the mean over seeds; None with one seed."""
    if len(values) < 2:
        return None
    half = student_t(0.95, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def mean_and_interval(values: Sequence[float], bounds: tuple[float, float] | None = None) -> tuple[float, str]:
    """The mean over seeds, and its 95 % t interval in words; with one seed there is none."""
    interval = mean_interval(values)
    if interval is None:
        return fmean(values), "one seed"
    low, high = interval
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return fmean(values), f"[{low:.2f}, {high:.2f}]"


# -- words -------------------------------------------------------------------------------------------------------------


def text_report(config: ReportConfig, results: dict[str, Any]) -> str:
    """The whole report as text for a terminal."""
    parts = []
    if results["arms"]:
        parts += ["Students: share of held-out problems solved", text_table(*_arm_rows(config, results))]
    if results["teacher"]["seeds"]:
        parts += ["Teacher on held-out problems, before and after RL", text_table(*_teacher_rows(results))]
    if results["quarters"]["seeds"]:
        parts += ["Students of the original explanations, split by reward", text_table(*_band_rows(results))]
    parts += [*headline(config, results)]
    if config.note:
        parts.append(" ".join(config.note.split()))
    if results["incomplete"]:
        parts.append(f"Not complete, so not in here: {', '.join(results['incomplete'])}.")
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in results["seconds"].items() if value >= 0.5)
    parts.append(f"Seconds of each phase, all seeds together: {seconds}.")
    return "\n\n".join(parts)


def headline(config: ReportConfig, results: dict[str, Any]) -> list[str]:
    """Sentences that say who won, by how much and how surely; arms that beat ours are named."""
    if len(config.headline) != 2 or not all(arm in results["arms"] for arm in config.headline):
        return []
    ours, other = config.headline
    key = _keys(results)[0]
    rates = {
        arm: {row["seed"]: row[key] for row in value["seeds"] if key in row} for arm, value in results["arms"].items()
    }
    sentences = []
    for arm in [other, *[a for a in rates if a not in (ours, other)]]:
        both = sorted(set(rates[ours]) & set(rates[arm]))
        differences = [rates[ours][seed] - rates[arm][seed] for seed in both]
        if not differences:
            continue
        sentences.append(_against(ours, arm, differences, _label(key)))
    return ["\n".join(sentences)]


def _against(ours: str, other: str, differences: Sequence[float], label: str) -> str:
    mean, interval = fmean(differences), mean_interval(differences)
    size = f"{abs(mean):.2f}"
    verdict = "equal" if size == "0.00" else f"{size} better" if mean > 0 else f"{size} WORSE"
    surely = "one seed, so no interval"
    if interval is not None:
        low, high = interval
        surely = f"95 % interval over seeds [{low:.2f}, {high:.2f}]" + (", 0 included" if low <= 0 <= high else "")
    won = sum(difference > 0 for difference in differences)
    return f"{ours} against {other}: {verdict} at {label} ({surely}; ahead in {won} of {len(differences)} seeds)."


def _keys(results: dict[str, Any]) -> list[str]:
    keys = {
        key for arm in results["arms"].values() for row in arm["seeds"] for key in row if key.startswith("solve_rate")
    }
    return sorted(keys, key=lambda key: key.endswith("greedy"))


def _label(key: str) -> str:
    name = key.removeprefix("solve_rate_")
    if name == "greedy":
        return "greedy"
    digits = name.removeprefix("t")
    return f"T = {digits[0]}.{digits[1:]}" if len(digits) > 1 else f"T = {digits}"


def _arm_rows(config: ReportConfig, results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    keys = _keys(results)
    head = ["explanations that the student learned from"]
    for key in keys:
        head += [_label(key), "95 % over seeds", "each seed"]
    head += ["seeds", "problems x samples"]
    rows = []
    for arm, value in results["arms"].items():
        if arm in config.bands:
            continue
        row = [arm]
        for key in keys:
            rates = [seed[key] for seed in value["seeds"] if key in seed]
            if rates:
                mean, interval = mean_and_interval(rates, (0, 1))
                row += [f"{mean:.3f}", interval, " ".join(f"{rate:.2f}" for rate in rates)]
            else:
                row += ["-", "", ""]
        first = value["seeds"][0]
        row += [" ".join(str(seed["seed"]) for seed in value["seeds"]), f"{first['problems']} x {first['samples']}"]
        rows.append(row)
    return head, rows


def _teacher_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    seeds = results["teacher"]["seeds"]
    names = dict.fromkeys(re.sub("_(before|after)$", "", key) for row in seeds for key in row if key != "seed")
    head = ["", *[f"seed {row['seed']}: before -> after" for row in seeds]]
    rows = []
    for name in names:
        cells = []
        for row in seeds:
            before, after = row.get(f"{name}_before"), row.get(f"{name}_after")
            cells.append(f"{_short(before)} -> {_short(after)}")
        rows.append([name.replace("_", " "), *cells])
    return head, rows


def _band_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    seeds = results["quarters"]["seeds"]
    key = next(key for key in seeds[0] if key.startswith("solve_rate"))
    head = ["seed", *[f"{'lowest' if i == 0 else 'highest' if i == len(seeds[0][key]) - 1 else 'band ' + str(i + 1)}"
                      for i in range(len(seeds[0][key]))], "Spearman"]  # fmt: skip
    return head, [[str(row["seed"]), *[f"{rate:.3f}" for rate in row[key]], f"{row['spearman']:.2f}"] for row in seeds]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# -- the page ----------------------------------------------------------------------------------------------------------


def _html(config: ReportConfig, recipe: Recipe, results: dict[str, Any]) -> str:
    import jinja2

    template = (resources.files("rlt") / "shipped" / "report.html").read_text(encoding="utf-8")
    # Escaping is on for everything; only our own pictures are marked as safe.
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    tables = []
    if results["arms"]:
        tables.append(("Students: share of held-out problems solved", *_arm_rows(config, results)))
    if results["teacher"]["seeds"]:
        tables.append(("Teacher on held-out problems, before and after RL", *_teacher_rows(results)))
    if results["quarters"]["seeds"]:
        tables.append(("Students of the original explanations, split by reward", *_band_rows(results)))
    return page.render(
        title=config.title or results["name"], description=recipe.head.description, note=config.note,
        headline=headline(config, results), tables=tables, pictures=_pictures(config, recipe, results),
        explained=_explained_twice(config, recipe), seconds=results["seconds"], versions=results["versions"],
        incomplete=results["incomplete"], recipe=recipe.dump(),
    )  # fmt: skip


def _explained_twice(config: ReportConfig, recipe: Recipe) -> list[dict[str, str]]:
    """The same held-out questions, explained before and after RL, by the first seed's teacher."""
    if len(config.teachers) != 2 or config.explained is None:
        return []
    sides = []
    for variant in config.teachers:
        step = next(
            (s for s in recipe.of_seed(recipe.head.seeds[0]) if s.name == f"{config.explained}/{variant}"), None
        )
        if step is None or not (read_state(step.config.output) or {}).get("complete"):
            return []
        sides.append({row["question"]: row for _, row in read_rows(step.config.output)})
    both = [question for question in sides[0] if question in sides[1]][:5]
    return [
        {"question": question, "solution": sides[0][question]["solution"],
         "before": sides[0][question]["explanation"], "after": sides[1][question]["explanation"]}
        for question in both
    ]  # fmt: skip


def _pictures(config: ReportConfig, recipe: Recipe, results: dict[str, Any]) -> list[tuple[str, Any]]:
    """Captions and SVG pictures; none where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("report: no pictures, because matplotlib is not installed: pip install 'rlt[report]'", flush=True)
        return []
    import markupsafe

    matplotlib.use("svg")
    matplotlib.rcParams |= {
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    drawn = [
        (
            "Share of held-out problems solved by each arm's students. A dot a seed, a bar the mean.",
            _draw_arms(config, results),
        ),
        ("The teacher's reward in training. A thin line a seed.", _draw_curves(config, recipe)),
        ("Students of the original explanations in bands of reward. A line a seed.", _draw_bands(results)),
    ]
    return [(caption, markupsafe.Markup(svg)) for caption, svg in drawn if svg]


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _draw_arms(config: ReportConfig, results: dict[str, Any]) -> str | None:
    arms = {arm: value["seeds"] for arm, value in results["arms"].items() if arm not in config.bands}
    if len(arms) < 2:
        return None
    figure, axes = _figure(7, 0.5 * len(arms) + 1)
    for offset, (key, colour) in enumerate(zip(_keys(results), ("#1b6ca8", "#c8811d"), strict=False)):
        for place, rows in enumerate(arms.values()):
            rates = [row[key] for row in rows if key in row]
            if rates:
                y = place + 0.36 * offset - 0.18
                axes.barh(y, fmean(rates), 0.3, color=colour, alpha=0.45, label=_label(key) if place == 0 else None)
                axes.plot(rates, [y] * len(rates), "o", color=colour, markersize=4)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("share of held-out problems solved")
    axes.legend(frameon=False, loc="lower right")
    return _svg(figure)


def _draw_curves(config: ReportConfig, recipe: Recipe) -> str | None:
    if config.trained is None:
        return None
    figure, axes = _figure(7, 2.6)
    drawn = False
    for step in recipe.steps:
        metrics = Path(step.config.output) / "metrics.jsonl"
        if step.name == config.trained and metrics.is_file():
            rows = [row for _, row in read_rows(metrics) if "reward" in row]
            axes.plot(
                [row["step"] for row in rows], [row["reward"] for row in rows], linewidth=1, label=f"seed {step.seed}"
            )
            drawn = True
    axes.set_xlabel("step of teacher RL")
    axes.set_ylabel("reward (nats)")
    if not drawn:
        return None
    axes.legend(frameon=False)
    return _svg(figure)


def _draw_bands(results: dict[str, Any]) -> str | None:
    if not results["quarters"]["seeds"]:
        return None
    figure, axes = _figure(7, 2.6)
    for row in results["quarters"]["seeds"]:
        key = next(key for key in row if key.startswith("solve_rate"))
        axes.plot(range(1, len(row[key]) + 1), row[key], "o-", label=f"seed {row['seed']}")
    axes.set_xticks(range(1, len(row[key]) + 1))
    axes.set_xlabel("band of reward, lowest first")
    axes.set_ylabel(f"solved, {_label(key)}")
    axes.legend(frameon=False)
    return _svg(figure)
