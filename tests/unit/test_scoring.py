"""The engine: agreement with the published way, invariance to batching, several students, errors, placebos."""

import json
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from byte_models import CHATML, PLAIN, byte_tokenizer, published, tiny_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plain_reward import plain_reward
from real_tokenizers import real_tokenizer

from rlt.config import AccuracyConfig, RewardOptions
from rlt.errors import ConfigError, ScoringError, ServerError
from rlt.reward.items import StudentLost
from rlt.reward.placebos import next_text, with_placebos
from rlt.reward.scoring import RewardEngine
from rlt.reward.students import LocalModel
from rlt.text.formats import load_format, render_student
from rlt.types import Problem

FMT = load_format("stratos").model_copy(update={"teacher_system_prompt": "Teach.", "student_system_prompt": None})
CLOSE = FMT.tags.explanation.close
PIECES = [
    "So",
    "the",
    " first",
    "step 😀",
    "\n\n",
    " 5",
    "é",
    "add.",
    ",\n",
    "<|im_end|>",
    "<|begin_of_thought|>",
    " ",
    "中文",
]
TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces_math500_sample.jsonl"


def local(tokenizer, seed, name="student", **options):
    shape = {key: options.pop(key) for key in ("tie_word_embeddings", "max_position_embeddings") if key in options}
    return LocalModel(tiny_model(tokenizer, seed, **shape), tokenizer, name=name, **options)


def rows_of(count, seed=0):
    rng, rows = random.Random(seed), []
    for i in range(count):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 30)))
        row = {"question": f"What is {i} + 2?", "solution": "".join(rng.choice(PIECES[:9]) for _ in range(5)) + "5"}
        column, value = [("explanation", text), ("completion", text + CLOSE + " more"), ("completion", text)][i % 3]
        rows.append({**row, column: value})
    return rows


def item_of(row):
    problem = Problem("0", row["question"], row["solution"], answer="5")
    if "explanation" in row:
        return FMT.finished(problem, row["explanation"])
    return FMT.completed(problem, row["completion"])


TAGS_AS_TOKENS = byte_tokenizer(tags=FMT.tags.all())
STUDENT, TEACHER = local(TAGS_AS_TOKENS, 0), local(TAGS_AS_TOKENS, 1, "teacher")
ENGINE = RewardEngine([STUDENT], FMT, RewardOptions(), TEACHER)


def numbers(row):
    return {name: value for name, value in row.parts.to_row().items() if isinstance(value, float)}


@pytest.mark.parametrize("name", ["qwen25", "llama3"])
def test_every_column_agrees_with_the_published_way(name):
    # Its code knows tokenizers of Qwen and Llama only. Where another keeps the padding before an explanation apart from the
    # tag, it counts as the explanation's there, and not here: no teacher has written it.
    tokenizer = real_tokenizer(name)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    student, teacher = (LocalModel(tiny_model(tokenizer, seed, **shape), tokenizer, name=str(seed)) for seed in (0, 1))
    rows = [
        row for row in rows_of(24) if not (row.get("completion") or row.get("explanation")).startswith(("\n", ",\n"))
    ]
    scored = RewardEngine([student], FMT, RewardOptions(), teacher).score([item_of(row) for row in rows])
    for row, result in zip(rows, scored, strict=True):
        expected = published(FMT, tokenizer, student.model, teacher.model, row)
        got = result.to_row()
        assert got["error"] is None
        assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_tags_that_merge_with_their_neighbours_leave_those_tokens_out():
    # Without word splitting the tag's end and the padding are one token, on both sides; the solution's first one too.
    merging = byte_tokenizer(text=("|>\n\n", "|>It", "\n\n<|", ".<|") * 30, vocabulary=270, split_words=False)
    text = "\n\nSo.\n\n"
    assert merging.tokenize("thought|>" + text + "<|end")[-9:] != merging.tokenize(text)
    engine = RewardEngine([local(merging, 0)], FMT, RewardOptions(), local(merging, 1))
    row = {"question": "What?", "solution": "It is.", "explanation": "So."}
    (scored,) = engine.score([item_of(row)])
    assert scored.parts.solution_tokens == len(" is")
    assert scored.parts.explanation_tokens == len("So.")


