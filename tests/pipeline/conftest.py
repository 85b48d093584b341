"""The small world in which tests train: models that know the words of arithmetic, and problems with explanations."""

import pytest

from tests.words import make_model, make_problems


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return {
        "model": make_model(folder / "model"),
        "student": make_model(folder / "student", 1),
        "other": make_model(folder / "other", 2),
        "data": make_problems(folder / "problems.jsonl", 8),
    }
