"""The script inside the sandbox: it isolates itself, then forks one unprivileged process per job.

`python sandboxed.py FD` (FD: a socket for calls, or -1) enters its own user (if needed), PID, network, mount, IPC and UTS
namespaces, and a root folder with only Python's standard library and an empty `/tmp`. Its second process, PID 1 in there,
reads one job per line and replies with one line per job. It has the programs and their inputs, but never an expected
output. It uses only the standard library and `sandboxed_calls.py`; the rest of rlt is not visible from here.

A job is `{"kind", "code", "stdin", "seconds"}`; the kinds:

- `program`: runs `code` as `__main__` with `stdin` and returns what it prints.
- `serve`: runs `code`, then answers calls of its functions that arrive through the socket.
- `check`: runs the tests `code`, which call functions at the other end of the socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rlt.tasks.sandboxed_calls import Job, Reply

MEMORY = 1 << 30  # bytes of address space per process
FILE_SIZE = 16 << 20  # bytes per file
SCRATCH = 64 << 20  # bytes in all files of /tmp together
OUTPUT = 16 << 20  # bytes printed
PROCESSES = 16  # processes and threads of one job
OPEN_FILES = 64
CALLS = 3  # the socket's number in a job's process

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38

Kinds = dict[str, Callable[["Job", int], None]]

_LIBRARY = os.path.dirname(os.__file__)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), flags, data.encode())


# -- isolation ---------------------------------------------------------------------------------------------------------


def main(calls: int) -> NoReturn:
    """Enter the sandbox, report it, and run jobs until standard input ends."""
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    kinds, user = _read_kinds(), _unshare()
    # No process of the same user may inspect this one. Not earlier: the /proc/self of an undumpable process belongs to root,
    # so an ordinary user could not write its maps.
    _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    child = os.fork()
    if child:  # outside of the PID namespace; when this process is killed, so is the namespace
        os.closerange(0, 2)
        if calls >= 0:
            os.close(calls)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Programs of an ordinary user may signal this process, PID 1. The kernel drops what has no handler; Python's has one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _enter_root(user)
    _reply({"ready": True, "uid": user})
    for line in sys.stdin.buffer:
        _reply(_job(json.loads(line), kinds, user, calls))
    os._exit(0)


def _unshare() -> int:
    """Enter the namespaces; returns the user id for jobs. Root needs no user namespace."""
    flags = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        try:
            _call("unshare", flags)
            # A unique one: the limit on processes is per user, and other sandboxes run at the same time.
            return 1_000_000 + os.getpid()
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
    _call("unshare", flags | _NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return 1000


def _enter_root(user: int) -> None:
    """Create a read-only root folder with the standard library, its shared objects and four devices, and enter it."""
    root = "/sys"  # a folder that exists and is not needed
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
    shared = f"/usr/lib/{os.uname().machine}-linux-gnu"  # Debian's; elsewhere all of /usr/lib
    bound: list[str] = []
    for folder in (shared if os.path.isdir(shared) else "/usr/lib", "/usr/lib64", "/lib", "/lib64", _LIBRARY):
        if os.path.islink(folder):
            os.symlink(os.readlink(folder), root + folder)
        elif os.path.isdir(folder) and not any(f"{folder}/".startswith(f"{other}/") for other in bound):
            os.makedirs(root + folder, exist_ok=True)
            _bind(folder, root + folder)
            bound.append(folder)
    for folder in bound:  # installed packages may contain tests with their answers
        pythons = [folder, *(f"{folder}/{name}" for name in os.listdir(folder) if name.startswith("python3"))]
        for packages in (f"{root}{python}/{kind}-packages" for python in pythons for kind in ("site", "dist")):
            if os.path.isdir(packages):
                _mount("tmpfs", packages, "tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, "mode=755,size=4k")
    os.mkdir(f"{root}/dev")
    for device in ("null", "zero", "random", "urandom"):
        open(f"{root}/dev/{device}", "w").close()
        _mount(f"/dev/{device}", f"{root}/dev/{device}", "", _MS_BIND)
    os.symlink("/proc/self/fd/0", f"{root}/dev/stdin")
    os.symlink("/proc/self/fd/1", f"{root}/dev/stdout")
    os.mkdir(f"{root}/tmp")
    os.mkdir(f"{root}/proc")
    try:
        _mount("proc", f"{root}/proc", "proc", _MS_NOSUID | _MS_NODEV, "hidepid=2")
    except OSError as error:
        # A container that masks parts of /proc does not allow a new one; then there is none, and no /dev/stdin.
        if error.errno != errno.EPERM:
            raise
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _MNT_DETACH)
    os.chdir("/")
    _mount("none", "/", "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    _empty_scratch(user, first=True)


def _bind(source: str, target: str) -> None:
    _mount(source, target, "", _MS_BIND | _MS_REC)
    kept = os.statvfs(target).f_flag & 0x1C0E  # nosuid, nodev, noexec, noatime, nodiratime, relatime may be locked
    relatime = (kept & 0x1000) << 9
    _mount(
        "none",
        target,
        "",
        _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | (kept & 0xC0E) | relatime,
    )


def _empty_scratch(user: int, first: bool = False) -> None:
    if not first:
        if not os.listdir("/tmp"):  # the usual case, and cheaper
            return
        _call("umount2", b"/tmp", _MNT_DETACH)
    options = f"mode=700,uid={user},gid={user},size={SCRATCH},nr_inodes=1000"
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, options)


def _reply(reply: Mapping[str, object]) -> None:
    data = json.dumps(reply).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


# -- one job -----------------------------------------------------------------------------------------------------------


def _job(job: Job, kinds: Kinds, user: int, calls: int) -> Reply:
    """Run one job to its end or its limit, and kill every process that it left."""
    reading, writing = os.pipe()
    given = os.memfd_create("stdin")
    with open(given, "wb", closefd=False) as file:
        file.write(job.get("stdin", "").encode("utf-8", "surrogatepass"))
    os.lseek(given, 0, os.SEEK_SET)
    child = os.fork()
    if child == 0:
        _give_up_privileges(user, given, writing, calls, job["seconds"])
        kinds[job["kind"]](job, CALLS)
        sys.exit(0)  # like a script: waits for threads, flushes buffers
    for number in (writing, given, *([calls] if calls >= 0 else [])):
        os.close(number)  # the other end of the calls must notice the end of the job's process
    status, output = _watch(child, reading, time.monotonic() + job["seconds"])
    os.close(reading)
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # from PID 1: everything else in the namespace
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    _empty_scratch(user)
    return {"status": status, "output": output.decode("latin-1")}


def _watch(child: int, reading: int, end: float) -> tuple[str | int, bytes]:
    """The exit status, or the exceeded limit (`time`, `output`), and what was printed."""
    output = bytearray()
    handle = os.pidfd_open(child)
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(handle, select.POLLIN)
    os.set_blocking(reading, False)
    closed = False
    try:
        while True:
            left = end - time.monotonic()
            ready = dict(poll.poll(max(0, left * 1000)))
            if not ready:
                return "time", bytes(output)
            while not closed:  # the last output may arrive together with the end of the process
                try:
                    data = os.read(reading, 1 << 16)
                except BlockingIOError:
                    break
                closed = not data
                output += data
                if len(output) > OUTPUT:
                    return "output", b""
                if time.monotonic() > end:
                    return "time", bytes(output)
            if closed and reading in ready:
                poll.unregister(reading)
            if handle in ready:
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), bytes(output)
    finally:
        os.close(handle)


def _give_up_privileges(user: int, given: int, writing: int, calls: int, seconds: float) -> None:
    os.setsid()
    silent = os.open("/dev/null", os.O_WRONLY)
    for number, target in ((given, 0), (writing, 1), (silent, 2)):
        os.dup2(number, target)
    if calls >= 0:
        os.dup2(calls, CALLS)
    os.closerange(CALLS + (calls >= 0), 65536)
    cpu = int(seconds) + 1
    for kind, limit in (
        (resource.RLIMIT_CPU, cpu), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, FILE_SIZE),
        (resource.RLIMIT_NPROC, PROCESSES), (resource.RLIMIT_NOFILE, OPEN_FILES), (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0), (resource.RLIMIT_MSGQUEUE, 0), (resource.RLIMIT_STACK, 64 << 20),
    ):  # fmt: skip
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())
    _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)
    os.environ.clear()
    os.chdir("/tmp")
    sys.argv[:] = ["solution.py"]
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.setrecursionlimit(10_000)


def _program(job: Job, calls: int) -> None:
    # Pickling and dataclasses look names up in `__main__`.
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    exec(compile(job["code"], "solution.py", "exec"), module.__dict__)


def _read_kinds() -> Kinds:
    """Kind of job -> the function that runs it, given the job and its socket's number."""
    # Not imported: with this folder on the path, `math` and `code` would shadow Python's.
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandboxed_calls.py")
    calls: Kinds = {"__name__": "sandboxed_calls"}  # type: ignore[dict-item]
    with open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec", dont_inherit=True), calls)
    return {"program": _program, "serve": calls["serve"], "check": calls["check"]}


if __name__ == "__main__":
    main(int(sys.argv[1]))
