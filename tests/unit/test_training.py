"""What is learned: the target, its closing tag and the end of the turn; nothing is cut. What TRL is asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from trl import GRPOConfig

from rlt.config import BaseModelConfig, DataConfig, TrainConfig, WarmupConfig
from rlt.errors import ConfigError, DataError, ModelError
from rlt.formats import load_format, render_student, render_teacher
from rlt.rows import read_rows
from rlt.tiny import word_tokenizer
from rlt.training import (
    Example,
    MetricsFile,
    check_saving,
    examples_of,
    fit,
    fit_prompts,
    loading,
    sampling_context,
    supervised_arguments,
    taught_to_student,
    taught_to_teacher,
    trainer_arguments,
    turn_end,
)
from rlt.types import Problem
from tests.byte_models import byte_tokenizer

FMT = load_format("words")
TOKENIZER = word_tokenizer(["what", "five", "two", "and", "three"], FMT)
PROBLEM = Problem(id="7", question="what", solution="five")
BODY = FMT.thought_body("two and three")


def learned_words(tokenizer, text, span):
    (example,) = examples_of(tokenizer, [text], [span], turn_end(FMT, tokenizer))
    return [tokenizer.convert_ids_to_tokens(example.ids[i]) for i in example.learned]


# -- supervised examples -------------------------------------------------------------------------------------------------


def test_a_teacher_learns_explanation_closing_tag_and_end():
    text = render_teacher(FMT, TOKENIZER, PROBLEM, BODY)
    words = learned_words(TOKENIZER, text, taught_to_teacher(FMT, text))
    assert words == ["two", "and", "three", "</explain>", "<end>"]


def test_a_student_learns_its_whole_response():
    text = render_student(FMT, TOKENIZER, PROBLEM, BODY)
    assert learned_words(TOKENIZER, text, taught_to_student(FMT, text)) == [
        "<think>", "two", "and", "three", "</think>", "<answer>", "five", "</answer>", "<end>",
    ]  # fmt: skip


def test_the_end_of_a_turn_is_learned_where_it_is_not_the_eos_and_where_a_space_is_before_it():
    tokenizer = byte_tokenizer(
        tags=FMT.tags.all(), template="{% for m in messages %}{{ m['content'] }} <|im_end|>\n{% endfor %}"
    )
    tokenizer.eos_token = "<|endoftext|>"
    text = render_student(FMT, tokenizer, PROBLEM, BODY)
    assert learned_words(tokenizer, text, taught_to_student(FMT, text))[-3:] == ["</answer>", "Ġ", "<|im_end|>"]


def test_a_template_after_which_no_model_could_stop_is_refused():
    tokenizer = byte_tokenizer(template="{% for m in messages %}{{ m['content'] }} [end]\n{% endfor %}")
    with pytest.raises(ModelError, match=r"closes the assistant's turn with ' \[end\]\\n'"):
        turn_end(FMT, tokenizer)


def test_explanation_tokens_are_counted():
    (example,) = examples_of(
        TOKENIZER, [render_student(FMT, TOKENIZER, PROBLEM, BODY)], [(0, 4)], turn_end(FMT, TOKENIZER)
    )
    assert example.explanation_tokens == 3


def test_labels_are_minus_100_where_nothing_is_learned():
    assert Example([5, 6, 7, 8], range(2, 4)).labels() == [-100, -100, 7, 8]


# -- what fits -----------------------------------------------------------------------------------------------------------

PROBLEMS = [Problem(id=name, question="what", solution="five") for name in "ab"]


def test_too_long_examples_are_named_or_dropped_and_never_cut():
    examples = [Example([1, 2, 3], range(1, 3)), Example([1, 2], range(1, 2))]
    with pytest.raises(DataError, match=r"d\.jsonl: problem a: its text has 3 tokens, over the limit of 2"):
        fit(PROBLEMS, examples, 2, DataConfig(path="d.jsonl"))
    kept, dropped = fit(PROBLEMS, examples, 2, DataConfig(path="d.jsonl", on_invalid="skip"))
    assert kept == [examples[1]]
    assert len(dropped) == 1
    with pytest.raises(DataError, match=r"d\.jsonl: no problem is short enough; the first: .*problem a"):
        fit(PROBLEMS, examples, 1, DataConfig(path="d.jsonl", on_invalid="skip"))


def test_a_prompt_needs_room_for_its_completion():
    def fits(context, **data):
        data = DataConfig(path="d.jsonl", **data)
        return fit_prompts(PROBLEMS, ["two and", "two"], TOKENIZER, completion=3, context=context, data=data)

    assert fits(5) == ([0, 1], [])
    assert fits(None) == ([0, 1], [])
    assert fits(4, on_invalid="skip")[0] == [1]
    with pytest.raises(
        DataError, match=r"problem a: its prompt has 2 tokens, with 3 of completion over the context of 4"
    ):
        fits(4)


@pytest.mark.parametrize(("use_vllm", "limit"), [(True, 4096), (False, 32768)])
def test_vllm_may_have_less_context_than_the_model(use_vllm, limit):
    arguments = SimpleNamespace(use_vllm=use_vllm, vllm_max_model_length=4096)
    assert sampling_context(arguments, 32768) == limit


# -- arguments -----------------------------------------------------------------------------------------------------------


def arguments(**options):
    config = TrainConfig(output="o", model="m", data="d.jsonl", student="s", trainer=options)
    return trainer_arguments(GRPOConfig, "train", config, config.trainer, loading(config))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            {"lerning_rate": 1e-6},
            r"train: `trainer.lerning_rate` is no option of GRPOConfig \(did you mean learning_rate",
        ),
        ({"learning_rate": "1e-6"}, "train: `trainer.learning_rate`: '1e-6' is of another type than float"),
        ({"max_steps": 2.5}, "train: `trainer.max_steps`: 2.5 is of another type than int"),
        ({"save_strategy": "sometimes"}, "train: `trainer`: .*sometimes"),
        ({"output_dir": "x"}, "the stage's `output` says where"),
        ({"save_only_model": True}, "from such a checkpoint no run could go on"),
        ({"hub_token": "hf_x"}, "set the environment variable HF_TOKEN"),
        ({"hub_strategy": "every_save"}, "rlt uploads what is finished"),
        (
            {"model_init_kwargs": {"dtype": "bfloat16"}},
            "`trainer.model_init_kwargs.dtype`: the stage's own `dtype` says it",
        ),
        ({"model_init_kwargs": {"trust_remote_code": True}}, "the stage's own `trust_remote_code`"),
        ({"model_init_kwargs": {"use_safetensors": False}}, "weights are read from safetensors only"),
    ],
)
def test_an_option_that_cannot_be_is_named(options, error):
    with pytest.raises(ConfigError, match=error):
        arguments(**options)


def test_model_options_are_merged_key_by_key():
    assert arguments(model_init_kwargs={"attn_implementation": "sdpa"}).model_init_kwargs == {
        "attn_implementation": "sdpa", "dtype": "float32", "use_safetensors": True, "trust_remote_code": False,
    }  # fmt: skip


def test_trl_never_uploads_by_itself():
    assert not arguments(push_to_hub=True, hub_model_id="me/teacher").push_to_hub


def test_supervised_stages_save_checkpoints_by_themselves_and_between_logs():
    ours = supervised_arguments("warmup", WarmupConfig(output="o", model="m", data="d.jsonl"), {})
    assert (ours.save_strategy.value, ours.save_total_limit) == ("steps", 2)
    assert ours.save_steps % ours.logging_steps == 0


@pytest.mark.parametrize(
    ("options", "fine"),
    [
        ({"save_strategy": "steps", "save_steps": 4}, True),
        ({"save_strategy": "steps", "save_steps": 3}, False),
        ({"save_strategy": "steps", "save_steps": 0.25, "max_steps": 16}, True),
        ({"save_strategy": "steps", "save_steps": 0.3, "max_steps": 16}, False),  # every 5 steps
        ({"save_strategy": "steps", "save_steps": 0.25, "num_train_epochs": 2}, False),
        ({"save_strategy": "epoch"}, False),
        ({"save_strategy": "no"}, True),
    ],
)
def test_checkpoints_lie_between_generations(options, fine):
    given = arguments(**options, steps_per_generation=4, gradient_accumulation_steps=2, per_device_train_batch_size=8)
    if fine:
        check_saving("train", given)
    else:
        with pytest.raises(
            ConfigError, match=r"`trainer\.save_s.* a multiple of 2, the steps that one generation serves"
        ):
            check_saving("train", given)


def test_the_base_model_takes_no_lora_and_no_launch():
    assert not {"peft", "launch"} & set(BaseModelConfig.model_fields)


# -- metrics.jsonl -------------------------------------------------------------------------------------------------------


def test_a_resumed_runs_files_read_as_if_it_had_never_been_cut(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    (tmp_path / "samples.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')
    state = SimpleNamespace(is_world_process_zero=True, global_step=2)
    file = MetricsFile(tmp_path, also=["samples.jsonl"])
    file.on_train_begin(None, state, None)
    file.on_log(None, SimpleNamespace(is_world_process_zero=True, global_step=3), None, logs={"loss": 0.5})
    assert [row for _, row in read_rows(tmp_path / "metrics.jsonl")] == [
        {"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5},
    ]  # fmt: skip
    assert [row for _, row in read_rows(tmp_path / "samples.jsonl")] == [{"step": 0}, {"step": 1}]
