"""Science: quantities with units, several answers, tolerances, and what must not pass."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("pint")

from rlt.tasks.science import answer_of, check_answer, grade, question_of


def right(given: str, answer: Any) -> bool:
    answer = answer if isinstance(answer, str) else json.dumps(answer)
    return grade(rf"So \boxed{{{given}}}.", answer, "").correct


@pytest.mark.parametrize(
    "given",
    [
        r"3.00 \times 10^8 \text{ m/s}", "3e8 m/s", r"300{,}000 \,\mathrm{km/s}",
        r"3 \cdot 10^{8}\ \mathrm{m\cdot s^{-1}}",
        "2.998e8", r"v = 2.998 \times 10^{8}~\text{m s}^{-1}", "300,000 kilometers per second",
        r"3\times10^{10}\,\mathrm{cm}/\mathrm{s}",
    ],
)  # fmt: skip
def test_a_quantity_is_the_same_in_other_units_and_spellings(given: str) -> None:
    assert right(given, "3.0e8 m/s")


@pytest.mark.parametrize(
    "given",
    [
        "3.0e8 km/s",  # wrong by 1000
        "3.0e5 m/s",
        "-3.0e8 m/s",
        "3.0e8 m",
        "3.0e8 kg",
        "3.1e8 m/s",  # 3 % away
        "3.04e8 m/s",  # 1.3 % away
        "3.0e8 m/s or 3.0e7 m/s",
        "3.0e8 m/s, 3.0e7 m/s",
        r"3.0e8 \pm 1e8 m/s",
        r"3.0e8\ \text{to}\ 4e8",
        "3.0e8x",
        "",
    ],
)
def test_another_number_sign_or_dimension_is_wrong(given: str) -> None:
    assert not right(given, "3.0e8 m/s")


@pytest.mark.parametrize(
    ("given", "answer", "same"),
    [
        ("298.15 K", "25 degC", True),
        (r"25^\circ\mathrm{C}", "298.15 K", True),
        ("77 °F", r"25^\circ \text{C}", True),
        (r"\frac{\pi}{2}", r"90^\circ", False),  # no unit: read in the reference's
        (r"90^\circ", "90 degrees", True),
        (r"1.57\text{ rad}", r"90^\circ", True),
        (r"0.5\ \mathrm{kJ\cdot mol^{-1}}", "500 J/mol", True),
        (r"5 \mu\text{m}", "5e-6 m", True),
        ("5 μm", r"5\,\mu\mathrm{m}", True),
        ("5 mm", "5 µm", False),
        (r"2\pi\text{ m}", "6.28 m", True),
        (r"\frac{1}{2}\text{ m}", "50 cm", True),
        (r"-\frac{1}{2}\text{ m}", "50 cm", False),
        ("1 eV", "1.602e-19 J", True),
        ("25 %", "0.25 percent", False),
        ("25\\%", "25 %", True),
        ("0.25", "25 %", False),  # read in the reference's unit: 0.25 %
        ("3", "3", True),
        ("3.01", "3", False),  # a count is exact
        ("3.01", "3.0", True),
        (r"3\text{ electrons}", "3", True),
        ("3 electrons", "3 electrons", True),
        ("4 electrons", "3 electrons", False),
        ("2g", "2g", True),
        ("2", "2g", False),  # a product, not two grams
        ("2", "2x", False),
        ("2x", "2", False),
        ("2", "2 g", True),
        ("3 or 4", "3", False),
        ("x^2", "x^2", True),
        ("x^2+1", "x^2", False),
    ],
)
def test_one_answer(given: str, answer: str, same: bool) -> None:
    assert check_answer(answer, "") is None
    assert right(given, answer) is same


def test_the_answer_must_be_stated() -> None:
    assert grade("The answer is 5 m.", "5 m", "").correct
    assert not grade("So it falls 5 m in 1 s.", "5 m", "").correct
    assert not grade("The answer is either 3 m or 4 m.", "3 m", "").correct
    assert not grade(r"Either \boxed{3} or \boxed{4}.", "3", "").correct
    assert grade(r"First \boxed{3}; no: it is \boxed{4}.", "4", "").correct


TWO = {"answers": ["2.5", "-4"], "unit": "cm", "tolerance": ["0.1", "0"]}


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (r"2.5, -4", True),
        (r"-4\text{ cm} \text{ and } 25\text{ mm}", True),
        (r"\{-4; 2.45\}", True),
        ("$-4$, $2.6$", True),
        ("2.5", False),
        ("2.5, -4, 7", False),
        ("2.5, 2.5", False),
        ("2.5, 4", False),
        ("2.61, -4", False),
        ("2.5, -4.01", False),
        ("2.5 m, -4 m", False),
    ],
)
def test_several_answers_in_any_order_each_once(given: str, same: bool) -> None:
    assert right(given, TWO) is same


def test_answers_that_fit_two_references_are_paired_so_that_all_fit() -> None:
    near = {"answers": ["1.0", "1.1"], "tolerance": 0.1}
    assert right("1.1, 1.2", near)
    assert right("1.2, 1.1", near)
    assert not right("1.2, 1.2", near)


def test_without_a_tolerance_six_digits_must_agree() -> None:
    assert right("0.333333", {"answers": [r"\frac{1}{3}"]})
    assert not right("0.33", {"answers": [r"\frac{1}{3}"]})
    assert right(r"\sqrt{2}", {"answers": [r"\sqrt{2}"]})
    assert right("1.41", {"answers": [r"\sqrt{2}"], "tolerance": 0.01})
    assert right("104", {"answers": ["100"], "relative": 0.05})
    assert not right("106", {"answers": ["100"], "relative": 0.05})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"answers": []}, "at least one"),
        ({"answers": ["5"], "unit": "zorkmid"}, "pint does not know the unit 'zorkmid'"),
        ({"answers": ["5", "6"], "tolerance": ["1"]}, "2 answers and 1 tolerances"),
        ({"answers": ["5"], "tolerance": -1}, "negative"),
        ({"answers": ["5"], "tolerance": "little"}, "not a number"),
    ],
)
def test_an_answer_that_nothing_can_be_graded_against_is_named(answer: dict[str, Any], words: str) -> None:
    assert words in (check_answer(json.dumps(answer), "") or "")


def test_rows_of_olympiadbench() -> None:
    row = {
        "question": "How far?", "context": "A ball is thrown.", "final_answer": ["$2.5$,$-4$"], "is_multiple_answer": True,
        "unit": "cm", "error": "1e-1,0", "answer_type": "Numerical",
    }  # fmt: skip
    assert question_of(row) == "A ball is thrown.\n\nHow far?"
    assert json.loads(answer_of(row) or "") == {"answers": ["2.5", "-4"], "unit": "cm", "tolerance": ["1e-1", "0"]}
    single = {"question": "Q", "final_answer": ["(1,2)"], "is_multiple_answer": False, "unit": None, "error": None}
    assert json.loads(answer_of(single) or "") == {"answers": ["(1,2)"], "unit": None, "tolerance": None}
    assert right("(1,2)", answer_of(single))
    assert not right("(2,1)", answer_of(single))
    assert question_of(single) is None