# -- against one row at a time, all logits, spans by offsets -----------------------------------------------------------


def plain(tokenizer, item):
    """`(r_ss, r_kl)` under PLAIN_MODELS, or None for a term that has no token."""
    student, teacher = ((tokenizer, model) for model in PLAIN_MODELS[tokenizer])
    return plain_reward(FMT, student, teacher, item.problem, item.text, item.closed)


# What a byte-level BPE learns decides what merges: nothing, words, the tags' ends with their neighbours, bytes of letters.
TOKENIZERS = {
    "bytes": byte_tokenizer(vocabulary=256),
    "words": byte_tokenizer(vocabulary=400),
    "tags with paddings": byte_tokenizer(
        text=("|>\n\n", "\n\n<|", "|>So", "5<|") * 30, vocabulary=275, split_words=False
    ),
    "tags with letters": byte_tokenizer(text=("|>é", "é<|", "😀😀", "|>\n\né") * 30, vocabulary=280, split_words=False),
    "one tag with paddings": byte_tokenizer(
        text=("thought|>\n\n", "thought|>\n", "\n\n<|end_of_t") * 30, vocabulary=290, split_words=False
    ),
    "tags as tokens": byte_tokenizer(tags=FMT.tags.all(), vocabulary=300, split_words=False),
}
PLAIN_MODELS = {tokenizer: (tiny_model(tokenizer, 2), tiny_model(tokenizer, 3)) for tokenizer in TOKENIZERS.values()}
TEXTS = st.lists(
    st.sampled_from(["So", " 5", "\n", "\n\n", "é", "😀", "<|", "|>", "<", ".", "中", " "]), max_size=8
).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS | st.text(max_size=40), solution=TEXTS | st.text(max_size=8), closed=st.booleans())
@settings(max_examples=30)
def test_any_text_under_any_byte_level_tokenizer_is_what_one_row_with_all_logits_gives(name, text, solution, closed):
    assume(solution)
    tokenizer = TOKENIZERS[name]
    student, teacher = (LocalModel(m, tokenizer, name=n) for m, n in zip(PLAIN_MODELS[tokenizer], "st", strict=True))
    item = FMT.completed(Problem("0", "What?", solution), text + CLOSE * closed)
    r_ss, r_kl = plain(tokenizer, item)
    (row,) = RewardEngine([student], FMT, RewardOptions(), teacher).score([item])
    if r_ss is None:
        assert "no token of the solution lies inside its tags" in row.parts.error
    elif r_kl is None and text.removesuffix(FMT.padding):
        assert "no token of the explanation can be compared" in row.parts.error
    else:
        assert row.parts.r_ss == pytest.approx(r_ss, abs=1e-3)
        assert row.parts.r_kl == pytest.approx(r_kl or 0.0, abs=1e-3)


@given(seed=st.integers(0, 1000), vocabulary=st.integers(256, 420), split=st.booleans())
@settings(max_examples=5)
def test_batches_and_order_give_the_same_numbers(seed, vocabulary, split):
    rng = random.Random(seed)
    text = ["".join(rng.choice(PIECES) for _ in range(40)), *FMT.tags.all()]
    tokenizer = byte_tokenizer(text=text, vocabulary=vocabulary, split_words=split)
    student, teacher = local(tokenizer, seed), local(tokenizer, seed + 1)
    engine = RewardEngine([student], FMT, RewardOptions(), teacher)
    items = [item_of(row) for row in rows_of(7, seed)]
    together = [numbers(row) for row in engine.score(items)]
    assert any("r_kl" in row for row in together)
    for i, item in enumerate(items):
        assert numbers(engine.score([item])[0]) == pytest.approx(together[i], abs=1e-4)
    order = rng.sample(range(7), 7)
    for student.batch_tokens in (1, 300, 900):
        teacher.batch_tokens = student.batch_tokens
        for i, row in zip(order, engine.score([items[i] for i in order]), strict=True):
            assert numbers(row) == pytest.approx(together[i], abs=1e-4)


