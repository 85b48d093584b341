"""Grading in processes that can be killed, so that no response hangs or crashes the run.

A grader's process (`python -m rlt.tasks.grading TASK SECONDS`) reads one JSON line per response and answers with one. It
imports no torch, may use 4 GiB, and ends itself if its parent is gone. Tasks that are `CHEAP` are graded in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypedDict, TypeVar

from rlt.errors import RltError
from rlt.tasks import Task, Verdict, load_task
from rlt.text.formats import Format

MEMORY_LIMIT = 4 << 30  # bytes of address space for one grader's process
START_LIMIT = 120.0  # seconds until a new process must be ready
STARTS = 3  # consecutive processes that may end before they are ready

Item = tuple[str, str, str]
"""(response, answer, question)"""
Given = TypeVar("Given")
Done = TypeVar("Done")


def answer_part(response: str, fmt: Format) -> str:
    """The part of a response that is searched for its answer.

    The solution between its tags; without an opening solution tag, what follows the closed thought; otherwise, and for a
    solution that is never closed (length limit), the whole response.
    """
    _, solution = fmt.parse_response(response)
    if solution is not None:
        return solution
    _, closed, after = response.rpartition(fmt.tags.thought.close)
    if closed and after.strip() and fmt.tags.solution.open not in response:
        return after
    return response


class GraderPool(contextlib.AbstractContextManager["GraderPool"]):
    """Grades responses of one task in `workers` processes; a response gets `timeout` seconds, then counts as wrong.

    Processes start with the first call that needs them and run until `close`. A process that exceeds its time, dies, or
    runs out of memory is replaced, and the response's Verdict has an `error`.
    """

    def __init__(self, task: str, workers: int = 2, timeout: float = 10.0) -> None:
        self.task, self.workers, self.timeout = task, workers, timeout
        self._module: Task = load_task(task)
        self.cheap: bool = getattr(self._module, "CHEAP", False)
        self._processes: list[_Process] = []

    def grade(
        self, items: Iterable[Item], fmt: Format, progress: Callable[[int], object] | None = None
    ) -> list[Verdict]:
        """One Verdict for each `(response, answer, question)`, in order. `progress` is called with 1 after each."""
        parts = [(answer_part(response, fmt), answer, question) for response, answer, question in items]
        if self.cheap:
            return [self._module.grade(*part) for part in parts]
        verdicts: list[Verdict] = [_FAILED] * len(parts)
        for index, reply in self._run("grade", parts):
            verdicts[index] = Verdict(
                bool(reply.get("correct")), reply.get("extracted"), reply.get("error"), reply.get("score")
            )
            if progress is not None:
                progress(1)
        return verdicts

    def check(self, answers: Sequence[tuple[str, str]]) -> list[str | None]:
        """For each `(answer, question)`, why no response to it can be graded, or None."""
        if self.cheap:
            return [self._module.check_answer(answer, question) for answer, question in answers]
        reasons: list[str | None] = [None] * len(answers)
        for index, reply in self._run("check", answers):
            reasons[index] = reply.get("reason", reply.get("error"))
        return reasons

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.end()
        self._processes.clear()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self, what: str, items: Sequence[Sequence[str]]) -> Iterable[tuple[int, Reply]]:
        waiting = deque(range(len(items)))
        while len(self._processes) < min(self.workers, len(items)):
            self._processes.append(_Process(self.task, self.timeout))
        try:
            yield from self._dispatch(what, items, waiting)
        except BaseException:
            self.close()  # a late answer must not be taken for that to the next question
            raise

    def _dispatch(self, what: str, items: Sequence[Sequence[str]], waiting: deque[int]) -> Iterable[tuple[int, Reply]]:
        busy: dict[_Process, int] = {}
        failed_starts = 0
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                selector.register(process.output, selectors.EVENT_READ, process)
            while waiting or busy:
                for position, process in enumerate(self._processes):
                    if process not in busy and waiting and (process.ready or process.overdue()):
                        if process.overdue():
                            raise RltError(f"a grader's process was not ready after {START_LIMIT:.0f} s.")
                        index = waiting.popleft()
                        if process.send([what, *items[index]]):
                            busy[process] = index
                        else:
                            waiting.appendleft(index)
                            self._replace(position, selector)
                for key, _ in selector.select(timeout=0.05):
                    process = key.data
                    reply: Reply | None = process.receive()
                    if reply is _PARTIAL:
                        continue
                    if reply is not None and "ready" in reply:
                        failed_starts = 0
                        continue
                    position = self._processes.index(process)
                    if reply is None:
                        self._replace(position, selector)
                    if process in busy:
                        yield busy.pop(process), reply or Reply(error="the grader's process died")
                    elif reply is None and not process.ready:
                        failed_starts += 1
                        if failed_starts > STARTS:
                            raise RltError("graders' processes end before they are ready; see the error above.")
                for position, process in enumerate(self._processes):
                    if process in busy and time.monotonic() - process.since > self.timeout:
                        self._replace(position, selector)
                        yield busy.pop(process), {"error": f"not graded within {self.timeout:g} s"}

    def _replace(self, position: int, selector: selectors.BaseSelector) -> None:
        old = self._processes[position]
        selector.unregister(old.output)
        old.end()
        self._processes[position] = new = _Process(self.task, self.timeout)
        selector.register(new.output, selectors.EVENT_READ, new)


class Graders(contextlib.AbstractContextManager["Graders"]):
    """A GraderPool per task, started with its first response, for grading rows of several tasks together."""

    def __init__(self, workers: int = 2, timeout: float = 10.0) -> None:
        self.workers, self.timeout = workers, timeout
        self.pools: dict[str, GraderPool] = {}

    def grade(
        self,
        tasks: Sequence[str],
        items: Sequence[Item],
        fmt: Format,
        progress: Callable[[int], object] | None = None,
    ) -> list[Verdict]:
        """Like `GraderPool.grade`, each item by its task."""
        return self._by_task(tasks, items, lambda pool, mine: pool.grade(mine, fmt, progress))

    def check(self, tasks: Sequence[str], answers: Sequence[tuple[str, str]]) -> list[str | None]:
        """Like `GraderPool.check`, each answer by its task."""
        return self._by_task(tasks, answers, lambda pool, mine: pool.check(mine))

    def _by_task(
        self, tasks: Sequence[str], items: Sequence[Given], do: Callable[[GraderPool, list[Given]], list[Done]]
    ) -> list[Done]:
        done: dict[int, Done] = {}
        for task in dict.fromkeys(tasks):
            places = [place for place, its in enumerate(tasks) if its == task]
            pool = self.pools.get(task) or GraderPool(task, self.workers, self.timeout)
            self.pools[task] = pool
            done |= zip(places, do(pool, [items[place] for place in places]), strict=True)
        return [done[place] for place in range(len(items))]

    def close(self) -> None:
        """End the processes."""
        for pool in self.pools.values():
            pool.close()

    def __exit__(self, *error: object) -> None:
        self.close()


_FAILED = Verdict(False, None, "not graded")


class Reply(TypedDict, total=False):
    """A grader process's answer: a verdict's fields, a check's `reason`, or `error`."""

    ready: bool
    correct: bool
    score: float | None
    extracted: str | None
    error: str | None
    reason: str | None


