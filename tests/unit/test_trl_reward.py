"""The reward as a TRL reward function: what a trainer gives and gets; the same as scoring the same completions."""

import random

import pytest
import torch
from byte_models import byte_tokenizer, tiny_model

from rlt.config import AccuracyConfig, RewardOptions
from rlt.errors import ConfigError, DataError, ScoringError
from rlt.models.logprobs import Row, hidden_states, output_head, token_logprobs
from rlt.reward.scoring import RewardEngine
from rlt.reward.students import LocalModel
from rlt.reward.tokens import unpacked
from rlt.reward.trl import TeacherReward, teacher_rows
from rlt.text.formats import load_format, render_student
from rlt.types import Problem

FMT = load_format("stratos").model_copy(update={"teacher_system_prompt": "Teach.", "student_system_prompt": None})
CLOSE = FMT.tags.explanation.close
TOKENIZER = byte_tokenizer(tags=FMT.tags.all())
STUDENT = LocalModel(tiny_model(TOKENIZER, 0), TOKENIZER, name="student")
POLICY = tiny_model(TOKENIZER, 1)
PROBLEMS = [Problem(str(i), f"What is {i // 2}?", "It is 5.") for i in range(6)]
PROMPTS = [row["prompt"] for row in teacher_rows(PROBLEMS, FMT, TOKENIZER)]
PROMPT_IDS = [TOKENIZER.encode(prompt, add_special_tokens=False) for prompt in PROMPTS]
COLUMNS = {"question": [p.question for p in PROBLEMS], "solution": [p.solution for p in PROBLEMS]}
TEXTS = [random.Random(i).choice(["So ", "Add é 😀 "]) * (i + 1) + CLOSE * (i % 2) for i in range(6)]


def sampled(text, canonical=True):
    written, closed = text.removesuffix(CLOSE), text.endswith(CLOSE)
    pieces = [written] if canonical else list(written)
    ids = [token for piece in pieces for token in TOKENIZER.encode(piece, add_special_tokens=False)]
    return ids + TOKENIZER.encode(CLOSE) * closed + [TOKENIZER.eos_token_id] * closed


def policy_rows(completions):
    return [Row([*p, *c], [range(len(p), len(p) + len(c))]) for p, c in zip(PROMPT_IDS, completions, strict=True)]


def test_plain_trl_gets_r_ss_and_the_penalty():
    reward = TeacherReward([STUDENT], TOKENIZER, FMT)
    got = reward(PROMPTS, TEXTS, [sampled(text) for text in TEXTS], **COLUMNS, trainer_state=None)
    items = [FMT.completed(p, text) for p, text in zip(PROBLEMS, TEXTS, strict=True)]
    expected = RewardEngine([STUDENT], FMT, RewardOptions()).score(items)
    assert got == pytest.approx([row.parts.reward for row in expected], abs=1e-4)
    assert all(row.parts.r_kl is None for row in reward.last_rows)


def test_samples_keep_their_tokens_if_asked_for():
    reward = TeacherReward([STUDENT], TOKENIZER, FMT, keep_samples=2, tokens=True)
    reward(PROMPTS, TEXTS, [sampled(text) for text in TEXTS], **COLUMNS)
    assert len(reward.last_samples) == 2
    for sample in reward.last_samples:
        tokens = sample["tokens"]
        assert "".join(tokens["solution"]) == sample["solution"]
        mean = unpacked(tokens["log_probs"]).astype(float).mean()
        assert mean == pytest.approx(sample["solution_log_prob_mean"], abs=1e-2)
        assert len(tokens["solution_ranks"]) == len(tokens["solution"])
    silent = TeacherReward([STUDENT], TOKENIZER, FMT, keep_samples=2)
    silent(PROMPTS, TEXTS, [sampled(text) for text in TEXTS], **COLUMNS)
    assert all("tokens" not in sample for sample in silent.last_samples)


