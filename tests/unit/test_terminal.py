"""What a run prints keeps to the terminal."""

from rlt.cli import main
from rlt.results.benchmarks import table
from rlt.results.words import terminal_report
from rlt.terminal import fitted


def test_a_line_is_wrapped_and_a_path_is_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = "runs/" + "x" * 50
    assert fitted(f"one two three four five six seven eight nine {path}") == (
        "one two three four five six seven eight\n    nine\n    " + path
    )


def test_a_run_of_a_recipe_prints_no_line_wider_than_80_columns(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "r.yaml").write_text(
        "name: r\ndescription: "
        + "a long purpose " * 10
        + "\nproblems: {task: arithmetic, count: 9, experts: harder}\n"
        "closed: {stage: select, data: '@problems', keep: closed, format: words}\n"
        "report: {}\n"
    )
    assert main(["run", "r.yaml"]) == 0
    said = capfd.readouterr()
    assert max(map(len, said.out.splitlines())) <= 80
    assert "\x1b" not in said.out


def test_the_report_ends_with_sentences_then_the_main_table(monkeypatch):
    monkeypatch.setattr("rlt.results.words.tables", lambda *_: ["main", "other"])
    monkeypatch.setattr("rlt.results.words.sentences", lambda *_: ["Compared.", "Result.", "Certainty."])

    class Results:
        incomplete, seconds = (), {}

    class Config:
        note = None

    assert terminal_report(Config(), Results()) == "other\n\nCompared.\nResult.\nCertainty.\n\nmain"


def test_the_table_of_an_evaluation_is_split_to_100_columns_and_explained(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    row = {
        "version": 1, "questions": 1319, "samples": 4, "seed": 0, "pass@1": 0.267, "standard_error": 0.082,
        "interval": [0.123, 0.459], "pass@k": {"4": 0.5}, "majority@k": {"4": 0.3}, "mean_completion_tokens": 19.0,
        "unfinished": 0.0, "unreadable": 0.01,
    }  # fmt: skip
    text = table({"benchmarks": {"gsm8k-with-a-name": row}, "temperature": 0.7, "top_p": 1.0})
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("gsm8k-with-a-name v1") == 2
    assert "pass@1: correct responses in percent" in text
