"""With the tokenizers that people use: training's reward is that of `rlt score`, and that of a plain loop over all logits."""

from functools import lru_cache

import pytest
import torch
from byte_models import tiny_model
from plain_reward import continued, encoded, logprobs, plain_reward
from real_tokenizers import NAMES, real_tokenizer

from rlt.config import RewardOptions
from rlt.reward.scoring import RewardEngine
from rlt.reward.students import LocalModel
from rlt.reward.trl import TeacherReward, teacher_rows
from rlt.text.clock import strftime_now
from rlt.text.formats import check_template, load_format, render_student, teacher_prompt
from rlt.text.tokens import decode, encode, sampled_texts
from rlt.types import Problem

PROBLEM = Problem("0", "Tom has 3 apples and buys 4. How many?", "3 + 4 = 7.\n\nThe answer is 7.")
# What a teacher writes behind its prompt; {close} is the format's closing tag, and what it should have before it {pad}.
WRITTEN = {
    "closed": "First add 3 and 4, which gives 7.{pad}{close}",
    "unclosed": "First add 3 and 4, which",
    "unpadded": "Add.{close}",
    "empty": "{close}",
    "nothing": "",
    "leading newline": "\nAdd 3 and 4.{pad}{close}",
    "leading space": " Add 3 and 4.{pad}{close}",
    "trailing newlines": "Add 3 and 4.\n{pad}\n{close}",
    "CRLF": "Add\r\n3 and 4:\r\n\r\n7.{pad}{close}",
    "emoji": "Add 😀 3 and 4 👩‍👩‍👧 = 7{pad}{close}",
    "combining marks": "Addie\u0301 cafe\u0301 n\u0303 7.{pad}{close}",
    "a tag's prefix": "Add <|begin_of_th and </expl, then <{pad}{close}",
    "code with tabs": "def f(x):\n\tif x:\n\t\treturn x + 4\n{pad}{close}",
}
TEMPERATURE = 0.7


@lru_cache
def model_of(name, seed):
    return tiny_model(real_tokenizer(name), seed, hidden_size=16, intermediate_size=16, num_attention_heads=2)


def completions(name, fmt):
    """Each text as this tokenizer can write it (Qwen normalises to NFC, Mistral's writes a space first), and its tokens."""
    prompt = teacher_prompt(fmt, real_tokenizer(name), PROBLEM)
    for kind, text in WRITTEN.items():
        text = text.format(pad=fmt.padding, close=fmt.tags.explanation.close)
        ids, _ = continued(real_tokenizer(name), prompt, text)
        yield kind, decode(real_tokenizer(name), ids), ids


def trained(name, fmt, student, text, ids):
    """The row that teacher RL would log for a completion of these tokens, with the policy's own log-probs."""
    tokenizer, policy = real_tokenizer(name), model_of(name, 1)
    (row,) = teacher_rows([PROBLEM], fmt, tokenizer)
    prompt, _ = encoded(tokenizer, row["prompt"])
    ids = [*ids, tokenizer.eos_token_id]
    known = torch.tensor(logprobs(policy, prompt + ids, TEMPERATURE, len(prompt)))
    reward = TeacherReward([student], tokenizer, fmt, RewardOptions(), placebos=0)
    reward(
        [row["prompt"]],
        [text],
        [ids],
        question=[PROBLEM.question],
        solution=[PROBLEM.solution],
        policy_logprobs=[known],
    )
    return reward.last_rows[0].parts


def check(name, student_name, format_name):
    fmt = load_format(format_name)
    check_template(fmt, real_tokenizer(name))
    student = LocalModel(model_of(student_name, 0), real_tokenizer(student_name), name="student")
    teacher = LocalModel(model_of(name, 1), real_tokenizer(name), name="teacher")
    engine = RewardEngine([student], fmt, RewardOptions(), teacher)
    compared = 0
    written = list(completions(name, fmt))
    items = [fmt.completed(PROBLEM, text) for _, text, _ in written]
    for (kind, text, ids), item, row in zip(written, items, engine.score(items), strict=True):
        scored = row.parts
        r_ss, r_kl = plain_reward(
            fmt,
            (student.tokenizer, student.model),
            (teacher.tokenizer, teacher.model),
            PROBLEM,
            item.text,
            item.closed,
        )
        assert scored.error is None, kind
        assert (scored.r_ss, scored.r_kl) == pytest.approx((r_ss, r_kl or 0.0), abs=1e-4), kind
        in_training = trained(name, fmt, student, text, ids)
        for part in ("reward", "r_ss", "r_kl", "explanation_kl_mean", "explanation_kl_max", "explanation_tokens"):
            assert getattr(in_training, part) == pytest.approx(getattr(scored, part), abs=1e-4), (kind, part)
        compared += bool(r_kl)
    assert compared >= len(WRITTEN) - 2  # all but the two empty ones


@pytest.mark.parametrize("format_name", ["stratos", "r1"])
@pytest.mark.parametrize("name", NAMES)
def test_training_scores_as_rlt_score_does_and_as_all_logits_do(name, format_name):
    check(name, name, format_name)


@pytest.mark.parametrize("name", ["qwen3", "llama3", "deepseek", "tekken"])
def test_so_it_does_where_the_solution_stands_in_the_users_turn(name):
    # Not Mistral's: behind `[/INST]` it writes a space that the text of an explanation cannot tell from a sampled one.
    check(name, name, "stratos-user")


@pytest.mark.parametrize(
    ("name", "student"),
    [("qwen25", "mistral"), ("mistral", "qwen3"), ("llama3", "spaces_kept"), ("spaces_kept", "deepseek")],
)
def test_so_it_does_between_two_tokenizers(name, student):
    check(name, student, "stratos")


@pytest.mark.parametrize("name", NAMES)
def test_a_continuation_keeps_its_first_space(name):
    tokenizer = real_tokenizer(name)
    for text in ("So we add.", " So we add.", "\n So"):
        ids, _ = continued(tokenizer, "</a>\n", text)
        ((again, ends),) = sampled_texts(tokenizer, [ids])
        assert (decode(tokenizer, ids), again, ends[-1]) == (text, text, len(text))


@pytest.mark.parametrize("format_name", ["stratos", "r1"])
@pytest.mark.parametrize("name", NAMES)
def test_a_template_rewrites_no_explanation(name, format_name):
    # Qwen3's template takes what stands before `</think>` apart, and DeepSeek's throws it away.
    fmt = load_format(format_name)
    for written in ("\n\nSo\n\n\n", "a </think> b", "", "  "):
        text = render_student(fmt, real_tokenizer(name), PROBLEM, written).text
        assert fmt.tags.thought.open + fmt.padding + written + fmt.tags.thought.close in text


@pytest.mark.parametrize("format_name", ["stratos-user", "r1-user"])
@pytest.mark.parametrize("name", NAMES)
def test_an_engine_that_takes_messages_reads_the_tokens_that_are_scored(name, format_name):
    fmt, tokenizer = load_format(format_name), real_tokenizer(name)
    theirs = tokenizer.apply_chat_template(
        fmt.teacher_messages(PROBLEM), add_generation_prompt=True, return_dict=False, strftime_now=strftime_now
    )
    assert encode(tokenizer, teacher_prompt(fmt, tokenizer, PROBLEM)) == theirs
