"""Graders in processes that can be ended: nothing that a model writes hangs or crashes them."""

from __future__ import annotations

import os
import signal
import time

import pytest

from rlt.tasks.grading import GraderPool
from rlt.text.formats import load_format

FORMAT = load_format("stratos")
ENDLESS = r"\boxed{9^{9^{9^{9}}}}"


@pytest.fixture(scope="module")
def pool() -> GraderPool:
    with GraderPool("math", workers=2, timeout=2.0) as made:
        yield made


def test_a_response_that_never_ends_is_given_up_and_the_others_are_graded(pool: GraderPool) -> None:
    started = time.monotonic()
    verdicts = pool.grade([(ENDLESS, "x+1", ""), (r"\boxed{1+x}", "x+1", ""), (r"\boxed{5}", "5", "")], FORMAT)
    assert [v.correct for v in verdicts] == [False, True, True]
    assert verdicts[0].error == "not graded within 2 s"
    assert verdicts[1].error is verdicts[2].error is None
    assert time.monotonic() - started < 60


def test_a_grader_that_dies_costs_one_response(pool: GraderPool) -> None:
    pool.grade([("5", "5", "")] * 4, FORMAT)
    os.kill(pool._processes[0]._process.pid, signal.SIGKILL)
    time.sleep(0.1)
    verdicts = pool.grade([(str(n), str(n), "") for n in range(20)], FORMAT)
    assert sum(v.correct for v in verdicts) >= 19
    assert all(v.correct or v.error == "the grader's process died" for v in verdicts)


def test_verdicts_come_in_the_order_of_the_items(pool: GraderPool) -> None:
    items = [(rf"\boxed{{{n}}}", str(n if n % 3 else -1), "") for n in range(50)]
    assert [v.correct for v in pool.grade(items, FORMAT)] == [n % 3 != 0 for n in range(50)]


@pytest.mark.parametrize(
    "response",
    ["", "\x00", "\\boxed{" + "9" * 100_000 + "}", "1" * 200_000, "\\boxed{" + "{" * 5000 + "}" * 5000 + "}",
     "\\boxed" * 20_000,
     "\\boxed{" + "(" * 3000 + "x", "answer is " * 20_000, "$" * 30_000, "\\boxed{" + "x y " * 20_000 + "}", "\ud800"],
)  # fmt: skip
def test_odd_responses_are_wrong_and_harmless(pool: GraderPool, response: str) -> None:
    (verdict,) = pool.grade([(response, "x+1", "")], FORMAT)
    assert not verdict.correct
    assert verdict.error is None


def test_answers_are_checked_in_the_pool_too(pool: GraderPool) -> None:
    assert pool.check([("5", ""), ("", ""), (r"\frac{1}{", "")])[0] is None
    assert all(pool.check([("", ""), (r"\frac{1}{", "")]))


def test_cheap_tasks_start_no_process() -> None:
    with GraderPool("arithmetic") as cheap:
        assert cheap.grade([("7", "7", "")], load_format("words"))[0].correct
        assert not cheap._processes
