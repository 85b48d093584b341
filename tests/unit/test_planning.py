"""Plans worked by hand: parameters, bytes and seconds of known shapes, and the known costs of the published run."""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.plan_memory import SMALL as SMALL_QWEN
from benchmarks.plan_memory import saved
from rlt import planning
from rlt.errors import ConfigError, ModelError
from rlt.models import logprobs
from rlt.planning import Plan, PlanConfig, plan
from rlt.planning.machine import GIB, Launch, load_gpu, load_launch
from rlt.planning.memory import Memory, gathered_bytes, head_bytes, training_activations, training_state
from rlt.planning.options import FIXED, Fixed
from rlt.planning.shapes import FAMILIES, Shape, load_shape, shape_of
from rlt.planning.step_plan import StepPlan
from rlt.planning.throughput import Sampler, cut, longest, sampling_seconds, up_to_cap
from rlt.recipe import build_recipe, load_recipe
from rlt.stages.plan import run

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = Shape(hidden=8, intermediate=16, layers=2, heads=2, kv_heads=1, head_dim=4, vocab=10, tied=True)
QWEN_7B = "Qwen/Qwen2.5-7B-Instruct"


def options(**values: object) -> PlanConfig:
    return PlanConfig.model_validate({"gpu": "h100-80gb", **values})


# -- shapes ------------------------------------------------------------------------------------------------------------


def test_parameters_of_a_small_model_by_hand() -> None:
    attention = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8  # q, k, v, o
    assert SMALL.layer_parameters == attention + 3 * 8 * 16 + 2 * 8 == 592
    assert SMALL.parameters == 2 * 592 + 8 + 10 * 8 == 1272
    assert SMALL.kv_bytes == 2 * 2 * 2 * 1 * 4 == 32  # key and value, two bytes, two layers, one head of four
    assert SMALL.lora_parameters(2, ["q_proj", "down_proj"]) == 2 * 2 * ((8 + 8) + (16 + 8))


@pytest.mark.parametrize(
    ("name", "billions"),
    [("0.5B", 0.494), ("1.5B", 1.544), ("3B", 3.086), ("7B", 7.616), ("14B", 14.770), ("32B", 32.764)],
)
def test_shipped_shapes_have_the_published_numbers_of_parameters(name: str, billions: float) -> None:
    assert load_shape(f"Qwen/Qwen2.5-{name}-Instruct").parameters / 1e9 == pytest.approx(billions, abs=6e-4)


