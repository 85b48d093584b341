"""Processes that are forked from the tests' own: they begin at once, with everything imported, and may be killed."""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlt import outputs


@contextmanager
def another_process_writing(output: Path) -> Iterator[int]:
    """The id of a process that holds the lock of this output until the block ends; it is then killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            lock = outputs._hold(output)
            os.write(writing, b"held" if lock else b"")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(reading, 4) == b"held"
        yield child
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def status_of_fork(work: Callable[[], object]) -> int:
    """How a fork that does `work` ends: its exit status, or minus the signal that ended it.

    PyTorch's threads do not survive a fork, so the fork has one: a test that compares numbers runs with one thread itself.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            import torch

            torch.set_num_threads(1)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
