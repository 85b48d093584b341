"""Files of rows: what is read is what was written."""

import json

from rlt.data.rows import JsonlWriter, read_rows, write_rows


def test_half_a_character_is_written_as_json_has_it(tmp_path):
    # "\ud83d" is JSON, but no text that UTF-8 could hold.
    rows = [{"id": "\ud83d", "é": 1}, {"id": "é"}]
    with JsonlWriter(tmp_path / "a.jsonl") as writer:
        writer.write(rows)
    write_rows(tmp_path / "b.jsonl", rows)
    for name in ("a.jsonl", "b.jsonl"):
        assert [row for _, row in read_rows(tmp_path / name)] == rows
        first, second = (tmp_path / name).read_text(encoding="utf-8").splitlines()
        assert first == json.dumps(rows[0])
        assert second == '{"id": "é"}'
