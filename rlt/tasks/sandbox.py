"""Runs code that nobody has read: in processes without network, files, privileges or a way to stay.

Each `Box` is one process tree behind `rlt.tasks.sandboxed`, which lists the namespaces and limits. Expected outputs stay on
this side; what comes back is what the code printed or returned.
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

START_LIMIT = 20.0  # seconds until a new box must be ready, and over a job's own time until it must have replied
LONGEST_REPLY = 4 * LONGEST  # bytes of one value that a function returns, as JSON


class Box:
    """A sandboxed Python that does jobs one after another; with `calls`, its end of a socket, one job.

    Raises DependencyError where this machine cannot make one. Everything in it ends with `close`, and with the process
    that made it.
    """

    def __init__(self, calls: socket.socket | None = None) -> None:
        number = -1 if calls is None else calls.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", str(Path(sandboxed.__file__)), str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
            env={"PYTHONHASHSEED": "0"},  # the order of a set, and with it a verdict, is the same every time
            pass_fds=[] if calls is None else [number],
        )  # fmt: skip
        self._received = b""
        self._ready = False
        if calls is not None:
            calls.close()  # or the other end would never see that the job has ended

    def start(self, job: Job) -> None:
        """Send a job; `result` waits for it."""
        assert self._process.stdin is not None
        self._seconds = job["seconds"]
        with contextlib.suppress(BrokenPipeError):  # `result` says why
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()

    def result(self) -> Reply:
        """The last job's `status` (exit status; negative: a signal; or the limit `time` or `output`) and `output`."""
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
                raise RltError("the sandbox does not reply; it was ended.")
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
            "needs Linux, and the right to make namespaces: as root with CAP_SYS_ADMIN, else unprivileged user "
            "namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in "
            "Docker --privileged, or --cap-add SYS_ADMIN with --security-opt seccomp=unconfined,apparmor=unconfined)."
        )

    def close(self) -> None:
        """End everything in the box."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@functools.cache
def check_available() -> None:
    """Raise DependencyError, with the fix, where this machine cannot make the sandbox."""
    if sys.platform != "linux":
        raise DependencyError(
            f"code cannot be graded on this machine: its sandbox needs Linux, and this is {sys.platform}."
        )
    with Box() as box:
        if box.run("print(6 * 7)", "", 10.0) != {"status": 0, "output": "42\n"}:
            raise DependencyError(
                "code cannot be graded on this machine: the sandbox does not run a program of one line."
            )


def tests_pass(solution: str, setup: str, tests: str, entry_point: str | None, seconds: float) -> bool:
    """Whether `tests` run to their end on the functions of `solution`.

    The two run in two boxes. Arguments and values travel between them, so the solution sees no assert, and cannot change,
    skip or answer one. With `entry_point`, `tests` defines `check(candidate)`; without, it is a list of statements.
    """
    theirs, ours = socket.socketpair()
    with Box(theirs) as solving, Box(ours) as testing:
        solving.start({"kind": "serve", "code": solution, "seconds": seconds + START_LIMIT})
        testing.start(
            {"kind": "check", "setup": setup, "code": tests, "entry_point": entry_point, "seconds": seconds}
        )  # fmt: skip
        return testing.result()["status"] == PASSED


class CallFailed(Exception):
    """A call raised, ended its process, took too long, or its value was too long."""


class Functions:
    """The functions of a solution in a box of their own, called from here with plain data."""

    def __init__(self, solution: str, seconds: float) -> None:
        self._socket, theirs = socket.socketpair()
        self._box, self._seconds, self._total = Box(theirs), seconds, START_LIMIT + 10 * seconds
        self._box.start({"kind": "serve", "code": solution, "seconds": self._total})
        self._caller = Caller(self._send)

    def call(self, name: str, args: Sequence[object]) -> object:
        """The value of `name(*args)`, or of that method of a new `Solution`; raises CallFailed where there is none."""
        try:
            return self._caller.call({"name": name}, args, {})
        except CallFailed:
            raise
        except Exception as error:  # whatever the solution raised, or a reply that is none: it writes them
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

    def __enter__(self) -> Functions:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
