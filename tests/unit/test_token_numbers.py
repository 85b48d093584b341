"""Numbers of single tokens: they add up to the parts of their row, in JSONL, in Parquet and in training's samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlt.config import RewardOptions, ScoreConfig
from rlt.data.rows import read_rows, write_rows
from rlt.models.heads import TILES, Head, token_ranks
from rlt.reward.formula import reward_parts
from rlt.reward.items import ScoredRow
from rlt.reward.placebos import with_placebos
from rlt.reward.scoring import RewardEngine
from rlt.reward.students import LocalModel
from rlt.reward.tokens import TokenNumbers, half, packed, token_texts, unpacked
from rlt.stages import score
from rlt.text.formats import load_format, render_student
from rlt.text.tokens import tokenize
from rlt.types import Explanation, Problem
from tests.byte_models import PLAIN, byte_tokenizer, save, tiny_model

TOKENIZER = byte_tokenizer(tags=load_format("stratos").tags.all())
OTHER = byte_tokenizer(["the first answer"], vocabulary=280, template=PLAIN)
FMT = load_format("stratos")


def model(seed, tokenizer=TOKENIZER):
    # Nearly uniform distributions: k3 grows with the exponential of a difference, and float16 ends at 65,504.
    return LocalModel(tiny_model(tokenizer, seed, initializer_range=0.1), tokenizer, name=f"model {seed}")


ROWS = [
    Explanation(Problem("0", "What is 2 + 3?", "The answer is 5."), "\n\nAdd three to two, which gives five.\n\n"),
    Explanation(Problem("1", "What is 1 + 1?", "It is 2, not 3 é🙂."), "\n\nOne and one: 🙂 two.\n\n"),
]


def scored(options=None, students=None, teacher=None, placebos=True):
    engine = RewardEngine(students or [model(1)], FMT, options or RewardOptions(), teacher or model(2))
    rows = engine.score(ROWS, keep_tokens=range(len(ROWS)))
    return with_placebos(engine, ROWS, rows, {0: ROWS[1].text, 1: ROWS[0].text}) if placebos else rows


def agree(row: ScoredRow, numbers, alpha=0.01):
    parts = row.parts
    assert unpacked(packed(numbers.log_probs)).astype(float).mean() == pytest.approx(
        parts.solution_log_prob_mean, abs=1e-3
    )
    assert unpacked(packed(numbers.divergence)).astype(float).mean() == pytest.approx(
        parts.explanation_kl_mean, abs=1e-3
    )
    assert numbers.log_probs.min().item() == pytest.approx(parts.solution_log_prob_min, abs=1e-6)
    assert numbers.divergence.max().item() == pytest.approx(parts.explanation_kl_max, abs=1e-6)


@pytest.mark.parametrize("options", [RewardOptions(), RewardOptions(estimator="k3"), RewardOptions(estimator="exact")])
def test_tokens_add_up_to_the_parts_of_their_row(options):
    for row in scored(options):
        (numbers,) = row.tokens.values()
        agree(row, numbers)


def test_the_divergence_of_k1_is_the_teachers_log_prob_minus_the_students():
    (numbers,) = scored()[0].tokens.values()
    assert torch.allclose(numbers.divergence, numbers.teacher - numbers.student, atol=1e-5)


def test_tokens_spell_solution_and_explanation():
    for item, row in zip(ROWS, scored(), strict=True):
        (numbers,) = row.tokens.values()
        assert "".join(numbers.solution) == item.problem.solution
        assert "".join(numbers.explanation) in item.text
        assert item.text.strip() in "".join(numbers.explanation)
        assert len(numbers.solution) == len(numbers.log_probs)
        assert len(numbers.explanation) == len(numbers.divergence)


def test_stretches_between_tokenizers_add_up_too():
    row = scored(students=[model(1, OTHER)])[0]
    (numbers,) = row.tokens.values()
    agree(row, numbers)
    assert len(numbers.explanation) == len(numbers.teacher) == len(numbers.student)


def test_placebo_log_probs_make_the_lifts():
    for row in scored():
        (numbers,) = row.tokens.values()
        for name in ("empty", "shuffled"):
            placebo = getattr(numbers, f"log_probs_{name}")
            r_ss = reward_parts(placebo, None, alpha=0.01, kl_coef=3, format_penalty=0).r_ss
            assert row.parts.r_ss - r_ss == pytest.approx(getattr(row, f"lift_over_{name}"), abs=1e-6)


def test_each_student_has_its_own():
    row = scored(students=[model(1), model(3)], placebos=False)[0]
    assert list(row.tokens) == ["model 1", "model 3"]
    assert row.to_row()["students"]["model 3"]["tokens"]["log_probs"] == packed(row.tokens["model 3"].log_probs)


def test_other_rankings_by_hand():
    # Surprisals 1, 2 and 3: mean 2. Ranks 1, 4 and 100 (of 250): mean 35.
    numbers = TokenNumbers(["s"], torch.zeros(1), ["a", "b", "c"], student=torch.tensor([-1.0, -2.0, -3.0]))
    assert numbers.summary() == {"explanation_log_prob": -2.0, "rank_surprisal": None}
    ranked = replace(numbers, explanation_ranks=[1, 4, 250])
    assert ranked.summary() == {"explanation_log_prob": -2.0, "rank_surprisal": 17.5}


def test_without_the_students_log_probs_there_is_no_ranking():
    assert TokenNumbers(["s"], torch.zeros(1), ["a"]).summary() == {
        "explanation_log_prob": None,
        "rank_surprisal": None,
    }


def test_ranks_are_places_among_the_models_own_logits():
    student = model(1)
    (first, second) = (next(iter(row.tokens.values())) for row in scored(students=[student]))
    for item, numbers in zip(ROWS, (first, second), strict=True):
        (text,) = tokenize(TOKENIZER, [render_student(FMT, TOKENIZER, item.problem, item.text)])
        logits = student.model(torch.tensor([text.ids])).logits[0]
        for span, ranks in (("solution", numbers.solution_ranks), ("explanation", numbers.explanation_ranks)):
            places = text.spans[span]
            assert ranks == [int((logits[i - 1] > logits[i - 1, text.ids[i]]).sum()) + 1 for i in places]
            assert min(ranks) >= 1


@pytest.mark.parametrize("tile", [1, 7, 300])
def test_ranks_do_not_depend_on_tiles_and_equal_logits_share_the_better_one(monkeypatch, tile):
    monkeypatch.setitem(TILES, "cpu", (2, tile))
    # Three positions over six tokens; each hidden state picks a row of logits.
    weight = torch.tensor([[3.0, 0, 1], [1, 0, 2], [2, 0, 3], [3, 0, 4], [-1, 0, 5], [0, 0, 6]])
    ranks = token_ranks(Head(weight, None, 1.0, None), torch.eye(3), torch.tensor([1, 4, 0]))
    assert ranks.tolist() == [4, 1, 6]


def test_stretches_have_no_ranks():
    (numbers,) = scored(students=[model(1, OTHER)])[0].tokens.values()
    assert numbers.explanation_ranks is None
    assert len(numbers.solution_ranks) == len(numbers.solution)


def test_none_are_kept_unless_asked_for():
    row = RewardEngine([model(1)], FMT, RewardOptions(), model(2)).score(ROWS)[0]
    assert row.tokens == {}
    assert "tokens" not in row.to_row()


def test_what_rounding_loses_is_carried_to_the_next_smaller_number():
    values = -torch.rand(4096, generator=torch.Generator().manual_seed(0)) * 20
    plain = values.numpy().astype(np.float16).astype(float).sum()
    carried = half(values).astype(float).sum()
    exact = values.double().sum().item()
    assert abs(carried - exact) < 1e-4 < abs(plain - exact)
    assert np.abs(half(values) - values.numpy()).max() < 2 * 2**-7  # twice half a step of float16 between 16 and 32


def test_a_divergence_beyond_float16_is_its_largest_number():
    assert half(torch.tensor([1e9, 1.0])).tolist() == [65504.0, 1.0]


def test_bytes_of_one_character_share_it():
    assert token_texts("aé🙂", [0, 1, 2, 2, 3, 3]) == ["a", "é", "", "🙂", ""]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_the_stage_writes_them(tmp_path, ending):
    folder = save(tmp_path / "student", tiny_model(TOKENIZER, 1), TOKENIZER)
    data = tmp_path / "data.jsonl"
    write_rows(
        data, [{"question": "2+3?", "solution": "It is 5.", "explanation": "add"}, {"question": "", "solution": ""}]
    )
    config = ScoreConfig(
        student=[folder], teacher=folder, data=data, output=tmp_path / f"scores{ending}", tokens=True, placebos=True
    )
    score.run(config)
    good, bad = [row for _, row in read_rows(config.output)]
    assert bad["tokens"] is None
    assert bad["rank_surprisal"] is None
    assert good["rank_surprisal"] > 0
    numbers = good["tokens"]["log_probs"] if ending == ".parquet" else unpacked(good["tokens"]["log_probs"])
    assert np.mean(np.array(numbers, dtype=float)) == pytest.approx(good["solution_log_prob_mean"], abs=1e-3)
    assert "".join(good["tokens"]["solution"]) == "It is 5."
