"""The accuracy reward: shares by hand, and what is no verdict on an explanation is an error."""

import pytest
from byte_models import byte_tokenizer

from rlt.config import AccuracyConfig
from rlt.engines.base import Completion
from rlt.errors import ScoringError
from rlt.reward.accuracy import student_accuracy
from rlt.tasks import Verdict
from rlt.tasks.grading import Graders
from rlt.text.formats import load_format
from rlt.types import Problem

FMT = load_format("stratos")
CLOSE = FMT.tags.solution.close
RIGHT, WRONG = Completion("", "so 5" + CLOSE, "stop", 9, 4), Completion("", "so 6" + CLOSE, "stop", 9, 4)
CONFIG = AccuracyConfig(samples=2, max_tokens=8, task="arithmetic")


class Student:
    """Writes for the question "q1" the completions `written["q1"]`, one after another."""

    tokenizer = byte_tokenizer()

    def __init__(self, **written):
        self.written, self.asked = {name: list(completions) for name, completions in written.items()}, []

    def engine(self):
        return self

    def generate(self, requests, sampling):
        assert (sampling.max_tokens, sampling.stop) == (8, (CLOSE,))
        for request in reversed(list(requests)):  # engines finish in any order
            assert request.prompt.endswith(FMT.tags.solution.open)
            (question,) = (name for name in self.written if name in request.prompt)
            self.asked.append(request)
            completion = self.written[question].pop(0)
            yield Completion(request.key, *(getattr(completion, n) for n in Completion.__slots__[1:]))


def shares(student, answers=("5",), graders=None):
    items = [
        FMT.finished(Problem(str(i), f"q{i}", "It is 5.", answer=answer), "So.") for i, answer in enumerate(answers)
    ]
    return student_accuracy(student, FMT, items, CONFIG, graders or Graders(), seed=3)


def errors(results):
    return [str(result) if isinstance(result, ScoringError) else result for result in results]


def test_it_is_the_share_of_right_solutions():
    student = Student(q0=[RIGHT, WRONG], q1=[RIGHT, RIGHT], q2=[WRONG, WRONG])
    assert shares(student, "555") == [0.5, 1.0, 0.0]


def test_a_row_without_an_answer_or_with_one_that_cannot_be_graded_is_not_sampled():
    student = Student(q3=[RIGHT, RIGHT])
    no_answer = "the accuracy reward needs the column `answer`"
    assert errors(shares(student, (None, " ", "five", "5"))) == [
        no_answer, no_answer, "column `answer`: the answer must be one digit", 1.0,
    ]  # fmt: skip
    assert len(student.asked) == 2


def test_a_solution_that_the_context_cut_off_is_no_wrong_one():
    cut = Completion("", "so", "length", 9, 3)
    full = Completion("", "so and so", "length", 9, 8)  # as long as was asked for: that is wrong
    assert errors(shares(Student(q0=[RIGHT, cut], q1=[RIGHT, full]), "55")) == [
        "the student's context ends after 3 tokens of a solution; reduce `accuracy.max_tokens` (8) so that prompt and "
        "solution fit",
        0.5,
    ]


def test_a_grader_that_fails_is_no_wrong_solution(monkeypatch):
    graders = Graders()
    verdicts = [
        Verdict(True, "5"),
        Verdict(False, None, "not graded within 10 s"),
        Verdict(True, "5"),
        Verdict(True, "5"),
    ]
    monkeypatch.setattr(graders, "grade", lambda tasks, responses, fmt: verdicts)
    results = shares(Student(q0=[RIGHT, RIGHT], q1=[RIGHT, RIGHT]), "55", graders)
    assert errors(results) == ["a solution could not be graded: not graded within 10 s", 1.0]


def test_samples_depend_on_the_seed_and_the_row_alone():
    one, two = Student(q0=[RIGHT] * 2), Student(q0=[RIGHT] * 2, q1=[RIGHT] * 2)
    shares(one)
    shares(two, "55")
    assert {r.seed for r in one.asked} < {r.seed for r in two.asked}
    assert len({r.seed for r in two.asked}) == 4


def test_no_items_ask_for_nothing():
    assert shares(Student(), ()) == []


@pytest.mark.parametrize("samples", [1, 3])
def test_as_many_solutions_as_configured_are_sampled(samples, monkeypatch):
    monkeypatch.setitem(globals(), "CONFIG", CONFIG.model_copy(update={"samples": samples}))
    student = Student(q0=[RIGHT] * samples)
    assert shares(student) == [1.0]
    assert len(student.asked) == samples
