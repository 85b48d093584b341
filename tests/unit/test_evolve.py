"""An archive of teachers: whose child is next, what is mutated, who makes it, and that cuts and company change nothing."""

import hashlib
import math
import multiprocessing
import os
import random
from dataclasses import replace

import pytest

from rlt.config import EvolveOptions, Range
from rlt.evolve import worker
from rlt.evolve.archive import Archive, storage_of
from rlt.evolve.selection import (
    Draft,
    Teacher,
    best_of,
    best_so_far,
    distribution,
    draft,
    mutation,
    parent_of,
    probabilities,
    seen_by,
)
from rlt.evolve.teachers import Measured, claimed
from rlt.evolve.worker import Chain, threshold, work

SEARCH = {"train.kl_coef": Range(low=0.5, high=8.0, log=True), "train.estimator": ["k1", "k3", "exact"]}
FIRST = {"train.kl_coef": 3.0, "train.estimator": "k1"}
OPTIONS = EvolveOptions(search=SEARCH, children=5)


def teacher(number, parent, score, stage="full", screen=None, seconds=1.0):
    return Teacher(Draft(number, parent, None, FIRST, (), f"t{number}"), score, stage, screen, seconds)


# -- who is the parent -------------------------------------------------------------------------------------------------


def test_a_parent_is_as_likely_as_sigmoid_of_its_score_over_one_plus_its_children():
    # sigmoid(0) = 1/2, halved by one child; sigmoid(ln 3) = 3/4 without children: 1/4 against 3/4.
    archive = {0: teacher(0, None, 0.5), 1: teacher(1, 0, 0.5 + math.log(3) / 10)}
    assert probabilities(archive) == pytest.approx({0: 0.25, 1: 0.75})


def test_a_diverged_teacher_has_no_weights_to_inherit():
    archive = {0: teacher(0, None, 0.5), 1: teacher(1, 0, 0.0, "diverged")}
    assert probabilities(archive) == {0: 1.0}
    assert parent_of("continue", archive, random.Random(0)) == 0


def test_baselines_take_the_best_the_first_or_the_last():
    archive = {
        0: teacher(0, None, 0.2),
        1: teacher(1, 0, 0.6),
        2: teacher(2, 1, 0.6),
        3: teacher(3, 1, 0.9, "screened"),
    }
    parents = {arm: parent_of(arm, archive, random.Random(0)) for arm in ("best", "first", "random", "continue")}
    # Of equals the earlier one; a screening score, of a shorter student, does not compete.
    assert parents == {"best": 1, "first": 0, "random": 0, "continue": 3}


def test_the_archive_draws_parents_as_often_as_their_probability_says():
    archive = {0: teacher(0, None, 0.5), 1: teacher(1, 0, 0.5 + math.log(3) / 10)}
    rng = random.Random(0)
    drawn = [parent_of("archive", archive, rng) for _ in range(2000)]
    assert drawn.count(1) / 2000 == pytest.approx(0.75, abs=0.04)  # four standard errors


def test_children_made_at_once_see_the_archive_before_the_first_of_them():
    known = {number: teacher(number, None, 0.5) for number in range(3)}
    assert [*seen_by(1, known, at_once=2)] == [*seen_by(2, known, at_once=2)] == [0]
    assert [*seen_by(3, known, at_once=2)] == [*seen_by(4, known, at_once=2)] == [0, 1, 2]
    assert seen_by(5, known, at_once=2) is None  # 3 and 4 are not made
    assert [*seen_by(3, known, at_once=1)] == [0, 1, 2]


# -- what is mutated ---------------------------------------------------------------------------------------------------


def test_a_mutation_changes_as_many_settings_as_said_and_stays_in_the_space():
    for number in range(100):
        settings, mutated = mutation(FIRST, OPTIONS, 0, number)
        assert [key for key in FIRST if settings[key] != FIRST[key]] == [*mutated]
        assert len(mutated) == 1
        assert all(settings[key] in space for key, space in SEARCH.items())
    settings, mutated = mutation(FIRST, replace_options(mutations=2), 0, 1)
    assert sorted(mutated) == sorted(FIRST)
    assert all(settings[key] != FIRST[key] for key in FIRST)


def replace_options(**changes):
    return OPTIONS.model_copy(update=changes)


