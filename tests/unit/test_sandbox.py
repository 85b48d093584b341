"""The sandbox against code that tries to leave it, to outlive it, to use the machine up, or to forge its verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlt.errors import DependencyError
from rlt.tasks import sandbox
from rlt.tasks.sandbox import Box, CallFailed, Functions
from rlt.tasks.sandbox import tests_pass as passes
from rlt.tasks.sandboxed_calls import PASSED

try:
    sandbox.check_available()
except DependencyError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with Box() as made:
        yield made


def printed(box: Box, code: str, seconds: float = 20.0) -> str:
    result = box.run(code, "", seconds)
    assert result["status"] == 0, result
    return str(result["output"]).strip()


def refused(action: str, box: Box) -> str:
    """The exception that an action in the sandbox ends with."""
    code = (
        f"import os, socket\ntry:\n    {action}\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "else:\n    print('done')"
    )
    return printed(box, code)


def test_a_program_reads_its_input_and_prints(box: Box) -> None:
    assert box.run("print(int(input()) + 1, 'é')", "41\n", 20.0) == {"status": 0, "output": "42 \xc3\xa9\n"}


def test_input_can_be_read_as_a_file(box: Box) -> None:
    assert box.run("import sys\nprint(sys.stdin.buffer.read())", "x\ny", 20.0)["output"] == "b'x\\ny'\n"
    assert box.run("print(open(0).read())", "x", 20.0)["output"] == "x\n"


def test_an_exception_is_a_failure(box: Box) -> None:
    assert box.run("1 / 0", "", 20.0)["status"] == 1


def test_threads_of_a_program_are_awaited(box: Box) -> None:
    code = "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()"
    assert printed(box, code) == "late"


@pytest.mark.parametrize(
    "action",
    [
        "socket.create_connection(('127.0.0.1', 80), 1)",
        "socket.getaddrinfo('localhost.example', 80)",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "os.listdir(os.path.expanduser('~root') + '/.ssh')",
        "os.listdir('/home')",
        "open('/etc/passwd')",
        "open('/usr/lib/x', 'w')",
        "open('/x', 'w')",
        "os.symlink('/etc/passwd', '/tmp/p') or open('/tmp/p')",
        "os.symlink('/'.join(('/proc/1', 'root', 'etc/passwd')), '/tmp/p') or open('/tmp/p')",
        "open('/proc/1/environ')",
        "open('/proc/1/mem', 'rb')",
        "os.listdir('/proc/1/fd')",
        "os.setuid(0)",
        "os.chroot('/tmp')",
        "os.mknod('/tmp/sda', 0o60600, os.makedev(8, 0))",
        "os.execv('/bin/sh', ['sh'])",
        "bytearray(10 * 2**30)",
        "open('/tmp/big', 'wb').write(bytes(2**25))",
    ],
)
def test_what_leaves_the_sandbox_is_refused(box: Box, action: str) -> None:
    assert refused(action, box) != "done"


def test_neither_environment_nor_files_of_rlt_can_be_seen(box: Box) -> None:
    os.environ["RLT_TEST_SECRET"] = "secret"
    assert printed(box, "import os; print(dict(os.environ), os.listdir('/tmp'), os.getcwd())") == "{} [] /tmp"
    with Box() as fresh:
        assert "SECRET" not in printed(fresh, "print(open('/proc/self/environ').read())")
    assert refused("import rlt", box) == "ModuleNotFoundError"
    assert refused(f"open({str(Path(__file__))!r})", box) == "FileNotFoundError"


def test_no_installed_package_can_be_read(box: Box) -> None:
    code = "import os\nprint([f for d, _, fs in os.walk('/') if d.endswith('-packages') for f in fs + _])"
    assert printed(box, code) == "[]"


def test_only_three_descriptors_are_open(box: Box) -> None:
    code = "import os\nn = 0\nfor fd in range(64):\n  try: os.fstat(fd); n += 1\n  except OSError: pass\nprint(n)"
    assert printed(box, code) == "3"


def test_no_other_process_is_visible(box: Box) -> None:
    assert (
        printed(box, "import os\nprint([n for n in os.listdir('/proc') if n.isdigit()] == [str(os.getpid())])")
        == "True"
    )


def test_killing_everything_ends_only_the_program_itself(box: Box) -> None:
    code = "import os\nfor pid in (1, -1, 0):\n    try: os.kill(pid, 9)\n    except OSError: pass"
    assert box.run(code, "", 20.0)["status"] == -9
    assert printed(box, "print(1)") == "1"


def test_no_signal_ends_the_process_that_watches(box: Box) -> None:
    code = "import os\nfor number in range(1, 65):\n    try: os.kill(1, number)\n    except OSError: pass\nprint(2)"
    assert printed(box, code) == "2"
    assert printed(box, "print(1)") == "1"


def test_a_fork_bomb_is_ended_and_leaves_nothing(box: Box) -> None:
    code = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert box.run(code, "", 1.0)["status"] == "time"
    assert (
        printed(box, "import os\nprint([n for n in os.listdir('/proc') if n.isdigit()] == [str(os.getpid())])")
        == "True"
    )


def test_the_number_of_processes_is_bounded(box: Box) -> None:
    code = (
        "import os, time\nn = 0\ntry:\n    while n < 100:\n        if os.fork() == 0: time.sleep(60)\n        n += 1\n"
        "except BlockingIOError: pass\nprint(n)"
    )
    assert int(printed(box, code)) < 17


def test_a_process_in_the_background_does_not_outlive_the_program(box: Box) -> None:
    started = time.monotonic()
    code = "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)\nprint('done')"
    assert printed(box, code) == "done"
    assert time.monotonic() - started < 20


def test_endless_output_is_ended(box: Box) -> None:
    assert box.run("while True: print('x' * 100000)", "", 60.0) == {"status": "output", "output": ""}


def test_an_endless_loop_is_ended(box: Box) -> None:
    assert box.run("import signal\nfor n in range(1, 32):\n  try: signal.signal(n, lambda *a: 0)\n  except OSError: pass\n"
                   "while True: pass", "", 0.5)["status"] == "time"  # fmt: skip


def test_files_do_not_stay_for_the_next_program(box: Box) -> None:
    assert printed(box, "open('/tmp/note', 'w').write('x')\nprint(1)") == "1"
    assert printed(box, "import os; print(os.listdir('/tmp'))") == "[]"


def test_the_scratch_folder_is_bounded(box: Box) -> None:
    code = (
        "n = 0\ntry:\n    for n in range(20):\n        open(f'/tmp/{n}', 'wb').write(bytes(8 << 20))\n"
        "except OSError: pass\nprint(n)"
    )
    assert int(printed(box, code)) <= 8


def test_the_box_ends_with_the_process_that_made_it() -> None:
    code = (
        "import os\nfrom rlt.tasks.sandbox import Box\nbox = Box()\nbox.run('', '', 20)\nprint(box._process.pid, flush=True)\n"
        "box.start({'kind': 'program', 'code': 'while True: pass', 'stdin': '', 'seconds': 60})\nos.kill(os.getpid(), 9)"
    )
    root = str(Path(sandbox.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    pid, end = int(done.stdout), time.monotonic() + 20
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(
    os.getuid() != 0, reason="only root can become somebody else; other users run all tests as they are"
)
def test_it_works_without_being_root() -> None:
    # Root without CAP_SYS_ADMIN (21) gets no namespaces either, but a user namespace of its own.
    code = (
        "import ctypes, os, sys\nassert ctypes.CDLL(None).prctl(24, 21, 0, 0, 0) == 0\n"
        "os.execv(sys.executable, [sys.executable, '-s', '-S', '-P', '-B', *sys.argv[1:], '-1'])"
    )
    program = "import os; print(os.getuid(), os.listdir('/tmp'))"
    job = json.dumps({"kind": "program", "code": program, "stdin": "", "seconds": 20}).encode() + b"\n"
    done = subprocess.run([sys.executable, "-c", code, str(sandbox.sandboxed.__file__)], input=job, capture_output=True)
    assert b'"uid": 1000' in done.stdout, done.stderr
    assert b'{"status": 0, "output": "1000 []\\n"}' in done.stdout


@pytest.mark.skipif(os.getuid() != 0, reason="other users run all tests as they are")
def test_it_works_for_an_ordinary_user() -> None:
    # The script as text: its file may be in a folder that only root can enter.
    script = Path(sandbox.sandboxed.__file__).read_text()
    job = json.dumps({"kind": "program", "code": "print(6 * 7)", "stdin": "", "seconds": 20}).encode() + b"\n"
    command = [sys.executable, "-s", "-S", "-P", "-B", "-c", script, "-1"]
    try:
        done = subprocess.run(
            command, input=job, capture_output=True, user=65534, group=65534, extra_groups=[], cwd="/"
        )  # fmt: skip
    except PermissionError:
        pytest.skip(f"{sys.executable} is in a folder that only root can enter")
    assert b'{"status": 0, "output": "42\\n"}' in done.stdout, done.stderr


def test_a_machine_without_namespaces_is_told_with_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = tmp_path / "sandboxed.py"
    failing.write_text("raise OSError(1, 'unshare: Operation not permitted')\n")
    monkeypatch.setattr(sandbox.sandboxed, "__file__", str(failing))
    with pytest.raises(DependencyError, match=r"unshare: Operation not permitted.*userns_clone=1"):
        sandbox.check_available.__wrapped__()


# -- functions ---------------------------------------------------------------------------------------------------------


def test_values_of_all_plain_kinds_come_back_as_they_are() -> None:
    from collections import Counter, deque
    from decimal import Decimal
    from fractions import Fraction

    values = [None, True, 1, 10**30, 0.1, float("inf"), 1j, "é\ud800", b"x", [1], (1, (2,)), {3}, {1: "a", (1, 2): [3]},
              range(3), deque([1]), Counter("aab"), Decimal("0.10"), Fraction(1, 3), frozenset({1})]  # fmt: skip
    with Functions("def same(x): return x", 20.0) as functions:
        for value in values:
            back = functions.call("same", [value])
            assert (type(back), back) == (type(value), value)
        assert functions.call("same", [float("nan")]) != functions.call("same", [float("nan")])


def test_a_method_of_leetcodes_class_is_called_on_a_new_object_each_time() -> None:
    code = "class Solution:\n    n = 0\n    def next(self):\n        self.n += 1\n        return self.n"
    with Functions(code, 20.0) as functions:
        assert [functions.call("next", []), functions.call("next", [])] == [1, 1]


@pytest.mark.parametrize(
    "body", ["import os; os._exit(0)", "exit(0)", "1/0", "while True: pass", "import os; os.write(3, b'x')",
             "import os; os.write(3, b'{\"value\": 5}\\n')", "import os; os.close(3)"],
)  # fmt: skip
def test_a_call_without_a_value_has_failed(body: str) -> None:
    with Functions(f"def f():\n    {body}", 2.0) as functions, pytest.raises(CallFailed):
        functions.call("f", [])


RIGHT = "def add(a, b):\n    return a + b\n"
ASSERTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n"


def test_right_functions_pass_and_wrong_ones_fail() -> None:
    assert passes(RIGHT, "", ASSERTS, None, 20.0)
    assert passes(RIGHT, "", CHECK, "add", 20.0)
    wrong = "def add(a, b):\n    return 3\n"
    assert not passes(wrong, "", ASSERTS, None, 20.0)
    assert not passes(wrong, "", CHECK, "add", 20.0)


ALWAYS = "class Always:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        f"import os; os._exit({PASSED})",
        f"def add(a, b):\n    import os\n    os._exit({PASSED})",
        "def add(a, b): raise SystemExit(0)",
        "def add(a, b): raise StopIteration",
        "def add(a, b): raise AssertionError",
        f"{ALWAYS}def add(a, b): return Always()",
        f"{ALWAYS}class Int(int, Always):\n    pass\ndef add(a, b): return Int(7)",
        "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {})\ndef add(a, b): return 7",
        "__debug__\nimport builtins, sys\nbuiltins.abs = builtins.all = lambda *a: True\n"
        "def check(f): pass\ndef add(a, b): return 7",
        "import sys\nsys.modules['__main__'].check = lambda f: None\nsys.settrace(lambda *a: None)\ndef add(a, b): return 7",
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'{\"value\": true}\\n')\n    except OSError: pass\n"
        "def add(a, b): return 7",
        'import os\nos.write(3, b\'{"value": ["list", [3, ["list", []]]]}\\n\' * 2)\nos._exit(0)',
        "import gc\ndef add(a, b):\n    return next((o for o in gc.get_objects() if isinstance(o, str) and 'assert' in o), 7)",
        "def add(a, b):\n    import inspect\n    return str([f.frame.f_locals for f in inspect.stack()])",
    ],
)
def test_a_verdict_cannot_be_forged(code: str) -> None:
    assert not passes(code, "", ASSERTS, None, 5.0)
    assert not passes(code, "", CHECK, "add", 5.0)


def test_stop_iteration_does_not_shorten_a_test() -> None:
    code = "def f(x):\n    raise StopIteration"
    assert not passes(code, "", "assert all(map(lambda x: f(x) == x, [1, 2]))", None, 20.0)


def test_modules_in_asserts_are_not_the_solutions() -> None:
    code = "class math:\n    isclose = staticmethod(lambda *a: True)\ndef f(): return 7.0"
    assert not passes(code, "", "assert math.isclose(f(), 3.0)", None, 20.0)
    assert passes("def f(): return 3.0", "", "assert math.isclose(f(), 3.0)", None, 20.0)


def test_tests_see_exceptions_changed_arguments_generators_and_objects() -> None:
    code = (
        "def empty(): raise ValueError\ndef sort(x): x.sort()\ndef count(n): yield from range(n)\n"
        "class Point:\n    def __init__(self, x): self.x = x\n    def twice(self): return 2 * self.x\n"
        "def x_of(points): return [p.x for p in points]\n"
    )
    tests = (
        "try:\n    empty()\nexcept ValueError: pass\nelse: assert False\n"
        "values = [3, 1, 2]\nsort(values)\nassert values == [1, 2, 3]\n"
        "assert list(count(3)) == [0, 1, 2] and count(3) != [0, 1, 2]\n"
        "assert Point(4).twice() == 8 and Point(5).x == 5 and x_of([Point(1), Point(2)]) == [1, 2]\n"
    )
    assert passes(code, "", tests, None, 20.0)