@pytest.mark.parametrize("estimator", ["k1", "k3", "exact"])
def test_with_the_policys_side_it_is_what_rlt_score_gives(estimator):
    options = RewardOptions(estimator=estimator)
    reward = TeacherReward([STUDENT], TOKENIZER, FMT, options)
    completions = [sampled(text) for text in TEXTS]
    rows = policy_rows(completions)
    if estimator == "exact":
        known = {"policy_hidden": hidden_states(POLICY, rows)}
        reward.policy_head = output_head(POLICY)
    else:
        known = {"policy_logprobs": token_logprobs(POLICY, rows, temperature=0.7)}
    got = reward(PROMPTS, TEXTS, completions, **COLUMNS, **known)
    teacher = LocalModel(POLICY, TOKENIZER, name="teacher")
    items = [FMT.completed(p, text) for p, text in zip(PROBLEMS, TEXTS, strict=True)]
    expected = RewardEngine([STUDENT], FMT, options, teacher).score(items)
    assert got == pytest.approx([row.parts.reward for row in expected], rel=1e-4)
    counts = [row.parts.explanation_tokens for row in reward.last_rows]
    assert counts == [row.parts.explanation_tokens for row in expected]


def test_tokens_that_were_sampled_are_not_tokenized_again():
    word = next(token for token in TOKENIZER.get_vocab() if len(token) > 2 and token.isalpha() and token.isascii())
    letters = [TOKENIZER.convert_tokens_to_ids(letter) for letter in word] + TOKENIZER.encode(CLOSE)
    reward = TeacherReward([STUDENT], TOKENIZER, FMT, placebos=0)
    known = torch.arange(-1.0, -1 - len(letters), -1)  # -1, -2, ... for the letters; the tag's does not count
    reward(PROMPTS[:1], [word + CLOSE], [letters], question=["What?"], solution=["5"], policy_logprobs=[known])
    (row,) = reward.last_rows
    item = FMT.completed(Problem("0", "What?", "5"), word + CLOSE)
    rendered = render_student(FMT, TOKENIZER, item.problem, item.text)
    ids = TOKENIZER.encode(rendered.text, add_special_tokens=False)
    at = ids.index(
        TOKENIZER.convert_tokens_to_ids(word), len(TOKENIZER.encode(rendered.text[: rendered.spans["explanation"][0]]))
    )
    (student,) = token_logprobs(STUDENT.model, [Row(ids, [range(at, at + 1)])], temperature=0.7)
    # One stretch: the student's single token against the sum over the letters that were sampled.
    assert row.parts.explanation_kl_mean == pytest.approx(known[: len(word)].sum().item() - student.item(), abs=1e-4)
    assert row.parts.explanation_tokens == 1


def test_a_wrong_number_of_log_probs_is_refused():
    reward = TeacherReward([STUDENT], TOKENIZER, FMT)
    with pytest.raises(ConfigError, match="9 values for 1 sampled tokens"):
        reward(
            PROMPTS[:1], TEXTS[:1], [sampled("So")], question=["a"], solution=["b"], policy_logprobs=[torch.zeros(9)]
        )


def test_columns_that_are_missing_are_named():
    with pytest.raises(DataError, match="`question` and `solution`"):
        TeacherReward([STUDENT], TOKENIZER, FMT)(PROMPTS, TEXTS, [sampled(text) for text in TEXTS])


def test_a_row_that_fails_gets_none_and_a_batch_that_fails_raises():
    short = LocalModel(STUDENT.model, TOKENIZER, name="short", context=330)
    reward = TeacherReward([short], TOKENIZER, FMT)
    ids = [sampled("So 5."), sampled("So " * 300)]
    two = {"question": ["a", "a"], "solution": ["b", "b"]}
    got = reward(["p", "p"], ["", ""], ids, **two)
    assert (got[0] is None, got[1]) == (False, None)
    with pytest.raises(ScoringError, match="none of 1 completions"):
        reward(["p"], [""], ids[1:], question=["a"], solution=["b"])


