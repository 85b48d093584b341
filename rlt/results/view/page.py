"""The page itself: markup, style, script and data in one file that opens from disk and makes no requests."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rlt.data.rows import write_bytes
from rlt.results.sources import cells
from rlt.results.view.rows import Source, match_key, matching, page_row, sampled
from rlt.types import JsonRow


def scores_data(paths: Sequence[Path], limit: int, ids: Sequence[str] = (), seed: int = 0) -> JsonRow:
    """The page's data for one file of scores, or for several whose rows are compared question by question.

    The first file is sampled (`rows.sampled`); from the others come the rows with the same questions.
    """
    sources = [Source(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    first, total = sampled(sources[0], limit, ids, seed)
    picked = [(first, total)]
    keys = {match_key(row) for row in first}
    picked += [matching(source, keys, limit) for source in sources[1:]]
    return {
        "kind": "scores",
        "title": " and ".join(source.name for source in sources),
        "sources": [source_of(source, len(rows), total) for source, (rows, total) in zip(sources, picked, strict=True)],
        "rows": [
            page_row(row, i, sources[i].control) for i, (rows, _) in enumerate(picked) for row in rows
        ],
    }  # fmt: skip


def source_of(source: Source, shown: int, total: int) -> JsonRow:
    """The page's description of a file: name, rows shown and in total, and the reward's coefficients."""
    return {"name": source.name, "shown": shown, "total": total, "control": source.control,
            "coefficients": source.coefficients, "students": source.students,
            **({"by_source": cells(source.numbers)} if source.numbers else {})}  # fmt: skip


def _names(paths: Sequence[Path]) -> list[str]:
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def html(data: JsonRow, live: bool = False) -> str:
    """The whole page. Its policy forbids foreign scripts and all requests (`live`: except to its own server)."""
    markup, style, script = (_part(name) for name in ("page.html", "page.css", "page.js"))
    asks = "'self'" if live else "'none'"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        f"connect-src {asks}; base-uri 'none'; form-action 'none'"
    )
    parts = {"POLICY": policy, "STYLE": style, "SCRIPT": script, "DATA": embedded({**data, "live": live})}
    for name, text in parts.items():
        markup = markup.replace(f"@@{name}@@", text, 1)
    return markup


def write_page(path: Path, data: JsonRow) -> None:
    """Write the page atomically, as UTF-8; a lone surrogate stays a JSON escape."""
    write_bytes(path, html(data).encode("utf-8", "backslashreplace"))


def embedded(data: JsonRow) -> str:
    """JSON for a <script> element that cannot end it; NaN and infinity become null."""
    return json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _finite(value: object) -> object:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _part(name: str) -> str:
    return (resources.files("rlt") / "results" / "view" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
