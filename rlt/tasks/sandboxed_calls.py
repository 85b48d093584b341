"""Calls between two sandboxes: the solution serves its functions, the tests call them.

Part of the script `sandboxed.py`: standard library only, no import of rlt. Values that JSON cannot represent are tagged
lists. Other objects stay where they are, and the other side gets a reference, which can be called and has attributes. A
reference never answers a comparison, so that no object of the solution decides whether it is the right one.
"""

from __future__ import annotations

import builtins
import collections
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, TypedDict, cast

LONGEST = 16 << 20  # bytes of one reply
PASSED = 77  # exit status of tests that ran to their end; anything else, even 0, is a failure


class Job(TypedDict, total=False):
    """A job for a sandbox; `setup` and `entry_point` are for `check`."""

    kind: str
    code: str
    stdin: str
    seconds: float
    setup: str
    entry_point: str | None


class Reply(TypedDict):
    """How a job ended: exit status (negative: a signal), or the limit that it exceeded; and what it printed."""

    status: str | int
    output: str


class Target(TypedDict, total=False):
    """A function of the other process by name, or an object of it by the number of its reference."""

    name: str
    reference: int


class Reference:
    """An object of the other process; equal only to itself."""

    def __init__(self, key: int, caller: Caller) -> None:
        self._key, self._caller = key, caller

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._caller.call({"reference": self._key}, args, kwargs)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._caller.request({"attribute": name, "of": {"reference": self._key}})


_DICTS = {
    "Counter": collections.Counter, "OrderedDict": collections.OrderedDict,
}  # fmt: skip
_EXACT = {"Decimal": "decimal", "Fraction": "fractions"}  # imported on use, so that a box starts faster


class Wire:
    """Converts values to JSON and back. `kept`: objects that stay here, by reference."""

    def __init__(self, caller: Caller | None = None) -> None:
        self.kept: list[object] = []
        self.caller = caller

    def encode(self, value: object) -> object:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            value = int(value)
            return value if -(1 << 63) <= value < 1 << 63 else ["int", hex(value)]
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            return str(value)
        if _EXACT.get(type(value).__name__) == type(value).__module__:
            return [type(value).__name__, str(value)]
        if isinstance(value, complex):
            return ["complex", value.real, value.imag]
        if isinstance(value, (bytes, bytearray)):
            return [type(value).__name__, list(value)]
        if isinstance(value, range):
            return ["range", value.start, value.stop, value.step]
        if isinstance(value, dict):
            kind = type(value).__name__ if type(value).__name__ in _DICTS else "dict"
            return [kind, [[self.encode(key), self.encode(item)] for key, item in value.items()]]
        for classes, kind in (
            (list, "list"), (tuple, "tuple"), (set, "set"), (frozenset, "frozenset"), (collections.deque, "deque"),
            ((type({}.keys()), type({}.values()), type({}.items()), Iterator), "iterator"),
        ):  # fmt: skip
            if isinstance(value, classes):  # type: ignore[arg-type]
                return [kind, [self.encode(item) for item in cast(Iterable[object], value)]]
        if isinstance(value, Reference):
            return ["own", value._key]
        self.kept.append(value)
        return ["reference", len(self.kept) - 1]

    def decode(self, value: object) -> object:
        if not isinstance(value, list):
            return value
        kind, *rest = value
        if kind == "int":
            return int(rest[0], 16)
        if kind in _EXACT:
            return getattr(importlib.import_module(_EXACT[kind]), kind)(rest[0])
        if kind == "complex":
            return complex(rest[0], rest[1])
        if kind in ("bytes", "bytearray"):
            return bytes(rest[0]) if kind == "bytes" else bytearray(rest[0])
        if kind == "range":
            return range(*rest)
        if kind in ("dict", "Counter", "OrderedDict"):
            pairs = {self.decode(key): self.decode(item) for key, item in rest[0]}
            return pairs if kind == "dict" else _DICTS[kind](pairs)
        if kind == "reference":
            assert self.caller is not None  # only the solution's process has none, and it gets no references
            return Reference(rest[0], self.caller)
        if kind == "own":
            return self.kept[rest[0]]
        makers: dict[str, Callable[[list[object]], object]] = {
            "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque,
            "iterator": iter,
        }  # fmt: skip
        return makers[kind]([self.decode(item) for item in rest[0]])