def test_kv_cache_of_qwen_7b_is_56_kib_a_token() -> None:
    assert load_shape(QWEN_7B).kv_bytes == 2 * 2 * 28 * 4 * 128 == 56 * 1024


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_transformers(family: str) -> None:
    config = AutoConfig.for_model(
        family, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=50, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape_of(config.to_dict(), family).parameters == model.num_parameters()


def test_a_folders_config_wins_and_nothing_else_is_read(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
              "vocab_size": 10, "num_attention_heads": 2, "num_key_value_heads": 1,
              "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_shape(str(tmp_path)) == SMALL


def test_what_cannot_be_planned_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model_type 'mixtral'"):
        shape_of({"model_type": "mixtral"}, "x")
    with pytest.raises(ModelError, match=r"config.json has no 'intermediate_size'"):
        shape_of({"model_type": "llama", "num_attention_heads": 2, "hidden_size": 8}, "x")
    with pytest.raises(ModelError, match="target_modules"):
        SMALL.lora_parameters(8, ["lm_head"])


def test_forward_flops_are_two_a_parameter_and_token_and_half_of_attention() -> None:
    tokens = 4
    weights = 2 * 592 + 10 * 8  # layers and the (tied) output table
    scores_and_values = (
        2 * 2 * (2 * 4) * tokens * tokens * 2 / 2
    )  # FLOPs, two products, q width, T x T, layers, causal half
    assert SMALL.forward_flops(tokens) == 2 * weights * tokens + scores_and_values


# -- memory ------------------------------------------------------------------------------------------------------------


def test_sixteen_bytes_a_parameter_in_float32_training() -> None:
    p = SMALL.parameters
    state, host = training_state(SMALL, p, Launch("fsdp2"), 4, 4, 8)
    assert sum(state.values()) == 16 * p / 4
    assert host == 0
    state, host = training_state(SMALL, p, Launch("zero3"), 4, 4, 8)
    assert state == {"weights": 2 * p / 4, "gradients": 2 * p / 4, "optimiser": 12 * p / 4}


def test_offloading_moves_the_optimiser_to_the_host() -> None:
    p = SMALL.parameters
    state, host = training_state(SMALL, p, Launch("zero3", offload_optimiser=True), 8, 4, 8)
    assert state == {"weights": 2 * p / 8, "gradients": 0.0, "optimiser": 0.0}
    assert host == 16 * p  # float32 gradients, master weights, two moments


def test_lora_trains_only_its_own() -> None:
    state, _ = training_state(SMALL, 100, Launch("single"), 1, 2, 8)
    assert state == {"weights": 2 * 1272 + 400, "gradients": 400, "optimiser": 800}


def test_ddp_shards_nothing_and_doubles_gradients() -> None:
    p = SMALL.parameters
    state, _ = training_state(SMALL, p, Launch("ddp"), 8, 4, 8)
    assert state == {"weights": 4 * p + 2 * p, "gradients": 8 * p, "optimiser": 8 * p}
    assert gathered_bytes(SMALL, Launch("ddp")) == 0


def test_the_output_layer_never_holds_the_logits_of_all_positions() -> None:
    shape = load_shape(QWEN_7B)
    short, long = (head_bytes(shape, tokens, trained=False) for tokens in (8192, 16384))
    assert long - short == 4 * 8192  # a log-prob for each token, and nothing of the vocabulary's size
    assert long < 0.1 * 16384 * shape.vocab * 2


@pytest.mark.parametrize("residual", [2, 4])
def test_activations_are_the_tensors_that_transformers_saves(residual: int) -> None:
    config = {**SMALL_QWEN, "intermediate_size": 320}
    measured = [saved(config, layers, 48, residual) for layers in (1, 3)]
    shapes = [shape_of({**config, "num_hidden_layers": layers}, "x") for layers in (1, 3)]
    planned = [training_activations(shape, 48, checkpointing=False, residual=residual) for shape in shapes]
    assert measured[1] - measured[0] == pytest.approx(planned[1] - planned[0], rel=0.01)


# -- time --------------------------------------------------------------------------------------------------------------


def test_lengths_of_no_spread_are_all_the_mean() -> None:
    assert longest(100, 50, 0.0, 1000) == 100
    assert cut(100, 0.0, 80) == 80
    assert up_to_cap(100, 0.0, 200) == (1.0, 100)


def test_lengths_agree_with_drawn_ones() -> None:
    torch.manual_seed(0)
    sigma = math.sqrt(math.log1p(0.55**2))
    drawn = torch.exp(torch.randn(2000, 256) * sigma + math.log(3500) - sigma**2 / 2)
    assert drawn.amax(1).mean().item() == pytest.approx(longest(3500, 256, 0.55, 1e9), rel=0.05)
    assert drawn.clamp(max=4096).mean().item() == pytest.approx(cut(3500, 0.55, 4096), rel=0.01)
    share, mean = up_to_cap(3500, 0.55, 4096)
    assert (drawn <= 4096).float().mean().item() == pytest.approx(share, rel=0.01)
    assert drawn[drawn <= 4096].mean().item() == pytest.approx(mean, rel=0.01)


def test_decoding_reads_weights_each_step_and_the_cache_of_what_runs() -> None:
    gpu = load_gpu("h100-80gb")
    free = options(length_spread=0, decode_efficiency=1, step_overhead_ms=0, utilisation=1)
    shape = load_shape(QWEN_7B)
    # One sequence of 100 tokens after 1 of prompt: 100 times the weights, and 100 + 100 * 100 / 2 positions of cache.
    read = 100 * 2 * shape.parameters + shape.kv_bytes * (100 + 100**2 / 2)
    seconds = sampling_seconds(Sampler(shape, 1, 8), gpu, 1, 1, 100, 1000, free)
    assert seconds == pytest.approx(read / gpu.bandwidth + shape.forward_flops(1) / gpu.flops)


def test_a_sampler_of_more_sequences_at_once_is_faster_but_not_in_proportion() -> None:
    gpu, shape = load_gpu("h100-80gb"), load_shape(QWEN_7B)
    slow, fast = (sampling_seconds(Sampler(shape, 1, n), gpu, 1000, 100, 500, 1000, options()) for n in (8, 64))
    assert 2 < slow / fast < 8


# -- launch configurations and errors ----------------------------------------------------------------------------------


def test_launch_configurations_are_read(tmp_path: Path) -> None:
    assert load_launch(None) == load_launch("single") == Launch("single", processes=1)
    assert load_launch("fsdp2") == Launch("fsdp2")
    assert load_launch("deepspeed-zero3-offload") == Launch("zero3", offload_optimiser=True)
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")
    assert load_launch(str(own)) == Launch("ddp", processes=4)
    with pytest.raises(ConfigError, match=r"`launch`: 'fsdp3' is neither a shipped configuration \(ddp, "):
        load_launch("fsdp3")


def test_an_unknown_gpu_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown GPU 'h10-80gb' \(did you mean h100-80gb\?\); expected one of h100-80gb, "
    ):
        load_gpu("h10-80gb")
    assert load_gpu("RTX-4090") == load_gpu("rtx4090-24gb")
    with pytest.raises(ConfigError, match="unknown GPU 'a100'"):
        load_gpu("a100")  # there are two


def distill(tmp_path: Path, **values: object) -> Plan:
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n" * 100)
    step = {"model": "Qwen/Qwen2.5-0.5B-Instruct", "data": str(data), "max_length": 4096, **values}
    return plan(
        build_recipe({"name": "x", "seeds": [0, 1], "distill": step}, "x/recipe.yaml"), options(price_per_hour=2.0)
    )


def test_hours_cost_and_disk_add_up_over_seeds(tmp_path: Path) -> None:
    planned = distill(tmp_path)
    (step,) = planned.steps
    assert planned.hours == 2 * step.hours
    assert planned.cost == pytest.approx(2.0 * planned.gpu_hours)
    assert planned.disk == 2 * step.disk == 2 * 4 * load_shape("Qwen/Qwen2.5-0.5B-Instruct").parameters
    assert planned.disk_peak == planned.disk  # no checkpoints


def test_checkpoints_of_lora_have_only_the_adapters(tmp_path: Path) -> None:
    shape, trainer = load_shape("Qwen/Qwen2.5-0.5B-Instruct"), {"save_strategy": "steps", "save_steps": 1}
    (step,) = distill(tmp_path, trainer=trainer).steps
    assert step.disk == (4 + 2 * (4 + 8)) * shape.parameters  # the model, two checkpoints with Adam's moments
    assert step.disk_peak == 3 * (4 + 8) * shape.parameters  # the third is written before the first goes
    (step,) = distill(tmp_path, trainer=trainer, peft={"r": 8}, dtype="bfloat16").steps
    assert step.disk == 2 * shape.parameters + 2 * (4 + 8) * shape.lora_parameters(8, None)


def test_training_flops_by_hand(tmp_path: Path) -> None:
    shape = load_shape("Qwen/Qwen2.5-0.5B-Instruct")
    trainer = {"per_device_train_batch_size": 1, "num_train_epochs": 2}
    share, mean = up_to_cap(4200, 0.55, 4096)
    rows = round(100 * share)
    (step,) = distill(tmp_path, trainer=trainer).steps
    flops = 2 * rows * 4 * shape.forward_flops(mean)  # forward, backward twice, recomputing once
    assert step.seconds["training"] == pytest.approx(flops / (989e12 * 0.3))
    (step,) = distill(tmp_path, trainer={**trainer, "gradient_checkpointing": False}).steps
    assert step.seconds["training"] == pytest.approx(0.75 * flops / (989e12 * 0.3))


def test_a_model_too_large_for_the_gpu_does_not_fit(tmp_path: Path) -> None:
    small, large = distill(tmp_path), distill(tmp_path, model=QWEN_7B)
    assert small.fits_memory
    assert not large.fits_memory
    assert "NO" in large.text()
    assert large.steps[0].peak > 16 * load_shape(QWEN_7B).parameters


def test_half_precision_weights_that_would_not_learn_are_pointed_out(tmp_path: Path) -> None:
    assert "round most updates away" in distill(tmp_path, dtype="bfloat16").text()
    assert "round most updates away" not in distill(tmp_path, dtype="bfloat16", peft={"r": 8}).text()


def test_rows_that_cannot_be_counted_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="someone/some-data: unknown number of rows; set --rows"):
        distill(tmp_path, data="someone/some-data")


