"""An engine's own code in its own environment, as a process of this one; and a service that misbehaves."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5  # float32 sums over batches of other rows


def run_engine(engine: str, job: dict) -> list:
    """What `tests/engines/ENGINE_worker.py` printed for `job` in the engine's environment.

    Skips where that is absent, and fails in CI.
    """
    python = ROOT / f".venv-{engine.replace('_', '-')}" / "bin" / "python"
    if not python.exists():
        absent = f"no {engine} here; `make engines` makes its environment, {python.parents[1].name}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(absent)
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples" / "verifiers")]),
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled",
    }  # fmt: skip
    worker = Path(__file__).with_name(f"{engine}_worker.py")
    done = subprocess.run(
        [python, worker], input=json.dumps(job), capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


class Odd(BaseHTTPRequestHandler):
    """Answers by the first part of the path: as a service that restarts, is slow, becomes another one, cannot score."""

    asked: dict

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind, path = self.path.split("/")[1:]
        time_asked = self.asked[kind] = self.asked.get(kind, 0) + 1
        if kind == "restarts" and time_asked == 1:
            return self.connection.close()
        if kind == "restarts" and time_asked == 2:
            return self._answer(503, {"detail": "the students are still loading"})
        if kind == "slow" and time_asked == 1:
            time.sleep(1.5)
        if kind == "unscored" and path == "verify":
            return self._answer(422, {"detail": "row 0: 900 tokens, but the context of s has 512"})
        row = {"reward": 0.5, "r_ss": 0.5, "r_kl": None, "error": None}
        if kind == "unscored":
            row = {"reward": None, "r_ss": None, "r_kl": None, "error": "900 tokens, but the context of s has 512"}
        answer = {**body, **row} if path == "verify" else {"rows": [row for _ in body["rows"]]}
        return self._answer(200, answer, "another" if kind == "changes" and time_asked > 1 else "first")

    def _answer(self, status, body, service="first"):
        self.send_response(status)
        self.send_header("rlt-service", service)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def handle(self):
        try:
            super().handle()
        except (OSError, ValueError):  # the client went away, or this handler closed the connection
            self.close_connection = True

    def log_message(self, *arguments):
        pass


class Quiet(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass


@contextmanager
def odd_service() -> Iterator[str]:
    """The address of a service whose first part of the path chooses how it misbehaves."""
    server = Quiet(("127.0.0.1", 0), type("Fresh", (Odd,), {"asked": {}}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def misbehaving(url: str, rows: list[dict]) -> dict[str, dict]:
    """A case for each way in which a service can fail an engine, by name."""
    kinds = {
        "absent": ("http://127.0.0.1:9", 1, {"RLT_RETRY_FOR": "1"}),
        "restarts": (f"{url}/restarts", 1, {}),
        "slow": (f"{url}/slow", 1, {"RLT_TIMEOUT": "0.5"}),
        "changes": (f"{url}/changes", 2, {}),
        "pinned": (f"{url}/pinned", 1, {"RLT_SERVICE": "another"}),
        "unscored": (f"{url}/unscored", 1, {}),
        "failed_reward": (f"{url}/unscored", 1, {"RLT_FAILED_REWARD": "-10"}),
    }
    plain = {"RLT_RETRY_FOR": "30", "RLT_TIMEOUT": "", "RLT_SERVICE": "", "RLT_FAILED_REWARD": ""}
    return {
        name: {"environment": {**plain, "RLT_URL": place, **more}, "rows": rows[:count], "sampling": {}}
        for name, (place, count, more) in kinds.items()
    }


# What each of these cases must come to: rewards, or words of an error.
EXPECTED = {
    "absent": "Connection refused",
    "restarts": [0.5],
    "slow": [0.5],
    "changes": "serves other students, another format or other options",
    "pinned": "serves other students, another format or other options",
    "unscored": "900 tokens, but the context of s has 512",
    "failed_reward": [-10.0],
}
