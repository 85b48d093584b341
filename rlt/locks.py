"""One writer per output: a lock file that a process holds while it writes."""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path
from typing import IO

from rlt.errors import RunError

try:
    import fcntl
except ImportError:  # Windows: outputs are not locked there
    fcntl = None  # type: ignore[assignment]


class BusyError(RunError):
    """Another process writes the output."""


def hold(path: Path, output: Path) -> IO[str] | None:
    """The lock file `path` of an output, locked until it is released or this process ends.

    It is a record lock, which forked processes do not inherit: a surviving worker cannot keep an output locked.
    """
    if fcntl is None:
        return None
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError(f"{output}: cannot be written ({error.strerror}). Choose another --output.") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BusyError(
                    f"{output}: process {holder} is writing it. Wait for it or stop it, then run this again."
                ) from None
            return None  # a file system without locks
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()  # its holder has just finished and removed it
    file.truncate(0)
    file.write(f"{os.getpid()} on {platform.node()}")
    file.flush()
    return file


def release(lock: IO[str] | None) -> None:
    """Release the output and remove the lock file."""
    if lock is not None and not lock.closed:
        Path(lock.name).unlink(missing_ok=True)
        lock.close()
