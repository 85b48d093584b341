"""What `rlt view` puts on a page: which rows of a long file, matched how, with which words marked as copied."""

import json
import random

import pytest

from rlt.cli import main
from rlt.data.rows import read_rows, write_rows
from rlt.results.view.page import embedded, html, scores_data
from rlt.results.view.rows import Source, copied, page_row, sampled, thinned


def rows(count, seed=0):
    rng = random.Random(seed)
    return [{"id": f"r{i}", "reward": rng.gauss(0, 1), "number": i} for i in range(count)]


def test_a_sample_has_the_best_the_worst_and_those_asked_for():
    every = rows(2000)
    picked, total = sampled(iter(every), 30, ids=["r1234"])
    ranked = [row["id"] for row in sorted(every, key=lambda row: row["reward"])]
    ids = [row["id"] for row in picked]
    assert total == 2000
    assert len(ids) == len(set(ids)) == 30
    assert {"r1234", *ranked[:10], *ranked[-10:]} <= set(ids)
    assert ids == sorted(ids, key=lambda name: int(name[1:]))


def test_the_same_seed_draws_the_same_rows_and_another_does_not():
    first, again, other = (sampled(iter(rows(500)), 30, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_a_file_below_the_limit_is_shown_whole_also_its_rows_with_errors():
    every = [*rows(5), {"id": "bad", "reward": None, "error": "too long", "number": 5}]
    assert sampled(iter(every), 30)[0] == every


def test_never_more_than_three_times_the_limit_is_in_memory():
    alive = set()

    class Row(dict):
        def __init__(self, **keys):
            super().__init__(keys)
            alive.add(id(self))

        def __del__(self):
            alive.discard(id(self))

    most = 0

    def source():
        nonlocal most
        for i in range(5000):
            most = max(most, len(alive))
            yield Row(id=str(i), reward=float(i * 7919 % 5000))

    sampled(source(), 30)
    assert most <= 3 * 30


def test_texts_come_from_the_file_that_was_scored_in_its_order(tmp_path):
    write_rows(
        tmp_path / "data.jsonl", [{"id": i, "question": f"q{i}", "solution": "s", "explanation": "e"} for i in (1, 2)]
    )
    write_rows(tmp_path / "scores.jsonl", [{"id": 1, "reward": 0.5}, {"id": 3, "reward": 0.2}])
    (tmp_path / "scores.jsonl.stage.json").write_text(
        json.dumps({"stage": "score", "complete": True, "config": {"data": "data.jsonl"}})
    )
    found = list(Source(tmp_path / "scores.jsonl"))
    assert [row.get("question") for row in found] == ["q1", None]  # the second is not the row that was scored


def test_of_a_second_file_the_same_questions_are_taken(tmp_path):
    for name in "ab":
        write_rows(tmp_path / f"{name}.jsonl", [{"question": q, "reward": 1.0, "error": None} for q in ("x", "y")])
    write_rows(tmp_path / "b.jsonl", [{"question": q, "reward": 1.0} for q in ("z", "y", "x")])
    data = scores_data([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], 10)
    assert [(row["source"], row["match"]) for row in data["rows"]] == [(0, "x"), (0, "y"), (1, "y"), (1, "x")]


@pytest.mark.parametrize(
    ("explanation", "solution", "marked"),
    [
        ("so the answer is 12 then", "The answer is 12.", ["the answer is 12"]),
        ("It is, well, 12", "It is 12", []),
        ("It is 12 and it is 12", "It is 12", ["It is 12", "it is 12"]),
        ("one two three four five", "zero one two three four five", ["one two three four five"]),
        ("12", "12", []),
    ],
)
def test_words_copied_from_the_solution_in_its_order_are_marked(explanation, solution, marked):
    assert [explanation[a:b] for a, b in copied(explanation, solution)] == marked


def test_what_a_control_put_in_place_of_the_explanation_is_shown():
    row = {
        "explanation": "as in the file",
        "tokens": {"solution": ["s"], "explanation": ["as", " scored"], "log_probs": ""},
    }
    assert page_row(row, 0, control="numbers")["explanation"] == "as scored"


def test_data_cannot_end_its_element_and_has_no_nan():
    text = embedded({"a": "</script><!--", "b": float("nan"), "c": [float("inf")]})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!--", "b": None, "c": [None]}


def test_the_policy_forbids_every_request_unless_the_page_is_live():
    data = {"kind": "scores", "title": "t", "rows": [], "sources": []}
    assert "default-src 'none'; script-src 'sha256-" in html(data)
    assert "connect-src 'none'" in html(data)
    assert "connect-src 'self'" in html(data, live=True)


def test_thinned_curves_keep_both_ends():
    points = [(float(i), 0.0) for i in range(1001)]
    few = thinned(points, 11)
    assert [x for x, _ in few] == [100.0 * i for i in range(11)]


def test_a_file_without_rewards_is_refused(tmp_path, capsys):
    write_rows(tmp_path / "data.jsonl", [{"question": "q"}])
    assert main(["view", str(tmp_path / "data.jsonl"), "--output", str(tmp_path / "p.html")]) == 2
    assert "data.jsonl line 1: has no `reward`; `rlt view` shows files of `rlt score`" in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()


def test_rows_of_parquet_have_the_numbers_of_jsonl(tmp_path):
    import pyarrow as pa

    from rlt.reward.tokens import NUMBERS, lists, packed_list

    tokens = {"solution": ["s"], "explanation": ["e"], **dict.fromkeys(NUMBERS), "log_probs": packed_list([-1.5])}
    schema = pa.schema([("reward", pa.float64()), ("tokens", pa.struct([
        ("solution", pa.list_(pa.string())), ("explanation", pa.list_(pa.string())),
        *((name, pa.list_(pa.float16())) for name in NUMBERS)]))])  # fmt: skip
    write_rows(tmp_path / "s.parquet", [{"reward": 1.0, "tokens": lists(tokens)}], schema)
    ((_, row),) = read_rows(tmp_path / "s.parquet")
    assert page_row(row, 0)["tokens"]["student"] == tokens
