"""The shipped GSM8K recipe on its real rows, from the file to the report: two steps a stage, a small random model."""

import json
from pathlib import Path

import pytest

from rlt.cli import main
from rlt.data.rows import read_rows, write_rows
from tests.byte_models import byte_tokenizer, save, tiny_model

SHARED = Path(__file__).parents[3] / "shared" / "data"
RECIPE = str(Path(__file__).parents[2] / "recipes" / "gsm8k" / "recipe.yaml")
TRAINER = {
    "max_steps": 2, "num_generations": 2, "max_completion_length": 16, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared GSM8K files are not here")
def test_the_gsm8k_recipe_runs_from_real_rows_to_the_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [row for _, row in read_rows(SHARED / "gsm8k_train.jsonl")][:12]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", [row for _, row in read_rows(SHARED / "gsm8k_test.jsonl")][:3])
    tokenizer = byte_tokenizer([row["question"] + row["answer"] for row in rows])
    model = save(tmp_path / "model", tiny_model(tokenizer, 0, max_position_embeddings=4096), tokenizer)

    def flags(step, **keys):
        return [word for key, value in keys.items() for word in (f"--{step}.{key}", json.dumps(value))]

    sft = {
        "trainer": {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
        "max_length": 4096,
    }
    status = main(
        ["run", RECIPE, "--needs-gpu", "false"]
        + ["--defaults.collect.max-tokens", "16", "--defaults.evaluate.max-tokens", "16"]
        + flags("self-explained", model=model, data={"path": "train.jsonl", "name": None, "limit": 12})
        # Random weights close nothing, so that `keep: closed` would leave no row to learn from.
        + flags("closed", keep="all")
        + flags("warmup", model=model, **sft)
        + flags("student", model=model, **sft)
        + flags("train", data={"path": "train.jsonl", "name": None, "limit": 6}, trainer=TRAINER)
        + flags("collect", data={"path": "train.jsonl", "name": None, "limit": 6})
        + flags("distill", model=model, **sft)
        + flags("evaluate", data="test.jsonl", samples=2)
    )
    assert status == 0
    run = tmp_path / "runs" / "gsm8k"
    results = json.loads((run / "results.json").read_text())
    assert set(results["arms"]) == {"warmup", "rlt"}
    assert results["arms"]["rlt"]["seeds"][0]["problems"] == 3
    assert results["incomplete"] == []
    assert len([row for _, row in read_rows(run / "collect" / "rlt")]) == 6
    metrics = [row for _, row in read_rows(run / "train" / "metrics.jsonl") if "reward" in row]
    assert [row["step"] for row in metrics] == [1, 2]
    assert {"rlt/r_ss", "rlt/r_kl", "rlt/lift_over_empty", "rlt/lift_over_shuffled", "rlt/unclosed"} <= set(metrics[0])
    page = (run / "report.html").read_text()
    assert '"arm":"rlt"' in page
    for folder in ("warmup", "train", "distill/rlt"):
        assert (run / folder / "model.safetensors").is_file()
        assert "arxiv.org/abs/2506.08388" in (run / folder / "README.md").read_text()


def test_without_a_gpu_the_recipe_says_so_and_names_the_quickstart(tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["run", RECIPE]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "needs a GPU" in error
    assert "rlt run quickstart" in error
