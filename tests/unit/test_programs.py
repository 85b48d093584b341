"""Tiny programs and the experts that explain them, sums and programs."""

import json
import random

import pytest

from rlt.errors import ConfigError
from rlt.models.tiny import word_tokenizer
from rlt.tasks import experts, load_generated_task
from rlt.tasks.code import check_machine, extract
from rlt.text.formats import load_format
from rlt.types import Problem

SUMS = {"min_digits": 1, "max_digits": 1, "min_terms": 2, "max_terms": 5}
TASKS = [("programs", {"steps": [1, 4]}), ("swaps", {"steps": [1, 6]}), ("reasoning_gym/chain_sum", SUMS)]
QUESTION = "write add 3 , double , negate ?"


def test_a_program_takes_the_questions_steps_in_order() -> None:
    problem = next(p for p in load_generated_task("programs").generate(400, 0, {"steps": 2}) if "double" in p.question)
    tests = json.loads(problem.answer or "")
    lines = (extract(problem.solution) or "").splitlines()
    for given, expected in zip(tests["inputs"], tests["outputs"], strict=True):
        scope = {"x": int(given)}
        exec("\n".join(lines[1:-1]), scope)
        assert scope["x"] == int(expected)


def test_a_program_passes_its_tests_in_the_sandbox_and_another_does_not() -> None:
    check_machine()
    task = load_generated_task("programs")
    (problem,) = task.generate(1, 0, {"steps": 3})
    assert task.grade(problem.solution, problem.answer or "", problem.question).correct
    other = problem.solution.replace("print(x)", "x += 1 \n print(x)")
    assert not task.grade(other, problem.answer or "", problem.question).correct


def test_a_careful_explanation_says_every_step_in_python() -> None:
    task = load_generated_task("programs")
    problem = Problem("0", QUESTION, "", "")
    assert task.explain(problem, "careful", random.Random(0)) == "add 3 += 3 , double *= 2 , negate *= -1 ,"


def test_a_careful_explanation_of_a_sum_has_every_running_sum() -> None:
    answer = json.dumps({"answer": "-2", "metadata": {"expression": "4 + 3 - 9"}})
    task = load_generated_task("reasoning_gym/chain_sum")
    assert task.explain(Problem("0", "", "-2", answer), "careful", random.Random(0)) == "+ 3 7 - 9 -2"


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_every_text_of_a_task_is_made_of_its_words(name: str, options: dict[str, object]) -> None:
    task, rng = load_generated_task(name), random.Random(0)
    tokenizer = word_tokenizer(task.vocabulary(), load_format("words"))
    for problem in task.generate(200, 1, options):
        for text in (problem.question, problem.solution, task.explain(problem, "noisy", rng)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_experts_leap_slip_and_say_the_end_first() -> None:
    def written(kind: str, seed: int) -> str:
        experts.MIXTURES[kind] = {kind: 1.0}
        try:
            return experts.explanation("t", ["a", "b", "c"], ["x", "y", "z"], "c", kind, random.Random(seed))
        finally:
            del experts.MIXTURES[kind]

    assert {written("sloppy", seed) for seed in range(20)} == {"x b c", "a y c"}
    assert {written("leap", seed) for seed in range(60)} == {"a b c", "... b c", "a ... c", "... c"}
    assert all(written("answer_first", seed).startswith("so c ") for seed in range(5))


def test_an_unknown_mixture_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of careful, noisy"):
        experts.explanation("programs", ["a"], ["b"], "a", "noizy", random.Random(0))


def test_a_task_without_experts_says_so() -> None:
    with pytest.raises(ConfigError, match="'reasoning_gym/gcd' has no simulated experts"):
        load_generated_task("reasoning_gym/gcd")


def test_a_block_that_is_indented_as_a_whole_is_code() -> None:
    assert extract("- so\n  ```python\n  x = 1\n  if x:\n      print(x)\n  ```") == "x = 1\nif x:\n    print(x)\n"
