"""GRPO's rules about batches are told before anything is loaded, as TRL would refuse them in the step."""

import pytest
from trl import GRPOConfig

from rlt.training.batches import batch_problems

FINE = [
    {"num_generations": 8},
    {"num_generations": 4, "gradient_accumulation_steps": 2, "save_steps": 2},
    {"num_generations": 32, "steps_per_generation": 4, "save_steps": 4},
    {"num_generations": 16, "generation_batch_size": 16, "save_steps": 100},
    {"num_generations": 64, "gradient_accumulation_steps": 8, "num_iterations": 2, "save_steps": 10},
    {"num_generations": 8, "steps_per_generation": None, "save_strategy": "epoch"},
]
REFUSED = [
    ({"num_generations": 3}, "`trainer.num_generations` 3 must divide the 8 completions"),
    ({"num_generations": 64, "gradient_accumulation_steps": 4}, "must divide the 32 completions"),
    ({"num_generations": 1}, "at least 2 explanations"),
    ({"generation_batch_size": 12}, "`trainer.generation_batch_size` 12 must be a multiple of 8"),
    ({"generation_batch_size": 16, "steps_per_generation": 2}, "exclude each other"),
]
OURS = [
    ({"steps_per_generation": 4, "save_steps": 6}, "`trainer.save_steps` 6 must be a multiple of 4"),
    ({"steps_per_generation": 4, "save_strategy": "epoch"}, "`trainer.save_strategy` epoch may save between"),
    ({"num_iterations": 2, "save_steps": 3}, "must be a multiple of 2"),
    ({"steps_per_generation": 4, "save_steps": 0.1, "max_steps": 60}, "`trainer.save_steps` 0.1 must be"),
]


def of_trl(options, tmp_path):
    return GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


@pytest.mark.parametrize("options", FINE, ids=str)
def test_what_trl_takes_is_not_refused(options, tmp_path):
    of_trl(options, tmp_path)
    assert batch_problems(options, 1) == []


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_what_trl_refuses_is_refused_before(options, message, tmp_path):
    (line,) = batch_problems(options, 1)
    assert message in line
    with pytest.raises(ValueError, match=r"generation|configured"):
        of_trl(options, tmp_path)


@pytest.mark.parametrize(("options", "message"), OURS, ids=[str(options) for options, _ in OURS])
def test_a_checkpoint_inside_a_generation_is_refused(options, message):
    (line,) = batch_problems(options, 1)
    assert message in line


def test_a_batch_is_of_all_processes():
    assert batch_problems({"num_generations": 32}, 4) == []
    (line,) = batch_problems({"num_generations": 32}, 2)
    assert "must divide the 16 completions of a generation (8 rows x 2 processes x 1 steps" in line


def test_options_of_a_wrong_type_are_left_to_the_check_of_types():
    assert batch_problems({"num_generations": "many"}, 1) == []