def test_a_row_is_the_same_alone_or_among_a_thousand():
    engine = RewardEngine([STUDENT], FMT, RewardOptions())
    items = [FMT.finished(Problem("0", "a", f"{i}"), "b" * (i % 7)) for i in range(1000)]
    among = engine.score(items)
    for i in (0, 499, 998):
        assert numbers(among[i]) == pytest.approx(numbers(engine.score([items[i]])[0]), abs=1e-4)


def test_what_follows_the_solution_does_not_move_it():
    item = item_of(rows_of(1)[0])
    following = "{% if loop.last %} and more follows{% endif %}<|im_end|>"
    other = byte_tokenizer(tags=FMT.tags.all(), template=CHATML.replace("<|im_end|>", following))
    (text,) = (render_student(FMT, t, item.problem, item.text).text for t in [other])
    assert text.endswith("<|end_of_solution|> and more follows<|im_end|>\n")
    student = LocalModel(STUDENT.model, other, name="student")
    (one,), (two,) = (RewardEngine([s], FMT, RewardOptions()).score([item]) for s in (STUDENT, student))
    assert numbers(one) == pytest.approx(numbers(two), abs=1e-5)


def test_without_a_teacher_there_is_r_ss_alone():
    (row,) = RewardEngine([STUDENT], FMT, RewardOptions()).score([item_of(rows_of(1)[0])])
    assert row.parts.reward == row.parts.r_ss
    assert row.parts.r_kl is row.parts.explanation_kl_mean is row.parts.explanation_kl_max is None


def test_an_unclosed_explanation_costs_the_penalty_and_is_scored_as_if_closed():
    problem = Problem("0", "What?", "It is 5.")
    cut, closed = ENGINE.score([FMT.completed(problem, text) for text in ("So 5.", "So 5." + CLOSE)])
    assert cut.parts.reward == pytest.approx(closed.parts.reward - 1, abs=1e-5)
    assert cut.parts.format_penalty == -1


# -- students ----------------------------------------------------------------------------------------------------------


def test_a_student_of_another_family_has_its_own_tokenizer_and_template():
    other = byte_tokenizer(vocabulary=280, template=PLAIN)
    engine = RewardEngine([local(other, 5)], FMT, RewardOptions(), TEACHER)
    (row,) = engine.score([item_of(rows_of(1)[0])])
    alone = RewardEngine([local(other, 5)], FMT, RewardOptions()).score([item_of(rows_of(1)[0])])[0]
    assert row.parts.r_ss == pytest.approx(alone.parts.r_ss)
    assert math.isfinite(row.parts.r_kl)
    assert row.parts.explanation_tokens > 0


def test_several_students_give_their_mean_or_smallest_and_each_ones_parts():
    second = local(byte_tokenizer(vocabulary=280, template=PLAIN), 5, "second")
    item = item_of(rows_of(1)[0])
    single = [RewardEngine([s], FMT, RewardOptions(), TEACHER).score([item])[0].parts for s in (STUDENT, second)]
    for aggregate, expected in (("mean", sum(p.reward for p in single) / 2), ("min", min(p.reward for p in single))):
        (row,) = RewardEngine([STUDENT, second], FMT, RewardOptions(aggregate=aggregate), TEACHER).score([item])
        assert row.parts.reward == pytest.approx(expected, abs=1e-5)
        assert row.students["second"].r_kl == pytest.approx(single[1].r_kl, abs=1e-5)


# -- estimators --------------------------------------------------------------------------------------------------------