def test_the_command_takes_assumptions_and_keys_of_steps() -> None:
    paper = RECIPES / "paper" / "recipe.yaml"
    whole = run(paper, {"gpu": "h100", "count": 8})
    short = run(paper, {"gpu": "h100", "count": 8, "utilisation": 0.6, "train": {"trainer": {"max_steps": 25}}})
    assert short.steps[1].hours < whole.steps[1].hours / 5
    assert short.steps[0].hours == pytest.approx(whole.steps[0].hours / 2)
    with pytest.raises(ConfigError, match=r"`utilization`: unknown key \(did you mean utilisation\?\)"):
        run(paper, {"gpu": "h100", "utilization": 0.6})


def test_a_server_needs_gpus_of_its_own() -> None:
    recipe = load_recipe(RECIPES / "paper" / "recipe.yaml")
    with pytest.raises(ConfigError, match="step `train`: of 1 GPUs"):
        plan(recipe, options(count=1))


# -- the published run -------------------------------------------------------------------------------------------------


def test_every_assumption_is_printed() -> None:
    text = plan(load_recipe(RECIPES / "paper" / "recipe.yaml"), options(count=8)).text(assumptions=True)
    for name in PlanConfig.model_fields:
        if name not in ("gpu", "count", "price_per_hour", "sampler_gpus", "rows", "assumptions"):
            assert f"\n  {name.replace('_', '-')} " in text
    for name in Fixed.model_fields:
        assert f"\n  {name.replace('_', '-')} " in text
    assert "zero3-live 1,000,000,000: " in text
    assert "math500 500" in text


