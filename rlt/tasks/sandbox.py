"""Runs untrusted code in processes without network, files or privileges, which leave nothing behind.

Each `Box` is one process tree of `rlt.tasks.sandboxed`, which lists the namespaces and limits. Expected outputs stay on this
side; only what the code printed or returned comes back.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rlt.errors import DependencyError, RltError
from rlt.tasks import sandboxed
from rlt.tasks.sandboxed_calls import LONGEST, PASSED, Caller, Job, Reply

START_LIMIT = 20.0  # seconds for a new box to be ready, and for a reply in addition to the job's own time
LONGEST_REPLY = 4 * LONGEST  # bytes of one value returned by a function, as JSON


class Box(contextlib.AbstractContextManager["Box"]):
    """A sandboxed Python that runs jobs one after another; with `calls`, its end of a socket, one job.

    Raises DependencyError if this machine cannot create one. Everything in it ends with `close`, or with the process that
    created it.
    """

    def __init__(self, calls: socket.socket | None = None) -> None:
        number = -1 if calls is None else calls.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", str(Path(sandboxed.__file__)), str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
            env={"PYTHONHASHSEED": "0"},  # verdicts must not depend on the order of a set
            pass_fds=[] if calls is None else [number],
        )  # fmt: skip
        self._received = b""
        self._ready = False
        if calls is not None:
            calls.close()  # otherwise the other end would not notice the end of the job

    def start(self, job: Job) -> None:
        """Send a job; `result` waits for it."""
        assert self._process.stdin is not None
        self._seconds = job["seconds"]
        with contextlib.suppress(BrokenPipeError):  # `result` says why
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()

    def result(self) -> Reply:
        """The last job's `status` (exit status; negative: a signal; or the exceeded limit, `time` or `output`) and `output`."""
        if not self._ready:
            self._line(time.monotonic() + START_LIMIT)
            self._ready = True
        reply: Reply = json.loads(self._line(time.monotonic() + self._seconds + START_LIMIT))
        return reply

    def run(self, code: str, stdin: str, seconds: float) -> Reply:
        """The result of a program."""
        self.start({"kind": "program", "code": code, "stdin": stdin, "seconds": seconds})
        return self.result()

    def _line(self, end: float) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            if not select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise RltError("the sandbox does not reply and was killed.")
            data = os.read(self._process.stdout.fileno(), 1 << 20)
            if not data:
                raise DependencyError(self._why())
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _why(self) -> str:
        assert self._process.stderr is not None
        said = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        return (
            f"code cannot be graded on this machine: the sandbox cannot be set up ({said[-1] if said else 'it ended'}). It "
            "needs Linux and the right to create namespaces: root with CAP_SYS_ADMIN, or unprivileged user namespaces "
            "(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in Docker "
            "--privileged, or --cap-add SYS_ADMIN with --security-opt seccomp=unconfined,apparmor=unconfined)."
        )

    def close(self) -> None:
        """End everything in the box."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]

    def __exit__(self, *error: object) -> None:
        self.close()


@functools.cache
def check_available() -> None:
    """Raise DependencyError, with the fix, if this machine cannot create the sandbox."""
    if sys.platform != "linux":
        raise DependencyError(
            f"code cannot be graded on this machine: its sandbox needs Linux, and this is {sys.platform}."
        )
    with Box() as box:
        if box.run("print(6 * 7)", "", 10.0) != {"status": 0, "output": "42\n"}:
            raise DependencyError(
                "code cannot be graded on this machine: the sandbox failed to run a one-line program."
            )


def tests_pass(solution: str, setup: str, tests: str, entry_point: str | None, seconds: float) -> bool:
    """Whether `tests` run to their end on the functions of `solution`.

    The two run in separate boxes that exchange only arguments and values, so the solution cannot see, change, skip or
    answer an assert. With `entry_point`, `tests` defines `check(candidate)`; without, it consists of statements.
    """
    theirs, ours = socket.socketpair()
    with Box(theirs) as solving, Box(ours) as testing:
        solving.start({"kind": "serve", "code": solution, "seconds": seconds + START_LIMIT})
        testing.start(
            {"kind": "check", "setup": setup, "code": tests, "entry_point": entry_point, "seconds": seconds}
        )  # fmt: skip
        return testing.result()["status"] == PASSED


class CallFailed(Exception):
    """A call raised, ended its process, took too long, or returned too much."""


class Functions(contextlib.AbstractContextManager["Functions"]):
    """The functions of a solution in their own box, called from here with plain data."""

    def __init__(self, solution: str, seconds: float) -> None:
        self._socket, theirs = socket.socketpair()
        self._box, self._seconds, self._total = Box(theirs), seconds, START_LIMIT + 10 * seconds
        self._box.start({"kind": "serve", "code": solution, "seconds": self._total})
        self._caller = Caller(self._send)

    def call(self, name: str, args: Sequence[object]) -> object:
        """The value of `name(*args)`, or of that method of a new `Solution`; raises CallFailed if there is none."""
        try:
            return self._caller.call({"name": name}, args, {})
        except CallFailed:
            raise
        except Exception as error:  # raised by the solution, or by an invalid reply, which it also controls
            raise CallFailed(repr(error)) from error

    def _send(self, request: bytes) -> bytes:
        end, received = time.monotonic() + self._seconds, bytearray()
        try:
            self._socket.settimeout(self._seconds)
            self._socket.sendall(request + b"\n")
            while not received.endswith(b"\n"):
                self._socket.settimeout(max(0.001, end - time.monotonic()))
                data = self._socket.recv(1 << 20)
                received += data
                if not data or len(received) > LONGEST_REPLY:
                    raise CallFailed("no value" if not data else "its value is too long")
        except OSError as error:
            raise CallFailed(str(error)) from error
        return bytes(received)

    def close(self) -> None:
        """End the solution's process."""
        self._box.close()
        self._socket.close()

    def __exit__(self, *error: object) -> None:
        self.close()
