"""Every recipe that is shipped loads, asks TRL, peft and accelerate only for what they have, and can be planned."""

from __future__ import annotations

import re
import shutil
import subprocess
import typing
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from peft import LoraConfig
from pydantic import TypeAdapter
from trl import GRPOConfig, SFTConfig

from rlt.config import STAGES, PretrainConfig, ProblemsConfig
from rlt.config.launch import SHIPPED
from rlt.helptext import SUMMARIES
from rlt.launching import processes
from rlt.outputs import changed_keys
from rlt.planning import PlanConfig, plan
from rlt.recipe import Recipe, Step, load_recipe
from rlt.stages import coldstart, distill, train, warmup
from rlt.stages.pretrain import Phase
from rlt.tasks import load_generated_task

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path.parent.name for path in FOLDER.glob("*/recipe.yaml"))
LARGE = {  # recipe -> machine for which its README plans it
    "paper": {"gpu": "h100-80gb", "count": 8},
    "gpu-24gb": {"gpu": "rtx4090-24gb", "count": 1, "explanation_tokens": 1000},
    "gpu-80gb": {"gpu": "h100-80gb", "count": 1},
    "gpu-8x80gb": {"gpu": "h100-80gb", "count": 8},
    "cluster": {"gpu": "h100-80gb", "count": 16},
}
TRAINERS = {
    "warmup": (SFTConfig, warmup.DEFAULTS),
    "distill": (SFTConfig, distill.DEFAULTS),
    "train": (GRPOConfig, train.DEFAULTS),
    "coldstart": (GRPOConfig, coldstart.DEFAULTS),
    "pretrain": (SFTConfig, {}),
}


def load(name: str) -> Recipe:
    return load_recipe(FOLDER / name / "recipe.yaml")


def first_seed(recipe: Recipe) -> list[Step]:
    return [step for step in recipe.steps if step.seed in (recipe.head.seeds[0], None)]


def test_the_recipes_of_every_size_are_there() -> None:
    assert {*LARGE, "quickstart"} <= set(RECIPES)


@pytest.mark.parametrize("name", ["quickstart", "miniature"])
def test_there_are_as_many_different_problems_as_a_recipe_asks_for(name: str) -> None:
    steps = {step.name: step for step in first_seed(load(name))}
    generated: dict[str, list[str]] = {}
    for step in steps.values():
        excluded = [q for path in getattr(step.config, "exclude", []) for q in generated[str(path)]]
        if isinstance(step.config, ProblemsConfig):
            config = step.config
            problems = load_generated_task(config.task).generate(config.count, config.seed, config.options, excluded)
            generated[str(config.output)] = [problem.question for problem in problems]
        if isinstance(step.config, PretrainConfig):
            for number, phase in enumerate(step.config.phases):
                whole = Phase.model_validate(phase)
                for task, part in {step.config.task: whole, **whole.also}.items():
                    load_generated_task(task).generate(part.problems, number, part.options, excluded)