def test_there_is_no_number_that_is_not_printed() -> None:
    modules = [importlib.import_module(f"rlt.planning.{info.name}") for info in pkgutil.iter_modules(planning.__path__)]
    named = {name for m in modules for name, value in vars(m).items() if isinstance(value, int | float | dict)}
    assert {name for name in named if name.isupper()} == {"GIB", "GB"}


def test_a_scoring_pass_is_planned_for_the_tokens_that_it_has() -> None:
    assert logprobs.DEFAULT_BATCH_TOKENS["cuda"] == FIXED.score_tokens


def test_the_published_costs_within_the_error_that_the_documentation_states() -> None:
    """280 H100-hours of teacher RL, 6.7 to collect 17k explanations, a 32B student in under a day on one node."""
    recipe = load_recipe(RECIPES / "paper" / "recipe.yaml")
    padded = {step.name: step for step in plan(recipe, options(count=8, padding="generation")).steps}
    trimmed = {step.name: step for step in plan(recipe, options(count=8, padding="micro-batch")).steps}
    assert trimmed["train"].hours * 8 / 280.4 == pytest.approx(0.98, abs=0.05)
    assert padded["train"].hours * 8 / 280.4 == pytest.approx(2.07, abs=0.1)
    assert padded["collect"].hours * 8 / 6.7 == pytest.approx(0.79, abs=0.05)
    assert padded["distill-32b"].hours < 24
    assert all(step.peak < 79.6 * GIB for step in padded.values())


def test_a_32b_student_needs_its_optimiser_offloaded_on_eight_gpus() -> None:
    recipe = load_recipe(RECIPES / "paper" / "recipe.yaml", {"distill-32b": {"launch": "deepspeed-zero3"}})
    planned = plan(recipe, options(count=8))
    step = next(step for step in planned.steps if step.name == "distill-32b")
    assert not planned.step_fits_memory(step)


# -- what is printed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paper", "cluster", "miniature", "quickstart"])
def test_a_plan_is_printed_in_thirty_lines_of_a_hundred_columns(name: str) -> None:
    recipe = load_recipe(RECIPES / name / "recipe.yaml")
    lines = str(plan(recipe, options(count=16, price_per_hour=2.5, rows=1000))).splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100


def test_the_assumptions_are_printed_on_request_and_fit_a_hundred_columns() -> None:
    recipe = load_recipe(RECIPES / "paper" / "recipe.yaml")
    short, whole = (str(plan(recipe, options(count=8, assumptions=shown))) for shown in (False, True))
    assert "Add --assumptions" in short
    assert "zero3-live" not in short
    assert "zero3-live" in whole
    assert max(map(len, whole.splitlines())) <= 100


def planned_steps(hours: list[float], large: str | None = None) -> Plan:
    """A plan of steps `s0`, `s1`, ... on GPUs of 79.6 GiB, where `large` needs more."""
    steps = [
        StepPlan(f"s{i}", "distill", "m", 1, (Memory("update", 1e12 if f"s{i}" == large else 1e9),), {"all": h * 3600})
        for i, h in enumerate(hours)
    ]
    return Plan("x", load_gpu("h100-80gb"), options(), tuple(steps))


def test_the_shortest_steps_share_a_row_and_their_hours_are_kept() -> None:
    text = planned_steps([float(hour) for hour in range(20, 0, -1)]).text()
    assert "s12 " in text  # 13 rows of their own
    assert "s13 " not in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("7 shorter steps")]
    assert row[3:7] == ["1", "0.9", "yes", "28.0"]  # GPUs, GiB, fits, 7 + 6 + ... + 1 hours