def test_exact_kl_is_that_of_whole_distributions_at_every_token():
    item = item_of(rows_of(1)[0])
    (row,) = RewardEngine([STUDENT], FMT, RewardOptions(estimator="exact", score_temperature=1.0), TEACHER).score(
        [item]
    )
    from rlt.text.formats import render_student, render_teacher
    from rlt.text.tokens import tokenize

    (ours,) = tokenize(TAGS_AS_TOKENS, [render_student(FMT, TAGS_AS_TOKENS, item.problem, item.text)])
    (theirs,) = tokenize(TAGS_AS_TOKENS, [render_teacher(FMT, TAGS_AS_TOKENS, item.problem, item.text)])
    with torch.no_grad():
        p, q = (
            m.model(torch.tensor([t.ids])).logits[0].log_softmax(-1)[[i - 1 for i in t.spans["explanation"]]]
            for m, t in ((TEACHER, theirs), (STUDENT, ours))
        )
    kl = (p.exp() * (p - q)).sum(-1)
    assert row.parts.explanation_kl_mean == pytest.approx(kl.mean().item(), rel=1e-4)
    assert row.parts.explanation_kl_max == pytest.approx(kl.max().item(), rel=1e-4)
    sampled = RewardEngine([STUDENT], FMT, RewardOptions(score_temperature=1.0), TEACHER).score([item])[0]
    assert row.parts.r_ss == pytest.approx(sampled.parts.r_ss, abs=1e-5)


def test_exact_kl_of_output_layers_that_are_padded_differently_leaves_the_padding_out():
    # One tokenizer, 5 and 21 rows of the output layer beyond it, as Qwen2.5's 3B and 7B; their biases make them unlikely.
    options = RewardOptions(estimator="exact", score_temperature=1.0)
    padded = LocalModel(
        tiny_model(TAGS_AS_TOKENS, 1, vocab_size=len(TAGS_AS_TOKENS) + 21), TAGS_AS_TOKENS, name="padded"
    )
    same = LocalModel(tiny_model(TAGS_AS_TOKENS, 1), TAGS_AS_TOKENS, name="same")
    same.model.load_state_dict({
        name: value[: len(TAGS_AS_TOKENS) + 5] if value.shape[0] == len(TAGS_AS_TOKENS) + 21 else value
        for name, value in padded.model.state_dict().items()
    })  # fmt: skip
    items = [item_of(row) for row in rows_of(3)]
    rows, expected = (RewardEngine([STUDENT], FMT, options, teacher).score(items) for teacher in (padded, same))
    for row, other in zip(rows, expected, strict=True):
        assert numbers(row) == pytest.approx(numbers(other), abs=1e-5)


def test_exact_kl_between_different_tokenizers_is_refused():
    with pytest.raises(ConfigError, match="differs from the teacher's"):
        RewardEngine([local(byte_tokenizer(vocabulary=280), 0)], FMT, RewardOptions(estimator="exact"), TEACHER)


# -- rows that cannot be scored ----------------------------------------------------------------------------------------


def test_a_row_too_long_for_the_context_fails_alone():
    engine = RewardEngine([local(TAGS_AS_TOKENS, 0, context=300)], FMT, RewardOptions())
    short, long = (
        {"question": "a", "solution": "b", "explanation": "c"},
        {"question": "a", "solution": "b", "explanation": "c " * 300},
    )
    good, bad = engine.score([item_of(short), item_of(long)])
    assert good.parts.error is None
    assert "the context of student is 300" in bad.parts.error
    assert bad.parts.reward is None


def test_nan_from_a_model_fails_the_row_and_says_so():
    broken = local(TAGS_AS_TOKENS, 0)
    token = TAGS_AS_TOKENS.encode("é", add_special_tokens=False)[0]
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[token] = math.nan
    problem = Problem("0", "What?", "It is 5.")
    engine = RewardEngine([broken], FMT, RewardOptions(), TEACHER)
    good, bad = engine.score([FMT.finished(problem, text) for text in ("plain", "caf é")])
    assert good.parts.error is None
    assert "NaN" in bad.parts.error
    assert bad.parts.reward is None


