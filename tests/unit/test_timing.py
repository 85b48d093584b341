"""The time left is true: replays of a quickstart's steps, whose seconds were recorded, on machines slower than the table's.

`quickstart_steps.json` has what each of the 127 steps of one run took, three seeds, two at a time.
"""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlt.recipe import Step, Timing, build_recipe
from rlt.timing import TimeLeft, key_of, queue, replayed, timings

RECORDED = json.loads((Path(__file__).parent / "quickstart_steps.json").read_text())


def step(name, stage="score", seed=0, after=(), **trainer):
    return Step(name, stage, seed, SimpleNamespace(trainer=trainer, output=Path("none")), tuple(after))


def recorded():
    """`(steps, table, seconds)`: the table has the mean of the three seeds, `seconds` what each step took."""
    steps = [step(row["name"], row["stage"], row["seed"], row["after"]) for row in RECORDED]
    names = dict.fromkeys(row["name"] for row in RECORDED)
    means = {
        name: [sum(row[key] for row in rows) / len(rows) for key in ("seconds", "rows")]
        for name in names
        if (rows := [row for row in RECORDED if row["name"] == name])
    }
    table = {name: Timing(seconds=seconds, rows=round(rows)) for name, (seconds, rows) in means.items()}
    return steps, table, {key_of(s): row["seconds"] or 0.01 for s, row in zip(steps, RECORDED, strict=True)}


def estimates(steps, table, seconds, jobs=2, every=5.0):
    """`(time, estimate, truth)` every few seconds of a run whose steps take these seconds."""
    total, plan = replayed(steps, jobs, seconds)
    rows = {key_of(s): row["rows"] for s, row in zip(steps, RECORDED, strict=True)}
    now = 0.0

    def rows_of(one):
        start, end = next((start, end) for start, end, other in plan if other is one)
        return int(rows[key_of(one)] * (now - start) / (end - start)) if end > start else 0

    time_left = TimeLeft(steps, jobs, table, rows_of)
    events = sorted([(start, 1, s) for start, _, s in plan] + [(end, 0, s) for _, end, s in plan], key=lambda e: e[:2])
    found = []
    while now < total:
        while events and events[0][0] <= now:
            at, begins, one = events.pop(0)
            if begins:
                time_left.begin(one, at)
            else:
                time_left.end(one, seconds[key_of(one)])
        found.append((now, time_left.left(now), total - now))
        now += every
    return found


def worst(found, since=60.0, rest=30.0):
    """The largest factor by which an estimate is off, from the first minute on, until half a minute is left."""
    return max(max(told / truth, truth / told) for now, told, truth in found if now >= since and truth >= rest)


@pytest.mark.parametrize("slower", [1.0, 1.8, 0.5])
def test_from_the_first_minute_on_it_is_within_half_whatever_the_machines_speed(slower):
    steps, table, seconds = recorded()
    assert worst(estimates(steps, table, {key: slower * value for key, value in seconds.items()})) < 1.5


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_it_counts_steps_that_run_in_parallel(jobs):
    steps, table, seconds = recorded()
    assert worst(estimates(steps, table, seconds, jobs)) < 1.5


@pytest.mark.parametrize("stage", ["pretrain", "train", "distill", "evaluate"])
@pytest.mark.parametrize("slower", [1.8, 0.5])
def test_it_stays_near_when_one_kind_of_step_is_slower_than_the_others(stage, slower):
    steps, table, seconds = recorded()
    real = {key_of(s): seconds[key_of(s)] * (slower if s.stage == stage else 1.0) for s in steps}
    assert worst(estimates(steps, table, real)) < 2


@pytest.mark.parametrize("seed", range(5))
def test_it_stays_near_when_every_step_takes_another_time(seed):
    steps, table, seconds = recorded()
    rng = random.Random(seed)
    assert worst(estimates(steps, table, {key: value * rng.uniform(0.6, 1.4) for key, value in seconds.items()})) < 1.75