def test_a_step_that_does_not_fit_keeps_its_row_however_short_it_is() -> None:
    text = planned_steps([1.0] * 20 + [0.1], large="s20").text()
    (row,) = [line for line in text.splitlines() if line.startswith("s20 ")]
    assert "NO" in row


def test_warnings_name_their_steps_and_are_in_the_short_plan(tmp_path: Path) -> None:
    assert "set `dtype: float32` (distill)" in " ".join(distill(tmp_path, dtype="bfloat16").text().split())


# -- scoring -----------------------------------------------------------------------------------------------------------


def recipe_of(tmp_path: Path, **steps: object) -> Plan:
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n" * 100)
    whole = {"name": "x", "first": {"stage": "distill", "model": SMALL_HUB, "data": str(data)}, **steps}
    return plan(build_recipe(whole, "x/recipe.yaml"), options(count=8))


SMALL_HUB = "Qwen/Qwen2.5-0.5B-Instruct"
P = load_shape(SMALL_HUB).parameters


def test_scoring_on_ray_has_a_copy_of_each_offloaded_model_per_worker_on_the_host(tmp_path: Path) -> None:
    score = {
        "teacher": SMALL_HUB, "data": str(tmp_path / "data.jsonl"), "student": SMALL_HUB,
        "student_placement": "offload", "ray": "local", "ray_workers": 4,
    }  # fmt: skip
    step = recipe_of(tmp_path, score=score).steps[1]
    (scoring,) = step.moments
    assert scoring.weights == 2 * 2 * P  # student and teacher, in bfloat16
    assert step.host == 4 * 2 * 2 * P  # of each of four workers
    assert "scoring on 4 GPU(s)" in step.notes


@pytest.mark.parametrize(("keep", "rows"), [("all", 400), ("random", 100), ("best", 100), ("bands", 100)])
def test_what_a_selection_keeps_decides_how_much_is_distilled(tmp_path: Path, keep: str, rows: int) -> None:
    scores = {"scores": "s.jsonl"} if keep in ("best", "bands") else {}
    steps = {
        "collect": {"model": SMALL_HUB, "data": str(tmp_path / "data.jsonl"), "samples": 4},
        "select": {"data": "@collect", "keep": keep, **scores},
        "distill": {"model": SMALL_HUB, "data": "@select", "max_length": 10**6},
    }
    distill = recipe_of(tmp_path, **steps).steps[3]
    assert distill.notes[0].startswith(f"{rows} rows")


@pytest.mark.parametrize(("dtype", "wide"), [("auto", 4), ("bfloat16", 2), ("float32", 4)])
def test_models_are_planned_in_the_type_in_which_they_are_loaded(tmp_path: Path, dtype: str, wide: int) -> None:
    """A student that was trained without DeepSpeed is saved in float32, and `auto` takes what is saved."""
    score = {"student": ["@first"], "data": str(tmp_path / "data.jsonl"), "dtype": dtype}
    step = recipe_of(tmp_path, score=score).steps[1]
    assert step.moments[0].weights == wide * P
    assert any("loaded in float32" in warning for warning in step.warnings) is (wide == 4)


def test_what_deepspeed_saves_is_bfloat16(tmp_path: Path) -> None:
    first = {"stage": "distill", "model": SMALL_HUB, "data": str(tmp_path / "data.jsonl"), "launch": "deepspeed-zero3"}
    score = {"student": ["@first"], "data": str(tmp_path / "data.jsonl")}
    assert recipe_of(tmp_path, first=first, score=score).steps[1].moments[0].weights == 2 * P


def test_every_process_has_its_own_copy_of_an_offloaded_student() -> None:
    planned = plan(load_recipe(RECIPES / "gpu-8x80gb" / "recipe.yaml"), options(count=8))
    (train,) = [step for step in planned.steps if step.name == "train"]
    assert train.host == 8 * 2 * load_shape("bespokelabs/Bespoke-Stratos-7B").parameters
    assert planned.host_of_node(train) == train.host


def test_a_checkpoint_in_float32_is_known_by_its_config() -> None:
    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 10,
              "num_attention_heads": 2}  # fmt: skip
    assert [shape_of({**config, **named}, "x").weight_bytes for named in ({}, {"dtype": "bfloat16"})] == [2, 2]
    assert shape_of({**config, "torch_dtype": "float32"}, "x").weight_bytes == 4
