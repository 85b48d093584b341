"""The page served on this machine during a run: it polls for new data; files are read again when they change."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from rlt.errors import ConfigError
from rlt.results.view.page import embedded, html
from rlt.types import JsonRow

WATCHED = ("*.jsonl", "*.parquet", "*stage.json", "results*.json")


def serve_page(make: Callable[[], JsonRow], paths: Sequence[Path], port: int) -> int:
    """Serve until interrupted. Prints the address. Raises ConfigError for a port in use."""
    try:
        server = page_server(make, paths, port)
    except OSError as error:
        raise ConfigError(
            f"rlt view: port {port} cannot be used ({error.strerror}). Choose another --port, or 0."
        ) from error
    with server:
        print(f"view: http://127.0.0.1:{server.server_port}/  (Ctrl-C to stop)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("view: stopped", flush=True)
    return 0


def page_server(make: Callable[[], JsonRow], paths: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 for the page (`/`) and its data (`/data.json`), with an ETag that changes with the files."""
    lock = Lock()
    kept: dict[str, JsonRow] = {}

    def current() -> tuple[str, JsonRow]:
        version = _version(paths)
        with lock:
            if version not in kept:
                fresh = make()
                kept.clear()
                kept[version] = fresh
            return version, kept[version]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # DNS rebinding: a page of another site may make its visitor's browser send requests here under its own name.
            if self.headers.get("Host", "").rsplit(":", 1)[0] not in ("127.0.0.1", "localhost"):
                self._answer(403, "text/plain", b"")
            elif self.path == "/":
                version, data = current()
                page = html({**data, "version": version}, live=True)
                self._answer(200, "text/html; charset=utf-8", page.encode("utf-8", "backslashreplace"))
            elif self.path == "/data.json":
                if self.headers.get("If-None-Match") == (version := _version(paths)):
                    self._answer(304, "application/json", b"", version)
                    return
                version, data = current()
                body = embedded({**data, "live": True}).encode("utf-8", "backslashreplace")
                self._answer(200, "application/json", body, version)
            else:
                self._answer(404, "text/plain", b"")

        def _answer(self, status: int, kind: str, body: bytes, version: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            if version is not None:
                self.send_header("ETag", version)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def _version(paths: Iterable[Path]) -> str:
    """A value that changes whenever a watched file does."""
    files = [file for path in paths for file in (_watched(path) if path.is_dir() else [path])]
    stats = sorted((str(file), stat.st_size, stat.st_mtime_ns) for file in files if (stat := _stat(file)) is not None)
    return json.dumps(f"{hash(tuple(stats)):x}")


def _watched(folder: Path) -> Iterable[Path]:
    return (file for pattern in WATCHED for file in folder.rglob(pattern) if "checkpoint-" not in str(file))


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:  # replaced or removed between listing and looking
        return None
