"""The recipes that come with rlt, by name."""

import zipfile
from pathlib import Path

import pytest

from rlt.catalog import copy_recipe, listing, recipe_path, shipped_recipes
from rlt.cli import main
from rlt.errors import ConfigError
from rlt.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def test_the_shipped_recipes_are_those_of_the_folder_recipes():
    assert {"quickstart", "quickstart/bases", "gsm8k", "paper"} <= set(shipped_recipes())
    assert shipped_recipes()["quickstart"].samefile(RECIPES / "quickstart" / "recipe.yaml")
    assert "cluster/fsdp2" not in shipped_recipes()


def test_time_hardware_and_purpose_are_those_in_the_recipes_file():
    rows = {name: said for name, *said in listing()}
    head = load_recipe(RECIPES / "gpu-24gb" / "recipe.yaml").head
    assert rows["gpu-24gb"] == [head.time, head.hardware, head.description]
    assert not [name for name, said in rows.items() if "-" in said or not all(said)]


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_loads_by_name_in_an_empty_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(recipe_path(name))
    assert recipe.folder == Path("runs") / recipe.head.name


def test_a_file_comes_first_then_a_folder_with_a_recipe_then_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()
    assert recipe_path("quickstart") == shipped_recipes()["quickstart"]  # a folder without a recipe is nothing
    Path("quickstart/recipe.yaml").write_text("name: mine\n")
    assert recipe_path("quickstart") == Path("quickstart/recipe.yaml")
    assert recipe_path("quickstart.yaml") == Path("quickstart.yaml")


def test_a_name_with_a_typo_is_told_the_near_one():
    with pytest.raises(ConfigError, match="Did you mean `quickstart`"):
        recipe_path("quikstart")


def test_a_copy_has_the_whole_folder_and_replaces_nothing(tmp_path):
    copy = copy_recipe("quickstart", tmp_path / "mine")
    assert copy == tmp_path / "mine" / "recipe.yaml"
    assert (tmp_path / "mine" / "bases" / "0" / "model.safetensors").is_file()
    with pytest.raises(ConfigError, match="exists"):
        copy_recipe("quickstart", tmp_path / "mine")


def test_rlt_recipes_lists_them_within_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("quickstart ")
    assert max(map(len, lines)) <= 80


def test_check_plan_and_stages_take_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "quickstart"]) == 0
    assert main(["plan", "gpu-24gb", "--gpu", "rtx4090-24gb", "--rows", "9"]) == 0
    assert main(["problems", "quickstart", "--seeds", "0", "--corpus.count", "9", "--heldout.count", "9"]) == 0
    assert (tmp_path / "runs" / "quickstart" / "corpus.jsonl").is_file()


def test_a_wheel_carries_every_file_of_the_recipes(tmp_path):
    """Built as pip builds it, without dependencies."""
    import subprocess
    import sys

    pytest.importorskip("setuptools", minversion="77")
    source = RECIPES.parent
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*command, str(source)], check=True, timeout=120)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    wanted = {str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*") if path.is_file()}
    wanted = {path for path in wanted if "__pycache__" not in path}
    assert wanted <= {name.removeprefix("rlt/shipped/recipes/") for name in names}
