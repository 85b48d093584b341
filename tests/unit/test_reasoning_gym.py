"""reasoning-gym's generators as tasks: what they make, how their scorers grade, and what they refuse."""

import json
import os
import subprocess
import sys

import pytest

from rlt.errors import ConfigError
from rlt.tasks import load_task
from rlt.tasks.grading import Graders
from rlt.text.formats import load_format

if not os.environ.get("CI"):
    pytest.importorskip("reasoning_gym", reason="needs reasoning-gym: pip install 'rlt[reasoning-gym]'")

from rlt.tasks.reasoning_gym import BLOCK, UNSUPPORTED, extract, package

GENERATORS = sorted(set(package().DATASETS) - set(UNSUPPORTED))


def test_there_are_more_than_a_hundred_generators() -> None:
    assert len(GENERATORS) > 100


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_generators_own_answer_is_right_and_nonsense_is_not(generator: str) -> None:
    task = load_task(f"reasoning_gym/{generator}")
    (problem,) = task.generate(1, 3, {})
    assert problem.task == f"reasoning_gym/{generator}"
    assert task.check_answer(problem.answer, problem.question) is None
    own = task.grade(problem.solution, problem.answer, problem.question)
    assert (own.correct, own.score) == (True, 1.0)
    wrong = task.grade("xyzzy", problem.answer, problem.question)
    assert not wrong.correct


@pytest.mark.parametrize("generator", UNSUPPORTED)
def test_a_generator_without_answers_is_refused_with_the_reason(generator: str) -> None:
    with pytest.raises(ConfigError, match=UNSUPPORTED[generator][:20]):
        load_task(f"reasoning_gym/{generator}")


def test_same_seed_same_problems_and_more_of_them_begin_alike() -> None:
    task = load_task("reasoning_gym/knights_knaves")
    few, many = task.generate(3, 5, {"n_people": 3}), task.generate(6, 5, {"n_people": 3})
    assert many[:3] == few


def test_neighbouring_seeds_share_no_question() -> None:
    # reasoning-gym's own data sets of seeds 0 and 1 share every entry but one.
    task = load_task("reasoning_gym/chain_sum")
    options = {"min_digits": 4}
    first, second = ({p.question for p in task.generate(50, seed, options)} for seed in (0, 1))
    assert not first & second
    assert BLOCK == 1_000_000


def test_held_out_questions_are_left_out() -> None:
    task = load_task("reasoning_gym/chain_sum")
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    held_out = {p.question for p in task.generate(30, 7, options)}
    assert not held_out & {p.question for p in task.generate(100, 8, options, held_out)}


def test_a_small_space_of_questions_is_said_to_be_small() -> None:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(ConfigError, match=r"only \d+ different questions with these options, not 100000"):
        load_task("reasoning_gym/chain_sum").generate(100_000, 0, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_peple": 3}, "unknown option 'n_peple'; did you mean n_people"),
        ({"n_people": "three"}, "options"),
        ({"n_people": 0}, "options"),
        ({"seed": 3}, "unknown option 'seed'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task("reasoning_gym/knights_knaves").check_options(options)


def test_an_unknown_generator_gets_the_nearest_names() -> None:
    with pytest.raises(ConfigError, match="did you mean reasoning_gym/knights_knaves"):
        load_task("reasoning_gym/knight_knaves")


def test_part_of_an_answer_earns_part_of_a_point_and_counts_as_wrong() -> None:
    task = load_task("reasoning_gym/knights_knaves")
    (problem,) = task.generate(1, 0, {})
    assert problem.solution == json.loads(problem.answer)["answer"]
    other = problem.solution.replace("knave", "KNIGHT").replace("knight", "knave").replace("KNIGHT", "knight")
    verdict = task.grade(other.replace("knave", "knight", 1), problem.answer, problem.question)
    assert not verdict.correct
    assert verdict.score is not None
    assert verdict.score < 1


def test_worked_metadata_is_the_solution() -> None:
    (problem,) = load_task("reasoning_gym/gsm_symbolic").generate(1, 0, {})
    answer = json.loads(problem.answer)["answer"]
    assert problem.solution.endswith(f"\n\n<answer>{answer}</answer>")
    assert len(problem.solution) > 40


@pytest.mark.parametrize(
    ("solution", "extracted"),
    [
        ("<answer>4</answer> or <answer> 5 </answer>", "5"),
        (r"so \boxed{6}.", "6"),
        (" seven\n", "seven"),
        (r"\boxed{8} <answer>9</answer>", "9"),
    ],
)
def test_what_is_scored_of_a_solution(solution: str, extracted: str) -> None:
    assert extract(solution) == extracted


@pytest.mark.parametrize("generator", ["string_insertion", "spiral_matrix", "binary_matrix", "n_queens"])
@pytest.mark.parametrize("code", ["__import__('os').mkdir('{}')", "[__import__('os').mkdir('{}')]"])
def test_no_answer_is_run_as_code(generator: str, code: str, tmp_path: object) -> None:
    place = f"{tmp_path}/made"
    task = load_task(f"reasoning_gym/{generator}")
    (problem,) = task.generate(1, 0, {})
    assert not task.grade(code.format(place), problem.answer, problem.question).correct
    assert not os.path.exists(place)


@pytest.mark.parametrize(
    "generator",
    ["simple_integration", "intermediate_integration", "polynomial_multiplication", "puzzle24", "countdown"],
)
def test_no_formula_is_run_as_code(generator: str, tmp_path: object) -> None:
    place = f"{tmp_path}/made"
    task = load_task(f"reasoning_gym/{generator}")
    (problem,) = task.generate(1, 0, {})
    for code in (f"__import__('os').mkdir('{place}')", f"().__class__ or exec(chr(95)*2) or '{place}'"):
        assert not task.grade(code, problem.answer, problem.question).correct
    assert not os.path.exists(place)


def test_rows_of_several_tasks_are_graded_together_each_by_its_own() -> None:
    (problem,) = load_task("reasoning_gym/chain_sum").generate(1, 0, {})
    tasks = ["arithmetic", "reasoning_gym/chain_sum", "arithmetic"]
    items = [("4", "4", ""), (problem.solution, problem.answer or "", problem.question), ("5", "4", "")]
    with Graders(workers=1) as graders:
        verdicts = graders.grade(tasks, items, load_format("words"))
    assert [(v.correct, v.score) for v in verdicts] == [(True, None), (True, 1.0), (False, None)]


def test_checking_a_name_imports_no_torch() -> None:
    code = (
        "import sys; from rlt.tasks import load_task; load_task('reasoning_gym/ab').check_options({}); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "False"