def test_the_replay_of_the_recorded_run_takes_what_the_run_took():
    """1033 s from its first line to its last, of which the first workers' start took 6."""
    steps, _, seconds = recorded()
    assert replayed(steps, 2, seconds)[0] == pytest.approx(1033, rel=0.05)


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_steps_in_parallel_wait_for_their_inputs_and_reports_come_last():
    steps = [step("a"), step("b"), step("c", after=["a"]), step("r", "report", None)]
    total, plan = replayed(steps, 2, {(0, "a"): 4, (0, "b"): 1, (0, "c"): 2, (None, "r"): 1})
    assert [(start, end, s.name) for start, end, s in plan] == [(0, 1, "b"), (0, 4, "a"), (4, 6, "c"), (6, 7, "r")]
    assert total == 7


def test_the_first_seed_goes_first_then_what_most_steps_wait_for():
    steps = [
        step("a"),
        step("b"),
        step("c", after=["b"]),
        step("a", seed=1),
        step("b", seed=1),
        step("c", seed=1, after=["b"]),
    ]
    assert [(s.seed, s.name) for s in queue(steps)] == [(0, "b"), (0, "a"), (0, "c"), (1, "b"), (1, "a"), (1, "c")]


def test_a_running_step_is_as_far_as_its_rows_say():
    one = step("t", "train")
    left = TimeLeft([one], 1, {"t": Timing(seconds=100, rows=50)}, lambda s: 25)
    left.begin(one, 0.0)
    # Half is done in 100 s where the table has 50: twice as slow, nearly (the table has a little weight of its own).
    assert left.left(100.0) == pytest.approx(100, rel=0.1)


def test_without_a_table_nothing_is_said_until_each_kind_that_is_left_was_seen():
    steps = [step("a"), step("t", "train", max_steps=10), step("b"), step("u", "train", max_steps=30)]
    left = TimeLeft(steps, 1, {}, lambda s: 0)
    left.begin(steps[0], 0.0)
    left.end(steps[0], 2.0)
    assert left.left(2.0) is None
    left.begin(steps[1], 2.0)
    left.end(steps[1], 5.0)
    assert left.left(7.0) == 2.0 + 15.0  # b as long as a, u of three times as many steps as t


def test_steps_that_end_by_epochs_and_by_max_steps_are_not_scaled_to_each_other():
    steps = [step("a", "distill"), step("b", "distill"), step("c", "distill", max_steps=76)]
    left = TimeLeft(steps, 1, {})
    left.end(steps[0], 300.0)
    assert left.left(300.0) == pytest.approx(600.0)  # not 76 times as long
    left.end(steps[2], 200.0)
    assert left.left(500.0) == pytest.approx(250.0)


def test_nothing_is_left_at_the_end():
    one = step("a")
    left = TimeLeft([one], 1, {})
    left.begin(one, 0.0)
    left.end(one, 1.0)
    assert left.left(1.0) == 0.0


def test_a_table_is_made_of_the_means_over_seeds(tmp_path):
    values = {"name": "r", "folder": str(tmp_path), "seeds": [0, 1], "problems": {"task": "arithmetic"},
              "base": {"stage": "pretrain", "task": "arithmetic"}}  # fmt: skip
    recipe = build_recipe(values, "r.yaml")
    for one in recipe.steps:
        if one.stage == "pretrain":
            part = one.config.output / "phase-1"
            part.mkdir(parents=True)
            (part / "metrics.jsonl").write_text("{}\n" * (2 + 2 * one.seed))
    took = {(0, "problems"): 1.0, (0, "base"): 10.0, (1, "base"): 20.0}
    assert timings(recipe.steps, lambda s: took.get(key_of(s))) == {
        "problems": {"seconds": 1.0}, "base": {"seconds": 15.0, "rows": 3},
    }  # fmt: skip
