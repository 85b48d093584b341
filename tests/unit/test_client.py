"""One server's client: what it says never has the key in it, and what it may open and wait for."""

from __future__ import annotations

import resource

import pytest

from rlt.engines.client import OTHER_FILES, Client
from rlt.errors import ConfigError

KEY = "sk-very-secret-key"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("MY_KEY", KEY)
    return Client("http://127.0.0.1:9/v1", "MY_KEY")


@pytest.mark.parametrize("limit", [80, 300])
def test_a_key_that_lies_across_the_cut_is_replaced_whole(client: Client, limit: int) -> None:
    for before in range(limit - len(KEY), limit + 1):
        said = client.clean("x" * before + KEY, limit)
        assert len(said) <= limit
        assert "sk" not in said


def test_many_lines_become_one(client: Client) -> None:
    assert client.clean("bad\n  gateway\r\n") == "bad gateway"


def test_control_characters_are_escaped_within_the_limit(client: Client) -> None:
    assert client.clean("a\x1b[31m\u202eb\x00") == r"a\x1b[31m\u202eb\x00"
    assert len(client.clean("\x1b" * 300)) == 300


def test_the_key_in_the_place_of_its_variables_name_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="takes the name of an environment variable") as error:
        Client("http://127.0.0.1:9/v1", KEY)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000/v1", "ftp://host/v1", "http://", "http://[::1/v1", "http://host:port/v1"]
)
def test_what_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        Client(url)


def limits(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> list[tuple[int, int]]:
    """Limits of open files as a process may find them, and those that it then sets."""
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: made.append(new))
    return made


def test_more_connections_than_open_files_raise_the_soft_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = limits(monkeypatch, 1024, 4096)
    Client("http://127.0.0.1:9/v1", max_in_flight=2048)
    assert made == [(2048 + OTHER_FILES, 4096)]


def test_few_connections_change_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = limits(monkeypatch, 1024, 4096)
    Client("http://127.0.0.1:9/v1", max_in_flight=64)
    assert made == []


def test_more_connections_than_the_hard_limit_are_refused_with_what_is_possible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits(monkeypatch, 1024, 1024)
    with pytest.raises(ConfigError, match=r"limited to 1024\. Set `max_in_flight` to 768 or less"):
        Client("http://127.0.0.1:9/v1", max_in_flight=2048)
