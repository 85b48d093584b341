"""Another process that holds an output, for the tests of locks."""

import os
import signal
from collections.abc import Iterator
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