def test_the_recipe_in_the_readme_loads_and_fits_the_machine_that_it_is_planned_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (FOLDER.parent / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    for name in ("traces", "problems"):
        Path(f"{name}.jsonl").write_text('{"question": "1 + 1?", "solution": "2", "explanation": "one more"}\n')
    (tmp_path / "my-teacher.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    assert "rlt plan my-teacher.yaml --gpu h100-80gb --count 8" in text
    assert plan(load_recipe(tmp_path / "my-teacher.yaml"), PlanConfig(gpu="h100-80gb", count=8)).fits_memory


@pytest.mark.parametrize("name", RECIPES)
def test_trainer_options_are_trls_own_and_of_the_right_type(name: str, tmp_path: Path) -> None:
    for step in first_seed(load(name)):
        options: dict[str, Any] = getattr(step.config, "trainer", {})
        if step.stage not in TRAINERS:
            assert not options
            continue
        kind, defaults = TRAINERS[step.stage]
        hints = typing.get_type_hints(kind)
        for option, value in options.items():
            assert option in hints, f"{step.name}: `trainer.{option}` is no option of {kind.__name__}"
            TypeAdapter(hints[option]).validate_python(value, strict=True)
        on_this_machine = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
        kind(**{**defaults, **options, **on_this_machine})


@pytest.mark.parametrize("name", RECIPES)
def test_lora_options_are_pefts_own(name: str) -> None:
    for step in load(name).steps:
        if getattr(step.config, "peft", None) is not None:
            LoraConfig(**step.config.peft)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_planned(name: str) -> None:
    options = PlanConfig.model_validate({"gpu": "h100-80gb", "rows": 1000, **LARGE.get(name, {})})
    planned = plan(load(name), options)
    assert [step.name for step in planned.steps] == [step.name for step in first_seed(load(name))]
    assert planned.fits_memory
    for step in planned.steps:
        trains = step.stage in TRAINERS or step.stage in ("collect", "evaluate", "score")
        assert bool(step.gpus) == bool(step.hours) == trains, step.name


@pytest.mark.parametrize("name", LARGE)
def test_the_readme_says_that_nothing_was_run_and_what_is_planned(name: str) -> None:
    readme = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert "not run" in readme.lower()
    assert "seed" in readme.lower()
    shown = re.search(r"^all\b.*?yes +([\d.,]+) +([\d.,]+)", readme, re.MULTILINE)
    assert shown, "README.md shows no plan; paste the first table that `rlt plan` prints"
    planned = plan(load(name), PlanConfig.model_validate(LARGE[name]))
    hours = float(shown[1].replace(",", ""))
    assert hours == pytest.approx(planned.hours, rel=0.05), "paste the table that the README's `rlt plan` prints today"


def test_the_papers_recipe_has_the_published_numbers() -> None:
    steps = {step.name: step.config for step in load("paper").steps}
    rl, sft = steps["train"].trainer, steps["warmup"].trainer  # type: ignore[attr-defined]
    assert rl["generation_batch_size"] == 16 * 64 == 1024
    # Four GPUs train; sampled once, used for one update.
    assert rl["per_device_train_batch_size"] * rl["gradient_accumulation_steps"] * 4 == 1024
    assert (rl["num_generations"], rl["max_steps"], rl["learning_rate"]) == (64, 125, 1e-6)
    assert (rl["beta"], rl["temperature"], rl["max_completion_length"], rl["loss_type"]) == (0.04, 0.7, 16384, "grpo")
    # TRL's direction: alpha * policy + (1 - alpha) * reference.
    assert (rl["sync_ref_model"], rl["ref_model_sync_steps"], rl["ref_model_mixup_alpha"]) == (True, 32, 0.9)
    assert sft["per_device_train_batch_size"] * sft["gradient_accumulation_steps"] * 8 == 16
    for student in ("distill-7b", "distill-32b"):
        options = steps[student].trainer  # type: ignore[attr-defined]
        assert options["per_device_train_batch_size"] * options["gradient_accumulation_steps"] * 8 == 96
        assert (options["num_train_epochs"], options["learning_rate"]) == (3, 1e-5)


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*/*.seconds.json")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_a_table_of_seconds_has_every_step_of_its_recipe(path: Path) -> None:
    """Where steps changed: `rlt timings runs/NAME > recipes/NAME/recipe.seconds.json` after a run."""
    recipe = load_recipe(path.with_name(path.name.replace(".seconds.json", ".yaml")))
    assert set(recipe.timings) == {step.name for step in recipe.steps if step.stage != "report"}


def test_every_number_of_the_papers_recipe_names_its_source() -> None:
    text = (FOLDER / "paper" / "recipe.yaml").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(text):
        key, _, value = line.partition(":")
        if re.fullmatch(r"\s*-?[\d.]+(e-?\d+)?\s*(#.*)?", value) and "ray_workers" not in key:
            near = "\n".join(text[max(0, number - 5) : number + 1])
            assert re.search(r"\[(code|notes?|sky|ours)\]", near), f"line {number + 1} has no source: {line.strip()}"


# -- launching ---------------------------------------------------------------------------------------------------------


def launch_files() -> list[Path]:
    shipped = [Path(str(entry)) for entry in SHIPPED.iterdir()]
    return sorted([*shipped, FOLDER / "cluster" / "fsdp2.yaml", FOLDER / "cluster" / "zero3-offload.yaml"])


@pytest.mark.parametrize("path", launch_files(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_launch_configurations_are_accepted_by_accelerate(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_config_from_file(str(path))  # refuses unknown keys
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    command = ["--config_file", str(path), *processes(path), "-m", "rlt.launching"]
    arguments = launch_command_parser().parse_args(command)
    arguments, defaults, _ = _validate_launch_command(arguments)
    assert arguments.mixed_precision == defaults.mixed_precision == "bf16"
    assert arguments.num_processes == (1 if path.stem == "single" else 8)
    kinds = {"single": (False, False, False), "ddp": (True, False, False), "fsdp2": (False, True, False)}
    expected = kinds.get(path.stem, (False, False, True))
    assert (arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed) == expected
    if arguments.use_fsdp:
        assert int(arguments.fsdp_version) == 2
        # With sharded state dicts transformers' `save_model` writes no model at the end.
        assert arguments.fsdp_state_dict_type == "FULL_STATE_DICT"
    if arguments.use_deepspeed:
        assert arguments.zero_stage == 3
        assert arguments.zero3_save_16bit_model is True


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("script", ["paper/run.sh", "cluster/job.slurm"])
def test_scripts_are_valid_and_call_commands_that_exist(script: str) -> None:
    subprocess.run(["bash", "-n", str(FOLDER / script)], check=True)
    text = (FOLDER / script).read_text(encoding="utf-8")
    called = set(re.findall(r"(?m)(?:^|\s)rlt ([a-z]+)", re.sub(r"(?m)^\s*#.*$", "", text)))
    assert called
    assert called <= {*SUMMARIES, *STAGES}


def test_a_run_goes_on_with_its_servers_at_other_addresses() -> None:
    def config(host: str, model: str = "Qwen/Qwen2.5-32B-Instruct") -> dict[str, Any]:
        trainer = {"max_steps": 5, "vllm_server_base_url": f"http://{host}:8000"}
        return {"student": [f"http://{host}:8001/v1#{model}", "local"], "trainer": trainer}

    assert changed_keys(config("node7"), config("node9")) == []
    assert len(changed_keys(config("node7"), config("node9", "other"))) == 1
    assert changed_keys(config("node7"), config("node7") | {"trainer": {"max_steps": 6}}) == [
        "`trainer.max_steps`: 5 there, 6 now"
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_run_keeps_of_a_recipe_makes_the_same_steps(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(load(name).dump(), encoding="utf-8")
    assert load_recipe(path).steps == load(name).steps
