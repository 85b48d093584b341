"""The stage `gain`: which explanations are learned together, what the placebo is, what is measured and compared."""

import math

import pytest
import torch

from rlt.config import GainConfig
from rlt.data.rows import read_rows, write_rows
from rlt.errors import ConfigError, DataError, ProblemsFound
from rlt.models.loading import load_model, load_tokenizer
from rlt.pipeline import check_stage, run_stage
from rlt.results.intervals import rank_interval
from rlt.reward.students import LocalModel
from rlt.stages.gain import _Student, correlation, grouped, placebos, rated
from rlt.text.formats import load_format
from rlt.training.gain import LearningGain, heldout_rows, taught, understood
from rlt.types import Explanation, Problem
from tests.words import make_model, make_problems

FMT = load_format("words")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gain")
    return {"model": make_model(folder / "model"), "data": make_problems(folder / "problems.jsonl", 8)}


def config(world, folder, **keys):
    keys = {
        "data": world["data"],
        "heldout": world["data"],
        "scores": folder / "s.jsonl",
        "group": 2,
        "count": 8,
        **keys,
    }
    return GainConfig(output=folder / "g.jsonl", model=world["model"], format="words", **keys)


def explanation(question, text="t"):
    return Explanation(Problem(id=question, question=question, solution="s"), text, True)


def test_groups_are_neighbours_by_score_lowest_first(world, tmp_path):
    found = [(explanation(str(score)), float(score)) for score in (5, 1, 8, 3, 7, 2, 6, 4, 0)]
    groups = grouped(config(world, tmp_path), found)
    scores = [[score for _, score in group] for group in groups]
    assert [len(group) for group in scores] == [2, 2, 2, 2]
    everyone = [score for group in scores for score in group]
    assert everyone == sorted(everyone)  # 8 of the 9, drawn by the seed
    with pytest.raises(DataError, match="9 scored explanations make 3 groups of 3; a correlation needs 4"):
        grouped(config(world, tmp_path, group=3, count=9), found)


def test_the_placebo_is_an_explanation_of_another_question():
    everyone = [explanation("a", "of a"), explanation("a", "of a too"), explanation("b", "of b")]
    assert placebos(everyone, everyone, 0)[:2] == ["of b", "of b"]
    assert placebos(everyone, everyone, 0)[2] in ("of a", "of a too")
    with pytest.raises(DataError, match="one question"):
        placebos(everyone[:2], everyone[:2], 0)


def test_scores_of_other_rows_are_refused(world, tmp_path):
    write_rows(tmp_path / "s.jsonl", [{"reward": 1.0}])
    with pytest.raises(DataError, match=r"s.jsonl: has 1 rows, and .* has 8. Score the same file again"):
        rated(config(world, tmp_path), FMT)


def test_the_correlation_is_spearmans_over_groups_in_order_of_reward():
    rows = [{"over_placebo": value, "gain": value + 1} for value in (1.0, 3.0, 2.0, 4.0)]
    found = correlation(rows)
    assert found["correlation"] == pytest.approx(1 - 6 * 2 / (4 * 15))  # 1 - 6 sum d^2 / n(n^2 - 1)
    assert (found["gain"], found["over_placebo"]) == (3.5, 2.5)


def test_the_interval_of_a_rank_correlation_is_fishers_with_bonett_and_wrights_variance():
    low, high = rank_interval(0.5, 12)
    half = 1.959964 * math.sqrt(1.125 / 9)
    assert (low, high) == pytest.approx((math.tanh(math.atanh(0.5) - half), math.tanh(math.atanh(0.5) + half)))
    assert rank_interval(1.0, 8)[1] <= 1.0
    with pytest.raises(ValueError, match="3 pairs"):
        rank_interval(0.5, 3)


def test_a_student_learns_what_it_reads_and_forgets_it_wholly(world, tmp_path):
    options = config(world, tmp_path, learning_rate=1e-2)
    tokenizer = load_tokenizer(world["model"])
    student = _Student(options, load_model(world["model"], "float32", device="cpu"))
    heldout = heldout_rows(options.heldout, options.heldout_limit, FMT, tokenizer)
    assert len(heldout) == 8
    before, weights = understood(student.model, heldout), {k: v.clone() for k, v in student.model.state_dict().items()}
    # Taught the held-out problems themselves, without explanations: their solutions become more likely.
    items = [explanation_ for explanation_, _ in _rated(world, options)]
    student.learn(taught(FMT, tokenizer, items, [FMT.as_written("")] * len(items)))
    assert understood(student.model, heldout) > before + 0.1
    student.forget()
    assert understood(student.model, heldout) == before
    assert all(torch.equal(weights[name], value) for name, value in student.model.state_dict().items())


