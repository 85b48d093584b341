"""One server's client: what it says never has the key in it, and what it may open and wait for."""

from __future__ import annotations

import resource

import pytest

from rlt.engines.client import OTHER_FILES, Server
from rlt.errors import ConfigError

KEY = "sk-very-secret-key"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MY_KEY", KEY)
    return Server("http://127.0.0.1:9/v1", "MY_KEY")


@pytest.mark.parametrize("limit", [80, 300])
def test_a_key_that_lies_across_the_cut_is_replaced_whole(client: Server, limit: int) -> None:
    for before in range(limit - len(KEY), limit + 1):
        said = client.clean("x" * before + KEY, limit)
        assert len(said) <= limit
        assert "sk" not in said


def test_many_lines_become_one(client: Server) -> None:
    assert client.clean("bad\n  gateway\r\n") == "bad gateway"


def limits(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> list[tuple[int, int]]:
    """Limits of open files as a process may find them, and those that it then sets."""
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: made.append(new))
    return made


def test_more_connections_than_open_files_raise_the_soft_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = limits(monkeypatch, 1024, 4096)
    Server("http://127.0.0.1:9/v1", max_in_flight=2048)
    assert made == [(2048 + OTHER_FILES, 4096)]


def test_few_connections_change_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = limits(monkeypatch, 1024, 4096)
    Server("http://127.0.0.1:9/v1", max_in_flight=64)
    assert made == []


def test_more_connections_than_the_hard_limit_are_refused_with_what_is_possible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits(monkeypatch, 1024, 1024)
    with pytest.raises(ConfigError, match=r"may have 1024\. Set `max_in_flight` to 768 or less"):
        Server("http://127.0.0.1:9/v1", max_in_flight=2048)
