"""What TRL is asked for, and how a run's metrics read after a cut."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from trl import GRPOConfig

from rlt.config import PretrainConfig, TrainConfig, WarmupConfig
from rlt.data.rows import read_rows
from rlt.errors import ConfigError, RunError
from rlt.training.arguments import check_saving, loading, sampling_context, supervised_arguments, trainer_arguments
from rlt.training.loop import MetricsFile


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
            r"train: `trainer.lerning_rate`: unknown option of GRPOConfig \(did you mean learning_rate",
        ),
        ({"learning_rate": "1e-6"}, "train: `trainer.learning_rate`: expected float, got '1e-6'"),
        ({"max_steps": 2.5}, "train: `trainer.max_steps`: expected int, got 2.5"),
        ({"save_strategy": "sometimes"}, "unknown value 'sometimes'; expected one of no, steps, epoch, best"),
        ({"output_dir": "x"}, "the stage's `output` sets it"),
        ({"save_only_model": True}, "a run could not resume from such a checkpoint"),
        ({"hub_token": "hf_x"}, "set the environment variable HF_TOKEN"),
        ({"hub_strategy": "every_save"}, "rlt uploads the finished model only"),
        (
            {"model_init_kwargs": {"dtype": "bfloat16"}},
            "`trainer.model_init_kwargs.dtype`: the stage's own `dtype` sets it",
        ),
        ({"generation_kwargs": {"temperature": 1.0}}, "`trainer.generation_kwargs.temperature`: `trainer.temperature`"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "rlt renders the prompts"),
        ({"remove_unused_columns": True}, "removes the columns that the reward reads"),
        ({"eval_strategy": "steps"}, "`rlt evaluate` evaluates"),
        ({"seed": 3}, "the stage's own `seed`"),
        ({"model_init_kwargs": {"trust_remote_code": True}}, "the stage's own `trust_remote_code`"),
        ({"model_init_kwargs": {"use_safetensors": False}}, "weights are read from safetensors only"),
    ],
)
def test_a_refused_option_is_named_with_the_reason(options, error):
    with pytest.raises(ConfigError, match=error):
        arguments(**options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_length": 64}, "warmup: `trainer.max_length`: .*; set the stage's own `max_length`"),
        ({"packing": True}, "`trainer.packing`: it needs TRL's `max_length`"),
        ({"truncation_mode": "keep_end"}, "rlt never truncates"),
        ({"padding_free": True}, "`trainer.padding_free`: without flash attention"),
        ({"completion_only_loss": True}, "rlt marks the learned tokens"),
        ({"assistant_only_loss": True}, "rlt marks the learned tokens"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "rlt prepares the rows"),
        ({"chat_template_path": "x.jinja"}, "change the template after the rows are rendered"),
        ({"eos_token": "<eos>"}, "the saved tokenizer would no longer be"),
        ({"pad_token": "<pad>"}, "the saved tokenizer would no longer be"),
        ({"dataloader_drop_last": True}, "dropped but still be counted"),
        ({"ignore_data_skip": True}, "read its first rows twice"),
        ({"auto_find_batch_size": True}, "silently shrink the batch"),
        ({"load_best_model_at_end": True}, "no evaluation data"),
    ],
)
def test_what_would_silently_truncate_drop_or_rewrite_is_refused(options, error):
    config = WarmupConfig(output="o", model="m", data="d.jsonl", trainer=options)
    with pytest.raises(ConfigError, match=error):
        supervised_arguments("warmup", config, {})


def test_a_refused_option_that_is_off_is_harmless():
    config = WarmupConfig(output="o", model="m", data="d.jsonl", trainer={"max_length": None, "packing": False})
    assert supervised_arguments("warmup", config, {}).max_length is None


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
        with pytest.raises(ConfigError, match=r"`trainer\.save_s.* a multiple of 2 \(steps per generation\)"):
            check_saving("train", given)


def test_the_base_model_takes_no_lora_and_no_launch():
    assert not {"peft", "launch"} & set(PretrainConfig.model_fields)


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


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_written(tmp_path, loss):
    state = SimpleNamespace(is_world_process_zero=True, global_step=7)
    with pytest.raises(RunError, match=r"step 7: the loss is (nan|inf)"):
        MetricsFile(tmp_path).on_log(None, state, None, logs={"loss": loss})
    assert not (tmp_path / "metrics.jsonl").exists()