def _rated(world, options):
    write_rows(options.scores, [{"reward": float(number)} for number in range(8)])
    return rated(options, FMT)


def test_the_command_checks_its_files_before_a_model_is_loaded(world, tmp_path):
    write_rows(tmp_path / "s.jsonl", [{"r_ss": 1.0}])
    with pytest.raises(ProblemsFound, match="column `reward` is missing") as error:
        check_stage("gain", config(world, tmp_path, heldout=tmp_path / "s.jsonl"))
    assert "column `question` is missing" in str(error.value)
    assert len(error.value.problems) == 2  # explanations need no `response`


def test_the_stage_writes_a_row_per_group_and_its_correlation(world, tmp_path):
    options = config(world, tmp_path, steps=1)
    _rated(world, options)
    result = run_stage("gain", options)
    rows = [row for _, row in read_rows(tmp_path / "g.jsonl")]
    assert [row["reward"] for row in rows] == [0.5, 2.5, 4.5, 6.5]
    assert all(row["over_placebo"] == pytest.approx(row["gain"] - row["placebo"]) for row in rows)
    assert result.metrics["groups"] == 4
    assert -1 <= result.metrics["low"] <= result.metrics["correlation"] <= result.metrics["high"] <= 1
    assert run_stage("gain", options).metrics == result.metrics  # complete: not run again


def loss_of(model, example):
    return model(input_ids=torch.tensor([example.ids]), labels=torch.tensor([example.labels()])).loss


def test_the_gain_as_a_reward_is_the_product_of_two_gradients_less_the_placebos(world, tmp_path):
    """What one step of SGD on an explanation adds to the held-out log-prob, per unit of learning rate: -dH . dL."""
    tokenizer = load_tokenizer(world["model"])
    student = LocalModel(load_model(world["model"], "float32", device="cpu"), tokenizer)
    heldout = heldout_rows(world["data"], 4, FMT, tokenizer)
    items = [explanation_ for explanation_, _ in _rated(world, config(world, tmp_path))][:3]
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    gains = LearningGain(student, FMT, heldout)(items)

    def gradient(of):
        weights = [*student.model.parameters()]
        return torch.cat([part.flatten() for part in torch.autograd.grad(of, weights)])

    def product(one, text):
        (example,) = taught(FMT, tokenizer, [one], [text])
        return -float(up @ gradient(loss_of(student.model, example)))

    understanding = 0
    for row in heldout:
        labels = [token if i in row.keep[0] else -100 for i, token in enumerate(row.ids)]
        understanding -= student.model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels])).loss / 4
    up = gradient(understanding)
    for one, gain in zip(items, gains, strict=True):
        others = [other.text for other in items if other is not one]
        own = product(one, one.text)
        assert any(gain == pytest.approx(own - product(one, other), rel=0.02, abs=0.02) for other in others)
    # The student is as it was, to the bit.
    assert all(torch.equal(before[name], value) for name, value in student.model.state_dict().items())


def test_the_placebo_is_the_same_for_all_explanations_of_a_question(world, tmp_path):
    tokenizer = load_tokenizer(world["model"])
    student = LocalModel(load_model(world["model"], "float32", device="cpu"), tokenizer)
    gain = LearningGain(student, FMT, heldout_rows(world["data"], 2, FMT, tokenizer))
    items = [explanation_ for explanation_, _ in _rated(world, config(world, tmp_path))]
    alone, pair = gain(items[:1]), gain([items[0], items[0], items[1]])
    assert pair[0] == pytest.approx(pair[1], abs=1e-3)
    assert alone[0] != pytest.approx(pair[0], abs=1e-3)  # no other question: no placebo


def test_the_gain_needs_a_student_in_float32(world):
    tokenizer = load_tokenizer(world["model"])
    student = LocalModel(load_model(world["model"], "bfloat16", device="cpu"), tokenizer)
    with pytest.raises(ConfigError, match="must be loaded in float32"):
        LearningGain(student, FMT, [])
