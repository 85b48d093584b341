"""Fingerprints of input files, by content if the modification time differs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rlt.data.rows import ROW_FILES

# Files of a model or data folder whose content affects results.
DECISIVE = (*ROW_FILES, ".safetensors", ".jinja", ".model", ".txt")
WHOLE = 256 * 2**20  # larger files are fingerprinted by BLOCKS blocks
BLOCK, BLOCKS = 2**16, 256

Fingerprint = dict[str, list[int | str]]
"""File name -> [bytes, modification time in ns, SHA-256]."""


def fingerprint(path: Path) -> Fingerprint:
    """The fingerprint of a file, or of the row, weight and tokenizer files in a folder; empty if it has none."""
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns, _digest(file)] for file in _decisive(path)}


def unchanged(path: Path, known: Fingerprint) -> bool:
    """Whether a file or folder is unchanged; a file is read only if its time differs but its size does not."""
    files = _decisive(path)
    return {file.name for file in files} == known.keys() and all(_same(file, *known[file.name]) for file in files)


def _decisive(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [file for file in path.iterdir() if file.suffix in DECISIVE and file.is_file()]
    return sorted(file for file in files if not file.name.endswith("stage.json"))


def _same(file: Path, size: int | str, modified: int | str, digest: int | str) -> bool:
    stat = file.stat()
    return stat.st_size == size and (stat.st_mtime_ns == modified or _digest(file) == digest)


def _digest(file: Path) -> str:
    """SHA-256 of a file; above WHOLE bytes, of BLOCKS evenly spaced blocks, including the first and the last."""
    sha, size = hashlib.sha256(), file.stat().st_size
    with file.open("rb") as content:
        if size <= WHOLE:
            while block := content.read(2**20):
                sha.update(block)
        else:
            for number in range(BLOCKS):
                content.seek((size - BLOCK) * number // (BLOCKS - 1))
                sha.update(content.read(BLOCK))
    return sha.hexdigest()