def test_ranges_become_distributions_of_the_right_kind():
    whole, coarse = distribution(Range(low=4, high=16, step=4)), distribution(Range(low=0.5, high=1.0, step=0.25))
    assert (type(whole).__name__, whole.step) == ("IntDistribution", 4)
    assert (type(coarse).__name__, coarse.step) == ("FloatDistribution", 0.25)
    assert distribution(Range(low=0.1, high=1, log=True)).log
    assert distribution(["a", None]).choices == ("a", None)


def test_a_range_knows_what_lies_in_it():
    assert 8 in Range(low=4, high=16, step=4)
    assert 9 not in Range(low=4, high=16, step=4)
    assert 4.5 not in Range(low=4, high=16)
    assert 0.7 in Range(low=0.5, high=1.0)
    assert "8" not in Range(low=4, high=16)
    assert True not in Range(low=0, high=1)


def test_the_random_arm_draws_every_setting_anew_from_the_first_teacher():
    known = {0: teacher(0, None, 0.1), 1: teacher(1, 0, 0.9)}
    drawn = [draft(2, "random", seed, known, FIRST, OPTIONS) for seed in range(8)]
    assert {one.parent for one in drawn} == {0}
    assert len({one.settings["train.kl_coef"] for one in drawn}) == 8
    assert all(one.settings[key] in space for one in drawn for key, space in SEARCH.items())


def test_continue_trains_the_last_teacher_on_with_the_recipes_own_settings():
    known = {0: teacher(0, None, 0.9), 1: teacher(1, 0, 0.1)}
    child = draft(2, "continue", 0, known, FIRST, OPTIONS)
    assert (child.parent, child.settings, child.mutated) == (1, FIRST, ())


def test_equal_teachers_of_two_arms_are_one_folder():
    known = {0: teacher(0, None, 0.3)}
    ids = {arm: draft(1, arm, 0, known, FIRST, OPTIONS).id for arm in ("archive", "best", "first", "random")}
    assert ids["archive"] == ids["best"] == ids["first"] != ids["random"]
    assert draft(1, "best", 1, known, FIRST, OPTIONS).id != ids["best"]  # another seed's


# -- who makes it ------------------------------------------------------------------------------------------------------


class Made:
    """Measures that take no time: a rate that depends on the teacher alone. `dies` at a teacher's number, `diverges` too."""

    def __init__(self, folder, dies=None, diverges=None, rates=None):
        self.folder, self.dies, self.diverges, self.rates, self.asked = folder, dies, diverges, rates, []

    def prepare(self):
        return True

    def claim(self, wanted):
        return claimed(self.folder / f".{wanted.id}.lock")

    def measure(self, wanted, phase):
        self.asked.append((wanted.number, phase))
        with (self.folder / "made").open("a") as file:
            file.write(f"{wanted.id} {phase}\n")
        if wanted.number == self.dies:
            os._exit(9)
        if wanted.number == self.diverges:
            return Measured(None, 1.0)
        if self.rates is not None:
            return Measured(self.rates[wanted.number, phase], 1.0)
        return Measured(int(hashlib.sha256(wanted.id.encode()).hexdigest()[:4], 16) / 65536, 1.0)


def chains(folder, options=OPTIONS, arms=("archive", "best"), **made):
    folder.mkdir(exist_ok=True)
    storage, measures = storage_of(folder), Made(folder, **made)
    return [Chain(Archive(storage, arm, 0, options), measures, FIRST, options) for arm in arms]


def all_of(made):
    return {chain.archive.arm: chain.archive.teachers() for chain in made}


def forked(count, target, *arguments):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=target, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def work_in(folder, options=OPTIONS, dies=None):
    work(chains(folder, options, dies=dies))


def test_every_arm_gets_the_first_teacher_and_all_its_children(tmp_path):
    made = chains(tmp_path / "a")
    work(made)
    assert [[*teachers] for teachers in all_of(made).values()] == [[0, 1, 2, 3, 4, 5]] * 2
    assert all(one.draft.parent < number for one in all_of(made).values() for number, one in one.items() if number)


def test_a_worker_that_dies_loses_one_child_and_the_result_is_that_of_an_uncut_run(tmp_path):
    uncut = chains(tmp_path / "uncut")
    work(uncut)
    assert forked(1, work_in, tmp_path / "cut", OPTIONS, 3) == [9]
    cut = chains(tmp_path / "cut")
    assert [[*teachers] for teachers in all_of(cut).values()] == [[0, 1, 2]] * 2
    work(cut)
    assert all_of(cut) == all_of(uncut)


