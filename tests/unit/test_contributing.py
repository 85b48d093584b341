"""The examples in CONTRIBUTING.md do what they say, and CITATION.cff and the issue forms are well-formed."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import yaml

from rlt import __version__
from rlt.config import StageConfig
from rlt.data.rows import read_rows
from rlt.engines.base import Completion, Request, Sampling
from rlt.outputs import Result, begin
from rlt.tasks import Verdict
from rlt.text.formats import load_format

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
KNOWN = {
    "Verdict": Verdict, "Request": Request, "Sampling": Sampling, "Completion": Completion, "StageConfig": StageConfig,
    "Result": Result, "begin": begin, "read_rows": read_rows, "Path": Path, "Iterable": Iterable, "Iterator": Iterator,
}  # fmt: skip


def example(word: str) -> dict:
    """The names that the example with this word defines."""
    (code,) = [code for language, code in BLOCKS if language == "python" and word in code]
    names = dict(KNOWN)
    exec(code, names)
    return names


def test_the_format(tmp_path):
    (text,) = [code for language, code in BLOCKS if language == "yaml"]
    (tmp_path / "mine.yaml").write_text(text)
    assert load_format(str(tmp_path / "mine.yaml")).padding == "\n"


def test_the_task():
    task = example("def grade")
    assert task["grade"]("It is 7", "7", "?") == Verdict(True, "7")
    assert task["check_answer"]("two words", "?") == "must be one word"


def test_the_engine():
    (completion,) = example("class EchoEngine")["EchoEngine"]().generate([Request("a", "the prompt", 0)], Sampling(9))
    assert (completion.key, completion.text) == ("a", "he prompt")


def test_the_estimator():
    (code,) = [code for language, code in BLOCKS if language == "python" and "k2" in code]
    names: dict = {}
    exec("def k2(estimator, difference):\n" + "".join(f"    {line}\n" for line in code.splitlines()), names)
    assert names["k2"]("k2", torch.tensor([2.0])) == 2.0


def test_the_stage(tmp_path):
    names = KNOWN | {"CountConfig": example("class CountConfig")["CountConfig"]}
    (code,) = [code for language, code in BLOCKS if "def run" in code]
    exec(code, names)
    (tmp_path / "a.jsonl").write_text("{}\n{}\n")
    config = names["CountConfig"](output=tmp_path / "count", data=tmp_path / "a.jsonl")
    assert names["run"](config).metrics["rows"] == 2
    assert (tmp_path / "count" / "count.txt").read_text() == "2\n"


def test_the_citation_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_the_issue_forms_have_what_github_asks_for():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem != "config":
            assert {"name", "description", "body"} <= form.keys()
            assert len({item["id"] for item in form["body"]}) == len(form["body"])