_PARTIAL: Reply = {}


class _Process:
    """One grader's process, and since when it has been busy."""

    def __init__(self, task: str, timeout: float) -> None:
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rlt.tasks.grading", task, str(timeout)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self.output = self._process.stdin, self._process.stdout
        self._received = b""
        self.ready = False
        self.since = time.monotonic()

    def overdue(self) -> bool:
        return not self.ready and time.monotonic() - self.since > START_LIMIT

    def send(self, item: list[str]) -> bool:
        """Whether the process accepted the item; it waits in `readline`, so the pipe never stays full."""
        self.since = time.monotonic()
        try:
            self._input.write(json.dumps(item).encode() + b"\n")
            self._input.flush()
        except BrokenPipeError:
            return False
        return True

    def receive(self) -> Reply | None:
        """The next reply; `_PARTIAL` if its line is incomplete, None if the process has ended."""
        data = os.read(self.output.fileno(), 1 << 20)
        if not data:
            return None
        self._received += data
        if not self._received.endswith(b"\n"):
            return _PARTIAL
        reply: Reply = json.loads(self._received)
        self._received = b""
        self.ready = True
        return reply

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._input, self.output):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


# -- the other side ----------------------------------------------------------------------------------------------------


def serve(task: str, timeout: float) -> None:
    """Answer items from standard input until it ends. The graders' own output goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _limit_memory()
    module = load_task(task)
    getattr(module, "prepare", lambda: None)()
    answers.write(b'{"ready": true}\n')
    for line in sys.stdin.buffer:
        what, *item = json.loads(line)
        # Without its parent, a hanging grader would never end; the alarm's default action ends the process.
        signal.alarm(int(2 * timeout) + 2)
        answers.write(json.dumps(_reply(module, what, item)).encode() + b"\n")
        signal.alarm(0)


def _reply(module: Task, what: str, item: list[str]) -> Reply:
    try:
        if what == "check":
            return {"reason": module.check_answer(item[0], item[1])}
        verdict = module.grade(item[0], item[1], item[2])
        return {
            "correct": verdict.correct, "extracted": verdict.extracted, "error": verdict.error, "score": verdict.score,
        }  # fmt: skip
    except (MemoryError, RecursionError) as error:
        return {"error": f"too large to grade ({type(error).__name__})"}


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]))
