"""URLs as they are shown: without passwords, however they are written, and as they are where they have none."""

from __future__ import annotations

import pytest

from legato import Client
from legato.addresses import server_of, shown
from legato.cli.connect import come_back, explained
from legato.client import ConnectionFailed
from legato.errors import InvalidInput
from legato.store import open_store


@pytest.mark.parametrize(
    "url",
    [
        *("postgresql://ida:sesame@db/x", "postgresql://ida:ses@sesame/@db/x", "postgresql://ida:sesame@[db/x"),
        *("postgresql://ida:sesame/x", "postgresql://ida@db:sesame/x", "postgresql://db:1,db:sesame/x"),
        *("postgresql//ida:sesame@db/x", "postgresql:/ida:sesame@db/x", "postgresql:///ida:sesame@db/x"),
        *("postgresql:ida:sesame@db/x", "postgresql:ida:sesame/x", "postgresql//ida:sesame/x", "//ida:sesame@db"),
        *("ida:sesame@db", "ida:sesame:sesame@db", "ida:/sesame@db", "ida:a://sesame@db", "jdbc:x://ida:sesame@db/x"),
        *("REDIS://:sesame@db", "redis://:sesame", "redis://:sesame/sesame", "redis://ida:123456sesame"),
        *("https://sesame@db", "HTTPS://sesame@db", "https//sesame@db", "https:/sesame@db", "https://ses@sesame@db"),
        *("https://ida:sesame?@db/x", "https://ida:/sesame@db/x", "https://ida:sesame@db:99999", "http://db:sesame/x"),
        *("s3://x?secret_access_key=sesame", "x://db?PASSWORD=a@sesame", "host=db password=sesame", "password=sesame"),
        *("postgresql://db/x?listen=postgresql://ida:sesame@db", "s3://x/p?endpoint=https://ida:sesame@db"),
        *("http://db/v1?u=https://sesame@y", "jdbc:x://db;password=sesame"),
    ],
)
def test_no_password_is_shown(url: str) -> None:
    """Nor in the error of a store; of the rest, enough to know which URL it is."""
    assert "sesame" not in shown(url)
    assert shown(url)[:2] == url[:2]
    try:
        open_store(url)  # some can be
    except ModuleNotFoundError:
        pass  # without the packages of a store
    except InvalidInput as exc:
        assert "sesame" not in str(exc)  # noqa: PT017


@pytest.mark.parametrize(
    "url",
    [
        *("sqlite:///chat.db", "sqlite:////srv/a@b.db?durability=full", "sqlite:///C:/chat.db", "memory:", "/srv/x:y"),
        *("postgresql://ida@a:1,b:5433/x?sslmode=require", "redis+cluster://[::1]:6379,cache:1/", "redis://db:6379/0"),
        *("http://localhost:8080/v1?x=1", "https://db/@scope/x", "localhost:8088", "0.0.0.0:9", "owner_tokens=60"),
    ],
)
def test_what_has_no_password_is_shown_as_it_is(url: str) -> None:
    """A port is none, nor is a path or a user."""
    assert shown(url) == url


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("https://ida:sesame@h:99999", "https://h"),
        ("https://sesame@h:0/sesame?sesame", "https://h"),
        ("https://h:sesame/x", "https://h"),
        ("http://ida:sesame?@h/x", "http://***"),
        ("http://ida:ses/sesame@h/x", "http://***"),
        ("HTTPS://sesame@h", "HTTPS://h"),
        ("https//ida:sesame@h", "***"),
        ("ida:sesame@h", "h"),
        ("http://ida%3Asesame%40h:x", "http://***"),
        ("http://[::x", "http://[::x"),
        ("http://[::1]:0/sesame", "http://[::1]"),
    ],
)
def test_of_an_address_that_cannot_be_used_the_server_is_told(url: str, server: str) -> None:
    """By the clients that refuse it, too."""
    assert server_of(url) == server
    with pytest.raises(InvalidInput) as caught:
        Client(url)
    assert repr(server) in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_commands_tell_no_password_of_a_server() -> None:
    """Nor when there is none, nor how to come back; else the address is told as it was given."""
    url = "http://ida:sesame@localhost:1"
    for told in (explained(ConnectionFailed("x"), url).message, come_back("s1", url)):
        assert "http://ida:***@localhost:1" in told
        assert "sesame" not in told
    assert come_back("s1", "http://localhost:1") == "legato chat s1 --url http://localhost:1"
