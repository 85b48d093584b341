"""Students: what a server cannot do is refused, and what it answers is read token by token."""

import pytest
import torch
from byte_models import byte_tokenizer

from rlt.config import ModelOptions, RewardOptions, StudentOptions
from rlt.errors import ConfigError, ServerError
from rlt.formats import load_format
from rlt.logprobs import Row
from rlt.students import ServedStudent, open_students


class Answers:
    """A server that gives each prompt token a log-prob of minus its position."""

    url = "http://127.0.0.1:1/v1"

    def __init__(self, wrong=False):
        self.wrong = wrong

    def submit(self, method, path, body):
        ids = body["prompt"]
        given = [None] + [{str(token + self.wrong): {"logprob": -float(i)}} for i, token in enumerate(ids) if i]
        assert (method, path, body["max_tokens"], body["prompt_logprobs"]) == ("POST", "completions", 1, 0)
        return type("Future", (), {"result": lambda _: {"choices": [{"prompt_logprobs": given}]}})()


def test_log_probs_of_a_served_student_are_those_of_the_kept_tokens():
    student = ServedStudent(Answers(), byte_tokenizer(), "model")
    rows = [Row([5, 6, 7, 8, 9], [range(1, 2), range(3, 4)]), Row([5, 6, 7], [range(2, 3)])]
    assert [column.tolist() for column in student.logprobs(rows, 1.0)] == [[-1, -3], [-2]]


def test_an_answer_about_other_tokens_is_refused():
    with pytest.raises(ServerError, match="other tokens"):
        ServedStudent(Answers(wrong=True), byte_tokenizer(), "model").logprobs([Row([5, 6], [range(1, 2)])], 1.0)


def test_what_a_server_cannot_do_is_refused_with_the_reason():
    student = ServedStudent(Answers(), byte_tokenizer(), "model")
    student.check(RewardOptions(score_temperature=1.0).resolved())
    with pytest.raises(ConfigError, match="temperature 1 only"):
        student.check(RewardOptions().resolved())
    with pytest.raises(ConfigError, match="whole next-token distributions"):
        student.check(RewardOptions(preset="paper").resolved())


def test_the_same_student_twice_or_none_is_refused():
    fmt = load_format("stratos")
    for student, words in (([], "name at least one"), (["a", "a"], "named twice")):
        with pytest.raises(ConfigError, match=words):
            open_students(fmt, ModelOptions(), StudentOptions(student=student), RewardOptions())


def test_an_offloaded_model_is_back_where_it_was(monkeypatch):
    from byte_models import tiny_model

    from rlt import models
    from rlt.students import LocalModel

    tokenizer = byte_tokenizer()
    student = LocalModel(tiny_model(tokenizer, 0), tokenizer, placement="offload")
    monkeypatch.setattr(models, "default_device", lambda: torch.device("meta"))
    monkeypatch.setattr(student.model, "to", lambda device: moves.append(torch.device(device).type))
    moves: list[str] = []
    with student.in_place():
        pass
    assert moves == ["meta", "cpu"]
