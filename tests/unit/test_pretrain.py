"""The small base model: words of every task that its phases mix, and nothing that is held out."""

from pathlib import Path

from transformers import AutoTokenizer

from rlt.config import PretrainConfig
from rlt.data.rows import write_rows
from rlt.stages import pretrain
from rlt.tasks import arithmetic, countdown


def config(folder: Path, **more: object) -> PretrainConfig:
    values = {
        "output": folder, "format": "words", "task": "arithmetic",
        "model": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}, **more,
    }  # fmt: skip
    return PretrainConfig.model_validate(values)


def test_tokenizer_has_the_words_of_every_task_mixed_in(tmp_path: Path) -> None:
    small = pretrain._words(arithmetic, {"arithmetic": arithmetic})
    both = pretrain._words(arithmetic, {"countdown": countdown, "arithmetic": arithmetic})
    assert small == arithmetic.vocabulary()
    assert both[: len(small)] == small  # the first task's words keep their places
    assert {"make", "99", "..."} <= set(both)
    assert len(both) == len(set(both))


def test_a_phase_learns_from_every_task_in_it_but_from_no_excluded_question(tmp_path: Path, monkeypatch) -> None:
    held_out = tmp_path / "heldout.jsonl"
    options = {"numbers": 2, "largest": 3}
    everything = [p.question for p in countdown.generate(6, 1, options)]
    write_rows(held_out, [{"question": question} for question in everything[:4]])
    learned: list[str] = []
    examples_of = pretrain.examples_of

    def noting(tokenizer, rendered, *more):
        learned.extend(one.text for one in rendered)
        return examples_of(tokenizer, rendered, *more)

    monkeypatch.setattr(pretrain, "examples_of", noting)
    phase = {
        "options": {"steps": 1}, "problems": 3, "batch_size": 5, "max_steps": 1,
        "also": {"countdown": {"options": options, "problems": 2}},
    }  # fmt: skip
    pretrain.run(config(tmp_path / "base", phases=[phase], exclude=[held_out]))
    assert len(learned) == 5
    assert sum("make" in text for text in learned) == 2
    assert not any(question in text for text in learned for question in everything[:4])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(learned)["input_ids"])