@pytest.mark.parametrize(
    ("elsewhere", "raises"), [((4, 3, ["long"]), False), ((4, 4, ["long"]), True), ((0, 0, []), True)]
)
def test_a_batch_fails_only_where_no_process_scored_any_of_it(monkeypatch, elsewhere, raises):
    # Rows, failed ones and the first error of another process; this one has one row, which is too long.
    def gather(found, ours):
        assert ours[:2] == (1, 1)
        found[:] = [elsewhere, ours]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    reward = TeacherReward(
        [LocalModel(STUDENT.model, TOKENIZER, name="short", context=330)], TOKENIZER, FMT, placebos=0
    )
    call = {"completion_ids": [sampled("So " * 300)], "question": ["a"], "solution": ["b"]}
    if raises:
        with pytest.raises(ScoringError, match=f"none of {elsewhere[0] + 1} completions could be scored; the first: "):
            reward(["p"], [""], **call)
    else:
        assert reward(["p"], [""], **call) == [None]


def test_a_process_without_completions_waits_for_nobody():
    assert TeacherReward([STUDENT], TOKENIZER, FMT)([], [], [], question=[], solution=[]) == []


def test_the_seed_reaches_the_solutions_that_students_sample(monkeypatch):
    seeds = []
    monkeypatch.setattr("rlt.reward.scoring.student_accuracy", lambda *arguments: seeds.append(arguments[5]) or [0.5])
    options = RewardOptions(accuracy=AccuracyConfig(task="arithmetic"))
    TeacherReward([STUDENT], TOKENIZER, FMT, options, seed=7, placebos=0)(
        ["p"], [""], [sampled("So")], question=["a"], solution=["b"], answer=["5"]
    )
    assert seeds == [7]


def test_parts_spreads_shares_and_lifts_are_logged_and_samples_kept():
    reward = TeacherReward([STUDENT], TOKENIZER, FMT, placebos=3, keep_samples=2)
    logged: dict[str, float] = {}
    reward(PROMPTS, TEXTS, [sampled(text) for text in TEXTS], **COLUMNS, log_metric=logged.__setitem__)
    rewards = [row.parts.reward for row in reward.last_rows]
    assert logged["rlt/reward"] == pytest.approx(sum(rewards) / 6)
    spread = sum(abs(a - b) / 2**0.5 for a, b in zip(rewards[::2], rewards[1::2], strict=True)) / 3
    assert logged["rlt/reward_spread"] == pytest.approx(spread)
    assert (logged["rlt/unclosed"], logged["rlt/failed"]) == (0.5, 0)
    sample = [row for row in reward.last_rows if row.lift_over_empty is not None]
    assert len(sample) == 3
    for name in ("empty", "shuffled"):
        lifts = [getattr(row, f"lift_over_{name}") for row in sample]
        assert logged[f"rlt/lift_over_{name}"] == pytest.approx(sum(lifts) / 3)
        earned = sum(row.parts.r_ss for row in sample) / 3 - sum(lifts) / 3
        assert logged[f"rlt/r_ss_{name}"] == pytest.approx(earned)
    assert [sample["question"] for sample in reward.last_samples] == ["What is 0?", "What is 1?"]


def test_each_source_of_a_mixture_has_its_own_numbers():
    reward = TeacherReward([STUDENT], TOKENIZER, FMT, placebos=6)
    logged, source = {}, ["a", "a", "b", "b", "b", "b"]
    ids = [sampled(text) for text in TEXTS]
    got = reward(PROMPTS, TEXTS, ids, **COLUMNS, source=source, log_metric=logged.__setitem__)
    assert logged["rlt/source/a/reward"] == pytest.approx((got[0] + got[1]) / 2)
    assert logged["rlt/source/b/reward"] == pytest.approx(sum(got[2:]) / 4)
    assert logged["rlt/source/b/unclosed"] == 0.5  # TEXTS close at odd places
    assert logged["rlt/source/b/share"] == pytest.approx(4 / 6)
    lifts = [row.lift_over_empty for row in reward.last_rows[2:]]
    assert logged["rlt/source/b/lift_over_empty"] == pytest.approx(sum(lifts) / 4)
    assert [sample["source"] for sample in reward.last_samples] == ["a", "a", "b", "b"]