def test_a_token_without_embedding_fails_the_row():
    small = LocalModel(tiny_model(TAGS_AS_TOKENS, 0, vocab_size=334), TAGS_AS_TOKENS, name="small")
    (row,) = RewardEngine([small], FMT, RewardOptions()).score([item_of(rows_of(1)[0])])
    assert "unknown to small, which has 334 embeddings" in row.parts.error


def test_real_traces_are_scored_or_named():
    if not TRACES.is_file():
        pytest.skip("../shared/data/traces_math500_sample.jsonl is not here")
    items, named = [], Counter()
    for line in TRACES.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        missing = [tag for tag in (*FMT.tags.thought, *FMT.tags.solution) if tag not in row["response"]]
        if missing:
            named["no tags at all" if len(missing) == 4 else f"no {missing[0]}"] += 1
            continue
        thought, solution = FMT.parse_response(row["response"])
        items.append(FMT.finished(Problem("0", row["question"], solution), thought.strip("\n")))
    thought, solution = FMT.tags.thought, FMT.tags.solution
    assert named == {
        "no tags at all": 74,
        f"no {thought.close}": 41,
        f"no {solution.close}": 5,
        f"no {thought.open}": 1,
    }
    tokenizer = byte_tokenizer(text=[item.text for item in items[:20]], vocabulary=1500, tags=FMT.tags.all())
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = tiny_model(tokenizer, 0, max_position_embeddings=16384, **shape)  # the published context
    scored = RewardEngine([LocalModel(model, tokenizer, name="small")], FMT, RewardOptions()).score(items)
    assert len(scored) + named.total() == 200
    assert Counter(row.parts.error for row in scored) == {None: 79}


def test_nan_fails_its_own_row_only():
    broken = local(TAGS_AS_TOKENS, 0)
    (token,) = TAGS_AS_TOKENS.encode("Q", add_special_tokens=False)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[token] = math.nan
    items = [FMT.finished(Problem("0", "what?", "it is 5."), text) for text in ("one", "Q", "two", "three")]
    rows = RewardEngine([broken], FMT, RewardOptions(), TEACHER).score(items)
    assert ["NaN" in (row.parts.error or "") for row in rows] == [False, True, False, False]
    for i in (0, 2, 3):
        assert numbers(rows[i]) == pytest.approx(numbers(ENGINE.score([items[i]])[0]), abs=1e-4)


def test_an_explanation_of_which_nothing_can_be_compared_is_an_error_and_an_empty_one_is_not():
    # One token holds the tag's end and the padding, another the next tag's beginning: nothing is left of "<".
    merging = byte_tokenizer(text=("|>\n\n<", "\n\n<|", "<<|") * 30, vocabulary=275, split_words=False)
    engine = RewardEngine([local(merging, 0)], FMT, RewardOptions(), local(merging, 1))
    problem = Problem("0", "What?", "It is 5.")
    bad, empty = engine.score([FMT.completed(problem, text + CLOSE) for text in ("<", "")])
    assert "no token of the explanation can be compared" in bad.parts.error
    assert (empty.parts.error, empty.parts.r_kl) == (None, 0.0)


class Remote:
    """STUDENT behind a server: the second row's request fails, or from it on the server is gone."""

    tokenizer, context, name = TAGS_AS_TOKENS, 2048, "remote"

    def __init__(self, error):
        self.error = error

    def check(self, options):
        pass

    def logprobs(self, rows, temperature, progress=None):
        columns = list(STUDENT.logprobs(rows, temperature, progress))
        last = len(rows) if isinstance(self.error, ServerError) else 2
        return columns[:1] + [self.error] * (last - 1) + columns[last:]