class Caller:
    """Sends calls to the solution's process by `send(line) -> line`."""

    def __init__(self, send: Callable[[bytes], bytes]) -> None:
        self._send = send
        self.wire = Wire(self)

    def request(self, request: Mapping[str, object]) -> object:
        """The other process's answer; raises what it raised if that is a built-in exception."""
        reply = json.loads(self._send(json.dumps(request).encode()))
        if "raised" in reply:
            kind = getattr(builtins, str(reply["raised"]), None)
            # StopIteration would end a test's loop over `map` as if everything had been compared.
            bad = not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, StopIteration)
            raise (RuntimeError if bad or kind is StopAsyncIteration else kind)()  # type: ignore[misc]
        return self.wire.decode(reply["value"])

    def call(self, function: Target, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """The value of a call; lists, dicts and sets among the arguments change as in the function."""
        encoded = [self.wire.encode(value) for value in args]
        named = {name: self.wire.encode(value) for name, value in kwargs.items()}
        answer = self.request({"call": function, "args": encoded, "kwargs": named})
        value, changed = cast("tuple[object, Sequence[object]]", answer)
        for argument, after in zip(args, changed, strict=False):
            if type(argument) is list and type(after) is list:
                argument[:] = after
            elif (type(argument) is dict and type(after) is dict) or (type(argument) is set and type(after) is set):
                argument.clear()
                argument.update(after)
        return value


def _lines(number: int) -> tuple[BinaryIO, Callable[[bytes], None]]:
    stream = open(number, "rb", closefd=False)  # noqa: SIM115

    def write(data: bytes) -> None:
        data += b"\n"
        while data:
            data = data[os.write(number, data) :]

    return stream, write


def serve(job: Job, number: int) -> None:
    """Run the solution `code`, then answer calls of its functions that arrive through the socket."""
    stream, write = _lines(number)
    wire = Wire()
    namespace: dict[str, object] = {"__name__": "solution", "__builtins__": builtins}
    exec(compile(job["code"], "solution.py", "exec"), namespace)

    def target(found: Target) -> object:
        if "reference" in found:
            return wire.kept[found["reference"]]
        name, solution = found["name"], namespace.get("Solution")
        if name not in namespace and callable(solution) and hasattr(solution, name):  # LeetCode's form
            return getattr(solution(), name)
        return namespace[name]

    for line in stream:
        request = json.loads(line)
        try:
            if "call" in request:
                args = [wire.decode(one) for one in request["args"]]
                kwargs = {name: wire.decode(one) for name, one in request["kwargs"].items()}
                result = cast("Callable[..., object]", target(request["call"]))(*args, **kwargs)
                changed = [one if type(one) in (list, dict, set) else None for one in args]
                value: object = ["list", [wire.encode(result), wire.encode(changed)]]
            else:
                value = wire.encode(getattr(target(request["of"]), request["attribute"]))
            reply = json.dumps({"value": value})
        except Exception as error:
            reply = json.dumps({"raised": type(error).__name__})
        write(reply.encode())


def check(job: Job, number: int) -> None:
    """Run the tests `code` on functions of the other process; exits with PASSED if they run to their end."""
    import ast

    stream, write = _lines(number)

    def send(request: bytes) -> bytes:
        write(request)
        line = stream.readline(LONGEST)
        if not line.endswith(b"\n"):
            raise RuntimeError("the solution's process has ended")
        return line

    caller = Caller(send)

    def function(name: str) -> Callable[..., object]:
        return lambda *args, **kwargs: caller.call({"name": name}, args, kwargs)

    namespace: dict[str, object] = {"__name__": "tests", "__builtins__": builtins}
    exec(compile(job["setup"], "setup.py", "exec"), namespace)
    entry = job["entry_point"]
    names = [entry] if entry else _unknown_names(job["code"], namespace)
    for name in names:
        namespace[name] = function(name)
    if not entry:
        # Modules that the tests use without an import must not come from the solution, such as its own `math.isclose`.
        for node in ast.walk(ast.parse(job["code"])):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = node.value.id
                if name in names and name in sys.stdlib_module_names:
                    namespace[name] = __import__(name)
    exec(compile(job["code"], "tests.py", "exec"), namespace)
    if entry:
        cast("Callable[[object], object]", namespace["check"])(namespace[entry])
    os._exit(PASSED)


def _unknown_names(tests: str, namespace: Mapping[str, object]) -> list[str]:
    """The solution's names: those that the tests read, but that are not defined by them, their setup or Python."""
    import ast

    read: set[str] = set()
    defined = {*namespace, *dir(builtins)}
    for node in ast.walk(ast.parse(tests)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
    return sorted(read - defined)
