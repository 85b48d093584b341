"""A student's supervised learning: the rows that fit, and the token budget."""

import shutil

import pytest

from rlt.config import STAGES
from rlt.data.rows import write_rows
from rlt.errors import DataError
from rlt.models.loading import load_tokenizer
from rlt.pipeline import run_stage
from rlt.stages.distill import within
from rlt.training.examples import Example


def test_a_budget_takes_the_first_examples_whose_explanations_fit():
    examples = [Example([], range(0), tokens) for tokens in (4, 3, 5, 1)]
    assert within(examples, None) == (examples, 13)
    assert within(examples, 7) == (examples[:2], 7)
    assert within(examples, 11) == (examples[:2], 7)  # the first, not those that fill the budget best
    assert within(examples, 14) == (examples, 13)
    with pytest.raises(DataError, match="has 13 tokens of explanations, too few for `token_budget` 15"):
        within(examples, 15)
    with pytest.raises(DataError, match="the first explanation alone has more tokens than `token_budget` 3"):
        within(examples, 3)


@pytest.fixture
def explained(tmp_path):
    def write(name, *lengths):
        rows = [
            {"question": "7 a + 7 ?", "solution": "4", "explanation": " ".join(["so"] * length)} for length in lengths
        ]
        write_rows(tmp_path / name, rows)
        return {"path": str(tmp_path / name), "on_invalid": "skip"}

    return write


def distill(world, output, data, **keys):
    values = {
        "output": str(output), "format": "words", "model": world["model"], "data": data, "max_length": 40,
        "trainer": {"max_steps": 1, "per_device_train_batch_size": 2}, **keys,
    }  # fmt: skip
    return run_stage("distill", STAGES["distill"].model_validate(values)).metrics


def test_rows_that_do_not_fit_count_neither_as_explanations_nor_for_the_budget(world, tmp_path, explained):
    data, other = explained("data.jsonl", 60, 5, 4, 3, 2), explained("other.jsonl", 6, 90, 4)
    numbers = distill(world, tmp_path / "run", data, token_budget=other["path"])
    # 10 tokens to match: 6 and 4, not the 90 that no student of this length learns from.
    assert (numbers["explanation_tokens"], numbers["examples"], numbers["dropped"]) == (9, 2, 1)


@pytest.mark.parametrize("stage", ["distill", "warmup"])
def test_a_row_that_the_chat_template_rewrites_is_named_or_dropped_and_counted(world, tmp_path, stage):
    model = shutil.copytree(world["model"], tmp_path / "model")
    tokenizer = load_tokenizer(str(model))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m['content'] }} ", "m['content'] | replace('9 b', '') }} "
    )
    tokenizer.save_pretrained(model)
    questions = ["7 a + 7 ?", "9 b + 1 ?", "2 a + 7 ?"]
    write_rows(tmp_path / "data.jsonl", [{"question": q, "solution": "4", "explanation": "so"} for q in questions])
    values = {
        "output": str(tmp_path / "run"), "format": "words", "model": str(model), "max_length": 40,
        "trainer": {"max_steps": 1, "per_device_train_batch_size": 2},
    }  # fmt: skip
    data = {"path": str(tmp_path / "data.jsonl")}

    def run(**more):
        return run_stage(stage, STAGES[stage].model_validate({**values, "data": {**data, **more}}))

    with pytest.raises(
        DataError, match=r"data\.jsonl: problem 1: the chat template[\s\S]*or set `data.on_invalid: skip`"
    ):
        run()
    metrics = run(on_invalid="skip").metrics
    assert (metrics["examples"], metrics["dropped"]) == (2, 1)
