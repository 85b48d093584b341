"""What TRL is asked for, and how a run's metrics read after a cut."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from trl import GRPOConfig

from rlt.config import BaseModelConfig, TrainConfig, WarmupConfig
from rlt.data.rows import read_rows
from rlt.errors import ConfigError
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
        ({"output_dir": "x"}, "the stage's `output` decides where"),
        ({"save_only_model": True}, "no run could resume from such a checkpoint"),
        ({"hub_token": "hf_x"}, "set the environment variable HF_TOKEN"),
        ({"hub_strategy": "every_save"}, "rlt uploads the finished model only"),
        (
            {"model_init_kwargs": {"dtype": "bfloat16"}},
            "`trainer.model_init_kwargs.dtype`: the stage's own `dtype` decides",
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