def test_a_served_request_that_fails_costs_its_row_alone():
    items = [item_of(row) for row in rows_of(4)]
    rows = RewardEngine([Remote(ScoringError("it answers 400"))], FMT, RewardOptions(), TEACHER).score(items)
    assert [row.parts.error for row in rows] == [None, "remote: it answers 400", None, None]
    for i in (0, 2, 3):
        assert numbers(rows[i]) == pytest.approx(numbers(ENGINE.score([items[i]])[0]), abs=1e-4)


def test_a_server_that_is_gone_ends_the_scoring_with_the_rows_before():
    items = [item_of(row) for row in rows_of(4)]
    items.insert(0, replace(items[0], text="long " * 3000))  # an error of its own, before
    engine = RewardEngine([Remote(ServerError("gone"))], FMT, RewardOptions())
    with pytest.raises(StudentLost, match="gone") as caught:
        engine.score(items)
    assert [row.parts.error is None for row in caught.value.rows] == [False, True]
    with pytest.raises(StudentLost) as caught:
        with_placebos(engine, items[1:], ENGINE.score(items[1:]), dict.fromkeys(range(4)))
    assert caught.value.rows == []


# -- placebos and accuracy ---------------------------------------------------------------------------------------------


def test_lifts_are_differences_to_an_empty_and_to_another_questions_explanation():
    items = [item_of(row) for row in rows_of(3)]
    rows = with_placebos(ENGINE, items, ENGINE.score(items), {0: items[2].text})
    plain = RewardEngine([STUDENT], FMT, RewardOptions())
    r_ss, empty, other = (
        row.parts.r_ss
        for row in plain.score([items[0], replace(items[0], text=FMT.padding), replace(items[0], text=items[2].text)])
    )
    assert rows[0].lift_over_empty == pytest.approx(r_ss - empty, abs=1e-5)
    assert rows[0].lift_over_shuffled == pytest.approx(r_ss - other, abs=1e-5)
    assert rows[1].lift_over_empty is None


def test_a_lift_over_a_placebo_that_cannot_be_read_is_none_and_is_not_tried_again():
    items = [item_of(row) for row in rows_of(3)]
    seen = []
    others = {0: "long " * 3000, 1: None, 2: items[0].text}
    rows = with_placebos(ENGINE, items, ENGINE.score(items), others, lambda *call: seen.append(call))
    assert [row.lift_over_shuffled is None for row in rows] == [True, True, False]
    assert all(row.lift_over_empty is not None for row in rows)
    assert sum(count for count, _ in seen) == 3 + 1  # three empty ones and one of another question were read


def test_the_placebo_in_training_is_the_next_explanation_of_another_question_that_was_scored():
    items = [item_of(row) for row in rows_of(5)]
    items[1] = replace(items[1], problem=items[0].problem)  # the same question
    items[2] = replace(items[2], text="long " * 3000)
    scored = ENGINE.score(items)
    assert scored[2].parts.r_ss is None
    assert next_text(items, scored, 0) == items[3].text
    assert next_text(items, scored, 4) == items[0].text  # round the end
    assert next_text(items[:2], scored[:2], 0) is None


def test_accuracy_is_the_share_of_right_solutions(monkeypatch):
    from rlt.engines.base import Completion

    class Writer:
        def generate(self, requests, sampling):
            for request in reversed(list(requests)):  # engines finish in any order
                assert request.prompt.endswith(FMT.tags.thought.close + FMT.delimiter + FMT.tags.solution.open)
                asked = 3 if "What is 0" in request.prompt else 4
                self.written = getattr(self, "written", {})
                count = self.written[request.key] = self.written.get(request.key, 0) + 1
                text = "so 5" if count % asked == 1 else "so 6"
                yield Completion(request.key, text + FMT.tags.solution.close, "stop", 1, 1)

    monkeypatch.setattr(STUDENT, "engine", lambda: Writer())
    accuracy = AccuracyConfig(samples=4, weight=2.0, task="math")
    items = [item_of(row) for row in rows_of(2)]
    dense = ENGINE.score(items)
    added = RewardEngine([STUDENT], FMT, RewardOptions(accuracy=accuracy), TEACHER).score(items)
    assert [row.accuracy for row in added] == [0.5, 0.25]
    assert added[0].parts.reward == pytest.approx(dense[0].parts.reward + 2 * 0.5, abs=1e-5)
    only = RewardEngine([STUDENT], FMT, RewardOptions(accuracy=accuracy.model_copy(update={"only": True}))).score(items)
    assert [row.parts.reward for row in only] == [1.0, 0.5]
    assert only[0].parts.r_ss is None


