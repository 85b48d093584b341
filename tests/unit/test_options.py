"""What options TRL, transformers and peft have, read from their source, is what the imported classes have."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import typing

import pytest
from peft import LoraConfig
from transformers import TrainingArguments
from trl import GRPOConfig, SFTConfig

from rlt.training import options
from rlt.training.options import engine_problems, fields_of, literal_of, parameters_of, peft_problems, trainer_problems

CLASSES = [(TrainingArguments, "pretrain"), (SFTConfig, "warmup"), (GRPOConfig, "train")]


@pytest.mark.parametrize(("kind", "stage"), CLASSES)
def test_the_fields_in_the_source_are_those_of_the_class(kind, stage):
    found = fields_of(*options.TRAINERS[stage])
    assert list(found) == [field.name for field in dataclasses.fields(kind) if field.init]


def test_the_fields_of_lora_are_found_too():
    found = fields_of("peft.tuners.lora.config", "LoraConfig")
    assert set(found) == {field.name for field in dataclasses.fields(LoraConfig) if field.init}


@pytest.mark.parametrize(("kind", "stage"), CLASSES)
def test_plain_types_in_the_source_are_those_of_the_class(kind, stage):
    """All but those that name a class of transformers or accelerate, which source alone tells nothing of."""
    hints = typing.get_type_hints(kind)
    found = fields_of(*options.TRAINERS[stage])
    plain = [
        name for name, hint in hints.items() if name in found and not re.search("transformers|accelerate", repr(hint))
    ]
    assert len(plain) > 90
    assert {name: found[name].type for name in plain} == {name: hints[name] for name in plain}


@pytest.mark.parametrize("stage", ["warmup", "train"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lerning_rate": 1e-6}, "`trainer.lerning_rate`: unknown option of {} (did you mean learning_rate"),
        ({"learning_rate": "1e-6"}, "`trainer.learning_rate`: expected float, got '1e-6'."),
        ({"max_steps": 2.5}, "`trainer.max_steps`: expected int, got 2.5."),
        ({"max_steps": True}, "`trainer.max_steps`: expected int, got True."),
        ({"save_strategy": False}, "`trainer.save_strategy`: expected SaveStrategy | str, got False."),
        ({"save_strategy": "step"}, "`trainer.save_strategy`: unknown value 'step'; expected one of steps ..."),
        (
            {"lr_scheduler_type": "cosinus"},
            "`trainer.lr_scheduler_type`: unknown value 'cosinus'; expected one of cosine",
        ),
        ({"hub_token": "hf_secret"}, "`trainer.hub_token`: it would be written to the run's files"),
        ({"model_init_kwargs": {"dtype": "float16"}}, "`trainer.model_init_kwargs.dtype`: the stage's own `dtype`"),
        ({"model_init_kwargs": 3}, "`trainer.model_init_kwargs`: expected dict[str, Any] | str | None, got 3."),
    ],
)
def test_a_wrong_option_is_told(stage, given, message):
    module, kind = options.TRAINERS[stage]
    (line,) = trainer_problems(given, module, kind)
    assert line.startswith(message.format(kind))
    assert "hf_secret" not in line


def test_every_wrong_option_is_told():
    assert len(trainer_problems({"a": 1, "b": 2, "learning_rate": "x"}, *options.TRAINERS["train"])) == 3


def test_right_options_pass():
    given = {"learning_rate": 1, "lr_scheduler_type": "cosine", "save_strategy": "no", "report_to": "none",
             "max_steps": 3, "optim": "adamw_torch", "model_init_kwargs": {"attn_implementation": "sdpa"}}  # fmt: skip
    for stage in ("pretrain", "warmup", "train"):
        known = {key: value for key, value in given.items() if stage != "pretrain" or key != "model_init_kwargs"}
        assert trainer_problems(known, *options.TRAINERS[stage]) == []


def test_wrong_options_of_lora_are_told():
    assert peft_problems({"r": 8, "target_modules": "all-linear", "lora_alpha": 16, "task_type": "CAUSAL_LM"}) == []
    assert peft_problems({"lora_alfa": 8, "r": "8"}) == [
        "`peft.lora_alfa`: unknown option of LoraConfig (did you mean lora_alpha or lora_bias?).",
        "`peft.r`: expected int, got '8'.",
    ]  # fmt: skip


def test_wrong_options_of_an_engine_are_told():
    fine = {"attn_implementation": "sdpa", "device_map": "auto", "revision": "main", "rope_theta": 1e6}
    assert engine_problems("transformers", fine, {"rope_theta": 1e4}) == []
    (line,) = engine_problems("transformers", {"atn_implementation": "sdpa"}, {})
    assert line.startswith(
        "`engine_options.atn_implementation`: unknown option of from_pretrained (did you mean attn_implementation"
    )
    assert engine_problems("transformers", {"some_key_of_a_model": 1}, None) == []
    assert engine_problems("openai", {"x": 1}, {}) == ["`engine_options`: engine `openai` takes none. Leave them out."]


def test_vllms_options_are_those_of_its_source(tmp_path, monkeypatch):
    for name, text in {
        "__init__": "raise ImportError('read, not imported')",
        "entrypoints/llm": "class LLM:\n    def __init__(self, model, *, seed=0, **kwargs): kwargs.pop('swap_space', None)\n",
        "engine/arg_utils": "class EngineArgs:\n    max_num_seqs: int | None = None\n",
    }.items():
        path = tmp_path / "vllm" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (options.fields_of, options.parameters_of, options._tree):
        cached.cache_clear()
    given = {"seed": 1, "swap_space": 4, "max_num_seqs": 8, "max_num_seq": 8}
    assert engine_problems("vllm", given, {}) == [
        "`engine_options.max_num_seq`: unknown option of vllm.LLM (did you mean max_num_seqs?)."
    ]
    for cached in (options.fields_of, options.parameters_of, options._tree):
        cached.cache_clear()


def test_an_absent_package_has_no_options():
    assert fields_of("no_such_package.config", "Config") == {}
    assert parameters_of("no_such_package.config", "Config", "run") == ()


@pytest.mark.parametrize("stage", ["warmup", "train", "distill", "coldstart"])
def test_a_stages_defaults_are_read_from_its_source(stage):
    from importlib import import_module

    assert literal_of(f"rlt.stages.{stage}", "DEFAULTS") == import_module(f"rlt.stages.{stage}").DEFAULTS


def test_no_library_is_imported_to_know_its_options():
    code = (
        "import sys; from rlt.training.options import *\n"
        "for kind in TRAINERS.values(): assert fields_of(*kind)\n"
        "assert peft_problems({'x': 1}) and engine_problems('transformers', {'x': 1}, {})\n"
        "sys.exit(bool({'torch', 'transformers', 'trl', 'peft'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