@pytest.mark.parametrize("at_once", [1, 3])
def test_several_workers_share_one_archive_and_make_each_child_once(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(worker, "POLL", 0.01)
    options = replace_options(at_once=at_once)
    alone = chains(tmp_path / "alone", options)
    work(alone)
    assert forked(3, work_in, tmp_path / "shared", options) == [0, 0, 0]
    shared = chains(tmp_path / "shared", options)
    assert all_of(shared) == all_of(alone)
    assert [len(chain.archive.study.get_trials()) for chain in shared] == [6, 6]
    assert sorted(lines(tmp_path / "shared")) == sorted(lines(tmp_path / "alone"))


def lines(folder):
    return (folder / "made").read_text().splitlines()


def test_more_children_are_added_to_those_that_are_there(tmp_path):
    work(chains(tmp_path / "a", replace_options(children=2)))
    more, whole = chains(tmp_path / "a"), chains(tmp_path / "b")
    work(more)
    work(whole)
    assert all_of(more) == all_of(whole)


def test_a_child_that_fails_the_screening_keeps_that_score_and_gets_no_more(tmp_path):
    options = replace_options(screen="screen", screen_quantile=0.5, children=2)
    rates = {(0, "screen"): 0.2, (0, "score"): 0.4, (1, "screen"): 0.1, (2, "screen"): 0.3, (2, "score"): 0.5}
    made = chains(tmp_path / "a", options, ["first"], rates=rates)
    work(made)
    teachers = all_of(made)["first"]
    assert [(one.score, one.stage) for one in teachers.values()] == [(0.4, "full"), (0.1, "screened"), (0.5, "full")]
    assert made[0].measures.asked == [(0, "screen"), (0, "score"), (1, "screen"), (2, "screen"), (2, "score")]


def test_the_screening_threshold_is_a_quantile_of_the_screening_scores():
    seen = {number: teacher(number, None, 0.9, screen=screen) for number, screen in enumerate((0.1, 0.2, 0.4, None))}
    assert threshold(seen, 0.5) == pytest.approx(0.2)
    assert threshold(seen, 0.25) == pytest.approx(0.15)
    assert threshold({}, 0.25) == 0.0


def test_a_child_that_diverges_is_kept_with_a_score_of_zero(tmp_path):
    made = chains(tmp_path / "a", arms=["continue"], diverges=2)
    work(made)
    teachers = all_of(made)["continue"]
    assert (teachers[2].score, teachers[2].stage) == (0.0, "diverged")
    assert teachers[3].draft.parent == 1


def test_the_final_questions_are_asked_of_the_first_and_the_best_alone(tmp_path):
    rates = {(number, phase): (0.1, 0.6, 0.3)[number] for number in range(3) for phase in ("score", "final")}
    made = chains(tmp_path / "a", replace_options(final="final", children=2), ["first"], rates=rates)
    work(made)
    assert made[0].archive.final == {0: 0.1, 1: 0.6}
    assert [number for number, phase in made[0].measures.asked if phase == "final"] == [0, 1]


# -- what is reported --------------------------------------------------------------------------------------------------


def test_the_best_so_far_counts_full_evaluations_alone():
    scores = [teacher(0, None, 0.2), teacher(1, 0, 0.8, "screened"), teacher(2, 0, 0.5), teacher(3, 2, 0.4)]
    known = dict(enumerate(scores))
    assert best_so_far(known) == [0.2, 0.2, 0.5, 0.5]
    assert best_of(known) == 2


def test_a_tree_has_each_teacher_below_its_parent_with_what_was_mutated():
    from rlt.evolve.report import tree

    child = teacher(1, 0, 0.5)
    child = replace(child, draft=replace(child.draft, mutated=("train.kl_coef",), settings={"train.kl_coef": 0.5}))
    known = {0: teacher(0, None, 0.2), 1: child, 2: teacher(2, 0, 0.1, "screened"), 3: teacher(3, 1, 0.4)}
    assert [*tree(known)] == [
        "  0  0.200",
        "*   1 <- 0  0.500  train.kl_coef=0.5",
        "      3 <- 1  0.400",
        "    2 <- 0  0.100 (screened)",
    ]