@pytest.mark.parametrize(("aggregate", "accuracy", "reward"), [("min", 1.0, 0), ("mean", 0.75, None)])
def test_with_several_students_the_accuracy_is_that_of_the_reward(monkeypatch, aggregate, accuracy, reward):
    second = local(byte_tokenizer(vocabulary=280, template=PLAIN), 5, "second")
    item = item_of(rows_of(1)[0])
    dense = [RewardEngine([s], FMT, RewardOptions()).score([item])[0].parts.reward for s in (STUDENT, second)]
    low, high = ("student", "second") if dense[0] < dense[1] else ("second", "student")
    monkeypatch.setattr("rlt.reward.scoring.student_accuracy", lambda s, *_: [{low: 1.0, high: 0.5}[s.name]])
    # So little weight that the order of the students stays.
    options = RewardOptions(aggregate=aggregate, accuracy=AccuracyConfig(weight=1e-6, task="arithmetic"))
    (row,) = RewardEngine([STUDENT, second], FMT, options).score([item])
    assert row.accuracy == accuracy
    assert row.accuracies == {low: 1.0, high: 0.5}
    assert row.to_row()["students"][high]["accuracy"] == 0.5
    if aggregate == "min":
        assert row.parts == row.students[low]


def test_an_accuracy_that_is_not_known_is_the_rows_error(monkeypatch):
    monkeypatch.setattr("rlt.reward.scoring.student_accuracy", lambda *_: [0.5, ScoringError("no `answer`")])
    options = RewardOptions(accuracy=AccuracyConfig(task="arithmetic"))
    good, bad = RewardEngine([STUDENT], FMT, options).score([item_of(row) for row in rows_of(2)])
    assert (good.accuracy, good.parts.error) == (0.5, None)
    assert (bad.parts.error, bad.parts.reward) == ("student: no `answer`", None)


def test_students_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="names of students must differ; got student, student"):
        RewardEngine([STUDENT, local(TAGS_AS_TOKENS, 3)], FMT, RewardOptions())


def test_accuracy_samples_from_the_student_itself():
    options = RewardOptions(accuracy=AccuracyConfig(samples=2, max_tokens=4, only=True))
    (row,) = RewardEngine([STUDENT], FMT, options).score([item_of(rows_of(1)[0])])
    assert row.accuracy == 0.0
    missing = replace(item_of(rows_of(1)[0]), problem=Problem("0", "What?", "It is."))
    assert "`answer`" in RewardEngine([STUDENT], FMT, options).score([missing])[0].parts.error


@pytest.mark.parametrize(
    ("options", "tokens", "passes"),
    [
        ({}, False, 2),  # student and teacher
        ({"estimator": "exact"}, False, 2),
        ({}, True, 3),  # and the student's ranks
        ({"accuracy": AccuracyConfig(samples=3, max_tokens=2)}, True, 6),  # and three solutions
        ({"accuracy": AccuracyConfig(samples=3, max_tokens=2, only=True)}, False, 3),
    ],
)
def test_progress_counts_every_row_as_often_as_it_is_read_or_solved(options, tokens, passes):
    engine, counted = RewardEngine([STUDENT], FMT, RewardOptions(**options), TEACHER), []
    items = [item_of(row) for row in rows_of(4)]
    engine.score(items, progress=lambda rows, tokens: counted.append(rows), keep_tokens=range(4) if tokens else ())
    assert sum(counted) == len(items) * engine.passes(tokens) == 4 * passes
