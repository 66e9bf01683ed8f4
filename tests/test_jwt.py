"""``legato.auth.JWT``: which tokens are believed, and that a token has no say in it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from legato import Caller, Legato
from legato.auth import JWT
from legato.auth import jwt as module
from legato.caller import SCOPES
from legato.errors import InvalidInput, Overloaded
from legato.store.memory import MemoryStore
from legato.testing import Driver
from legato.testing.asgi import ASGIStream
from signing import (
    AUDIENCE,
    EC,
    EC_PEM,
    ED,
    ED_PEM,
    ISSUER,
    OTHER_RSA,
    RSA,
    RSA_PEM,
    SECRET,
    claims,
    confused,
    encoded,
    issuing,
    jwk,
    signed_by_secret,
    token,
    unsigned,
)


def believing(**options: Any) -> JWT:
    if not {"secret", "key", "jwks"} & set(options):
        options["key"] = RSA_PEM
    return JWT(**{"issuer": ISSUER, "audience": AUDIENCE, **options})


async def believed(auth: JWT, *tokens: str) -> Caller | None:
    headers = [(b"authorization", f"Bearer {each}".encode("latin-1")) for each in tokens]
    return await auth(HTTPConnection({"type": "http", "headers": headers}))


@pytest.mark.parametrize(
    ("options", "signed"),
    [
        ({"key": RSA_PEM}, (RSA, "RS256")),
        ({"key": RSA_PEM, "algorithms": ["PS512", "RS384"]}, (RSA, "PS512")),
        ({"key": EC_PEM}, (EC, "ES256")),
        ({"key": ED_PEM}, (ED, "EdDSA")),
        ({"secret": SECRET}, (SECRET, "HS256")),
        ({"secret": SECRET * 2, "algorithms": ["HS512"]}, (SECRET * 2, "HS512")),
        ({"audience": ["other", AUDIENCE]}, (RSA, "RS256")),
    ],
)
async def test_a_good_token_says_who_asks(options: Any, signed: Any) -> None:
    """With each kind of key; until it expires, and the leeway."""
    until = time.time() + 60
    caller = await believed(believing(**options), token(*signed, exp=until))
    assert caller is not None
    assert (caller.subject, caller.scopes) == ("alice", None)
    assert caller.expires_at == pytest.approx(until + 30, abs=1)


WRONG: dict[str, Any] = {
    "expired": lambda: token(exp=time.time() - 31),
    "no exp": lambda: token(exp=None),
    "exp of another type": lambda: token(exp="soon"),
    "not yet": lambda: token(nbf=time.time() + 60),
    "of the future": lambda: token(iat=time.time() + 600),
    "wrong audience": lambda: token(aud="other"),
    "no audience": lambda: token(aud=None),
    "wrong issuer": lambda: token(iss="https://evil.example"),
    "issuer with a slash": lambda: token(iss=f"{ISSUER}/"),
    "no issuer": lambda: token(iss=None),
    "no subject": lambda: token(sub=None),
    "an empty subject": lambda: token(sub=""),
    "a number for a subject": lambda: token(sub=7),
    "a list for a subject": lambda: token(sub=["alice"]),
    "another key": lambda: token(OTHER_RSA),
    "another algorithm of the key": lambda: token(algorithm="RS512"),
    "another kind of key": lambda: token(EC, "ES256"),
    "a secret": lambda: token(SECRET, "HS256"),
    "HS with the public key": lambda: confused(RSA_PEM),
    "HS with the public key, stripped": lambda: confused(RSA_PEM.strip()),
    **{f"alg={name}": lambda name=name: unsigned(name) for name in ("none", "None", "nOnE", "", "RS256", "HS256")},
    "alg=none with another's signature": lambda: f"{unsigned()}{token().rpartition('.')[2]}",
    "no algorithm": lambda: f"{encoded({'typ': 'JWT'})}.{encoded(claims())}.{encoded(b'x')}",
    "a list of algorithms": lambda: f"{encoded({'alg': ['RS256']})}.{encoded(claims())}.{encoded(b'x')}",
    "its own key (jwk)": lambda: token(OTHER_RSA, headers={"jwk": jwk(OTHER_RSA)}),
    "where its key is (jku)": lambda: token(OTHER_RSA, headers={"jku": "http://127.0.0.1:9/"}),
    "where its key is (x5u)": lambda: token(OTHER_RSA, headers={"x5u": "http://127.0.0.1:9/"}),
    "a key of files (kid)": lambda: token("x" * 32, "HS256", headers={"kid": "/dev/null"}),
    "critical": lambda: token(headers={"crit": ["b64"], "b64": False}),
    "a changed subject": lambda: _changed(token(), sub="bob"),
    "no signature": lambda: token().rpartition(".")[0] + ".",
    "two parts": lambda: token().rpartition(".")[0],
    "five parts": lambda: f"{token()}.a.b",
    "a part too many": lambda: f"{token()}.",
    "no JSON": lambda: f"{encoded(b'x')}.{encoded(b'y')}.{encoded(b'z')}",
    "deep JSON": lambda: f"{encoded(b'[' * 3000)}.{encoded(b'[' * 3000)}.x",
    "letters": lambda: "a.b.c",
    "nothing": lambda: "",
    "beyond all bounds": lambda: token(more="a" * 20_000),
    "no ASCII": lambda: token() + "\u00e9",
}  # fmt: skip


def _changed(text: str, **changed: Any) -> str:
    head, _, signature = text.split(".")
    return f"{head}.{encoded(claims(**changed))}.{signature}"


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_token_that_is_wrong_is_nobodys(wrong: str) -> None:
    """None, and nothing raised."""
    auth = believing()
    assert await believed(auth, token()) is not None
    assert await believed(auth, WRONG[wrong]()) is None


@pytest.mark.parametrize("exp", ["1e999", "-1e999", "NaN", "null", "[]", "{}", "1" * 5000, '"x"', "true"])
async def test_an_odd_time_that_is_signed_is_none(exp: str) -> None:
    """Of an issuer that is in trouble."""
    said = f'{{"iss": "{ISSUER}", "aud": "{AUDIENCE}", "sub": "alice", "exp": {exp}}}'.encode()
    assert await believed(believing(secret=SECRET), signed_by_secret(said)) is None


async def test_two_tokens_are_none() -> None:
    """Who stands before the server may have looked at the other one."""
    assert await believed(believing(), token(), token()) is None


@pytest.mark.parametrize("public", [RSA_PEM, EC_PEM, ED_PEM], ids=["rsa", "ec", "ed"])
async def test_a_secret_is_no_public_key(public: str) -> None:
    """Whatever is signed with what all know, and whoever has a secret: not with the other's algorithm."""
    assert await believed(believing(key=public), confused(public)) is None
    assert await believed(believing(secret=SECRET), confused(public)) is None
    assert await believed(believing(secret=SECRET), token()) is None


async def test_leeway_is_for_clocks() -> None:
    """Seconds, on both ends."""
    auth = believing(leeway=5)
    assert await believed(auth, token(exp=time.time() - 3)) is not None
    assert await believed(auth, token(exp=time.time() - 7)) is None


@pytest.mark.parametrize(
    ("claim", "said", "scopes"),
    [
        (None, "read admin", None),
        ("scope", "read admin other", {"read", "admin"}),
        ("scp", ["read", "send", 3, None], {"read", "send"}),
        ("scope", "", set()),
        ("scope", 7, set()),
        ("scope", None, set()),
    ],
)
async def test_scopes_are_those_of_a_claim_that_is_named(claim: str | None, said: Any, scopes: Any) -> None:
    """Where none is named, a token's words say nothing: another service's ``admin`` is not ours."""
    caller = await believed(believing(scopes=claim), token(**{claim or "scope": said}))
    assert caller is not None
    assert caller.scopes == (None if scopes is None else frozenset(scopes))
    admin = await believed(believing(admins=["alice"]), token())
    assert admin is not None
    assert admin.scopes == frozenset(SCOPES)


@pytest.mark.parametrize(
    "options",
    [
        {"key": None},
        {"key": RSA_PEM, "secret": SECRET},
        {"secret": "short"},
        {"secret": SECRET, "algorithms": ["RS256"]},
        {"secret": SECRET, "algorithms": ["none"]},
        {"secret": SECRET, "algorithms": []},
        {"key": RSA_PEM, "algorithms": ["HS256"]},
        {"key": RSA_PEM, "algorithms": ["RS256", "HS256"]},
        {"key": RSA_PEM, "algorithms": ["ES256"]},
        {"key": RSA_PEM, "algorithms": "none"},
        {"key": EC_PEM, "algorithms": ["ES384"]},
        {"key": "/nowhere/key.pem"},
        {"key": "-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----"},
        {"jwks": "http://issuer.example/keys"},
        {"jwks": "file:///etc/passwd"},
        {"jwks": "ftp://issuer.example/keys"},
        {"jwks": "https://me:sesame@issuer.example/keys"},
        {"jwks": "http://sesame@localhost/keys?token=sesame"},
        {"jwks": "https://ida:sesame?@issuer.example/keys"},
        {"jwks": "https://ida:ses/sesame@issuer.example/keys"},
        {"jwks": "https://sesame/@issuer.example/keys"},
        {"jwks": "https://issuer.example:sesame/keys"},
        {"jwks": "https://issuer.example:0/keys"},
        {"jwks": "https://ida%3Asesame%40issuer.example/keys"},
        {"jwks": "https://localhost:1/keys x?key=sesame y"},
        {"jwks": "https://localhost:1/keys?key=sesame y"},
        {"jwks": "https://localhost:1/keys?key=sesame\x7f"},
        {"jwks": "https://localhost:1/keys?key=sesame\n"},
        {"jwks": "https://localhost:1/keys?key=sesam\xe9sesame"},
        {"jwks": "https//ida:sesame@issuer.example/keys"},
        {"jwks": "https:///keys"},
        {"jwks": "https://[::1/keys"},
        {"jwks": "/nowhere/keys.json"},
        {"jwks": "https://issuer.example/keys", "algorithms": ["HS256"]},
        {"issuer": ""},
        {"audience": ""},
        {"audience": []},
        {"leeway": 301},
        {"leeway": -1},
    ],
)
def test_what_would_be_weak_is_no_setting(options: dict[str, Any]) -> None:
    """It is said at once, without passwords."""
    with pytest.raises(InvalidInput) as caught:
        believing(**options) if options.get("key", "") is not None else JWT(issuer=ISSUER, audience=AUDIENCE)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com",
        "https://issuer.example/keys?of=me@issuer.example",
    ],
)
def test_a_name_in_a_path_is_no_user(url: str) -> None:
    """As in the addresses of sets that are often used."""
    believing(jwks=url)


async def test_a_key_and_a_set_can_be_files(tmp_path: Path) -> None:
    """Of a set the token names its key; without a name there must be one that fits."""
    (tmp_path / "key.pem").write_text(EC_PEM)
    assert await believed(believing(key=tmp_path / "key.pem"), token(EC, "ES256")) is not None
    assert await believed(believing(key=str(tmp_path / "key.pem")), token(EC, "ES256")) is not None
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [
        jwk(RSA, "a"), jwk(EC, "b"), {"kty": "oct", "k": encoded(SECRET.encode()), "kid": "c"},
        jwk(OTHER_RSA, "d", use="enc"), {"kty": "RSA", "kid": "e"}, 7, jwk(EC, "f", alg="HS256"),
    ]}))  # fmt: skip
    auth = believing(jwks=path)
    for signed, kid, good in (
        ((RSA, "RS256"), "a", True),
        ((EC, "ES256"), "b", True),
        ((RSA, "RS256"), "b", False),
        ((EC, "ES256"), "a", False),
        ((SECRET, "HS256"), "c", False),
        ((OTHER_RSA, "RS256"), "d", False),
        ((RSA, "RS256"), "e", False),
        ((EC, "ES256"), "f", False),
        ((RSA, "RS256"), "../a", False),
        ((RSA, "RS256"), None, True),
        ((OTHER_RSA, "RS256"), None, False),
    ):
        text = token(*signed, headers={} if kid is None else {"kid": kid})
        assert (await believed(auth, text) is not None) == good, kid


async def test_a_token_that_is_known_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is checked once, as far as there is room, and its time each time."""
    auth = believing(leeway=0)
    checked: list[str] = []
    check = auth._checked
    monkeypatch.setattr(module, "KNOWN", 3)
    monkeypatch.setattr(auth, "_checked", lambda text: checked.append(text) or check(text))
    now = time.time()
    tokens = [token(sub=f"u{n}", exp=now + 60) for n in range(4)]
    for _ in range(3):
        assert [getattr(await believed(auth, each), "subject", None) for each in tokens[:3]] == ["u0", "u1", "u2"]
    assert checked == tokens[:3]
    assert await believed(auth, tokens[3]) is not None
    assert await believed(auth, tokens[0]) is not None  # it had to make room
    assert checked == [*tokens[:3], tokens[3], tokens[0]]
    assert len(auth._known) == 3
    assert await believed(auth, tokens[0] + "x") is None
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert [await believed(auth, each) for each in (tokens[2], tokens[3], tokens[0])] == [None] * 3


# Sets of keys that are fetched ----------------------------------------------------------------------------------------


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fetching(url: str) -> tuple[JWT, Clock]:
    auth, clock = believing(jwks=url), Clock()
    assert auth._jwks is not None
    auth._jwks._clock = clock
    return auth, clock


def named(kid: str, key: Any = RSA) -> str:
    return token(key, headers={"kid": kid})


async def test_a_set_is_asked_for_once() -> None:
    """By many at once; then again when it is old, or when a token names a key that is new; and never often."""
    with issuing() as issuer:
        auth, clock = fetching(issuer.url)
        issuer.keys = [jwk(RSA, "a")]
        callers = await asyncio.gather(*(believed(auth, named("a")) for _ in range(20)))
        assert None not in callers
        assert issuer.asked == 1

        for n in range(50):  # who makes names up does not make us ask
            assert await believed(auth, named(f"x{n}")) is None
        assert issuer.asked == 1
        clock.now += module.AGAIN_SECONDS
        for n in range(50):
            assert await believed(auth, named(f"x{n}")) is None
        assert issuer.asked == 2

        clock.now += module.AGAIN_SECONDS
        issuer.keys = [jwk(OTHER_RSA, "b")]  # a rotation
        assert await believed(auth, named("b", OTHER_RSA)) is not None
        assert issuer.asked == 3
        assert await believed(auth, named("a")) is None  # withdrawn


async def test_a_set_that_cannot_be_had_for_a_while_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    """For a day; and without any, it is the server that cannot say who asks. A key of the address is in no log."""
    with issuing() as issuer:
        issuer.status = 500
        auth, clock = fetching(f"{issuer.url}?key=sesame")
        for _ in range(20):
            with pytest.raises(Overloaded):
                await believed(auth, named("a"))
        assert issuer.asked == 1
        issuer.status, issuer.keys = 200, [jwk(RSA, "a")]
        clock.now += module.AGAIN_SECONDS
        assert await believed(auth, named("a")) is not None
        issuer.status = 500
        clock.now += module.KEEP_SECONDS + 1
        assert await believed(auth, named("a")) is not None
        clock.now += module.STALE_SECONDS
        with pytest.raises(Overloaded):
            await believed(auth, named("a"))
    assert issuer.url in caplog.text
    assert "sesame" not in caplog.text


async def test_who_waits_for_nothing_waits_for_no_set() -> None:
    """A set that is old is asked for beside the requests."""
    with issuing() as issuer:
        issuer.keys = [jwk(RSA, "a")]
        auth, clock = fetching(issuer.url)
        assert await believed(auth, named("a")) is not None
        clock.now += module.KEEP_SECONDS + 1
        assert await believed(auth, named("a")) is not None
        assert auth._jwks is not None
        assert auth._jwks._reading is not None
        await auth._jwks._reading
        assert issuer.asked == 2


async def test_a_key_withdrawn_in_a_silence_is_good_no_more() -> None:
    """Who comes first after it waits for the new set; unless it cannot be had, then nobody waits for that again."""
    with issuing() as issuer:
        issuer.keys = [jwk(RSA, "a")]
        auth, clock = fetching(issuer.url)
        assert await believed(auth, named("a")) is not None
        issuer.keys = [jwk(OTHER_RSA, "a")]
        clock.now += 2 * module.KEEP_SECONDS + 1
        assert await believed(auth, named("a")) is None
        assert await believed(auth, named("a", OTHER_RSA)) is not None
        issuer.status = 500
        clock.now += 2 * module.KEEP_SECONDS + 1
        assert await believed(auth, named("a", OTHER_RSA)) is not None
        clock.now += module.AGAIN_SECONDS
        assert await believed(auth, named("a", OTHER_RSA)) is not None
        assert auth._jwks is not None
        assert auth._jwks._reading is not None
        await auth._jwks._reading


async def test_a_set_in_a_file_is_seen_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Keys come and go without a restart; what cannot be read takes nothing away, and is told once; and whoever makes
    names up does not have it read more often."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [jwk(RSA, "a")]}))
    auth, clock = believing(jwks=path), Clock()
    assert auth._jwks is not None
    auth._jwks._clock = clock
    auth._jwks._read_at = auth._jwks._asked_at = clock.now
    old, new = named("a"), named("b", OTHER_RSA)
    assert await believed(auth, old) is not None
    number = auth._jwks.number
    path.write_text(json.dumps({"keys": [jwk(RSA, "a"), jwk(OTHER_RSA, "b")]}))
    assert await believed(auth, new) is None
    clock.now += module.FILE_SECONDS + 0.1
    assert [await believed(auth, each) is not None for each in (new, old)] == [True, True]
    assert auth._jwks.number == number + 1
    for trouble in (*NO_SETS, b" " * (module.JWKS_BYTES + 1), None):
        path.unlink() if trouble is None else path.write_bytes(trouble)
        clock.now += module.FILE_SECONDS + 0.1
        assert await believed(auth, old) is not None, trouble
    assert len([each for each in caplog.records if "cannot be had" in each.getMessage()]) == 1
    path.write_text(json.dumps({"keys": [jwk(OTHER_RSA, "b"), jwk(RSA, ["a"]), jwk(RSA, {"a": 1})]}))
    clock.now += module.FILE_SECONDS + 0.1
    assert await believed(auth, old) is None
    assert await believed(auth, new) is not None
    clock.now += module.STALE_SECONDS + 1
    path.unlink()
    with pytest.raises(Overloaded):
        await believed(auth, new)


async def test_who_signs_in_waits_for_no_agent(tmp_path: Path) -> None:
    """Whose calls hold all threads of the event loop."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [jwk(RSA, "a")]}))
    auth, clock, let = believing(jwks=path), Clock(), threading.Event()
    assert auth._jwks is not None
    auth._jwks._clock = clock
    auth._jwks._read_at = auth._jwks._asked_at = clock.now
    threads = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    try:
        held = asyncio.get_running_loop().run_in_executor(None, let.wait)
        clock.now += module.FILE_SECONDS + 0.1
        async with asyncio.timeout(30):
            assert await believed(auth, named("a")) is not None
        assert not held.done()
    finally:
        let.set()


@pytest.mark.parametrize("raw", [b"[" * 5000, b"{}", b" " * (module.JWKS_BYTES + 1)], ids=lambda raw: str(raw[:3]))
def test_a_file_that_is_no_set_is_no_setting(tmp_path: Path, raw: bytes) -> None:
    """It is said at the start, in a sentence."""
    (tmp_path / "keys.json").write_bytes(raw)
    with pytest.raises(InvalidInput, match="cannot be read"):
        believing(jwks=tmp_path / "keys.json")


NO_SETS = [b"", b"x", b"[]", b"{}", b'{"keys": []}', b'{"keys": 7}', b'{"keys": [7]}', b"[" * 5000, b"\xff"]


@pytest.mark.parametrize("raw", [*NO_SETS, b" " * (module.JWKS_BYTES + 1)], ids=lambda raw: str(raw[:12]))
async def test_a_set_that_is_none_takes_nothing_away(raw: bytes) -> None:
    """Too large, or not JSON, or without a key."""
    with issuing() as issuer:
        issuer.keys = [jwk(RSA, "a")]
        auth, clock = fetching(issuer.url)
        assert await believed(auth, named("a")) is not None
        issuer.raw = raw
        clock.now += module.KEEP_SECONDS + 1
        assert await believed(auth, named("b")) is None
        assert await believed(auth, named("a")) is not None
        assert issuer.asked == 2


async def test_a_set_is_where_it_was_said_to_be() -> None:
    """A redirect is not followed, and what a token names is not asked."""
    with issuing() as issuer, issuing() as other:
        other.keys = [jwk(OTHER_RSA, "a")]
        issuer.status, issuer.location = 302, other.url
        auth, _ = fetching(issuer.url)
        with pytest.raises(Overloaded):
            await believed(auth, token(OTHER_RSA, headers={"kid": "a", "jku": other.url, "x5u": other.url}))
        assert (issuer.asked, other.asked) == (1, 0)


# Streams --------------------------------------------------------------------------------------------------------------


async def agent(turn: Any) -> str:
    return "tea"


async def heard(stream: ASGIStream, until: bytes = b"") -> bytes:
    """What a stream says until it is ended, or has said that."""
    said = b""
    async for chunk in stream:
        said += chunk
        if until and until in said:
            break
    return said


@pytest.mark.parametrize("way", ["file", "address"])
async def test_a_stream_ends_when_its_key_is_withdrawn(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the set has been read again, which nobody has to ask for; also of who came with a ticket. Others go
    on, and so does who comes when the key is there again."""
    for name in ("FILE_SECONDS", "KEEP_SECONDS", "AGAIN_SECONDS"):
        monkeypatch.setattr(module, name, 0.02)
    path = tmp_path / "keys.json"
    with issuing() as issuer:

        def publish(*keys: dict[str, Any]) -> None:
            issuer.keys = list(keys)
            (tmp_path / "next").write_text(json.dumps({"keys": list(keys)}))
            (tmp_path / "next").rename(path)

        publish(jwk(RSA, "a"), jwk(OTHER_RSA, "b"))
        auth = believing(jwks=path if way == "file" else issuer.url)
        app = Legato("memory:", agents=[agent], auth=auth)
        async with Driver(app) as driver:
            async with Driver(Legato("memory:", agents=[agent], auth=auth)):
                pass  # another that has it in common, and leaves it
            old, new = ({"authorization": f"Bearer {each}"} for each in (named("a"), named("b", OTHER_RSA)))
            assert (await driver.request("POST", "/api/sessions", json={"id": "s"}, headers=old)).status == 201
            given = await driver.request("POST", "/tickets", json={"sessionId": "s"}, headers=old)
            target = "/stream?sessionId=s"
            async with (
                driver.stream(target, headers=old) as mine,
                driver.stream(f"{target}&ticket={given.json()['ticket']}") as by_ticket,
                driver.stream(target, headers=new) as other,
            ):
                publish(jwk(OTHER_RSA, "b"))
                assert b": revoked\n" in await heard(mine)
                assert b": revoked\n" in await heard(by_ticket)
                assert (await driver.request("GET", "/api/sessions/s", headers=old)).status == 401
                publish(jwk(OTHER_RSA, "b"), jwk(RSA, "a"))
                while (await driver.request("GET", "/api/sessions/s", headers=old)).status == 401:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                async with driver.stream(target, headers=old) as again:
                    await driver.request("POST", "/api/sessions/s/messages", json={"text": "hi"}, headers=new)
                    for each in (again, other):
                        assert b"tea" in await heard(each, b"tea")


async def test_a_set_is_looked_after_on_any_event_loop(tmp_path: Path) -> None:
    """Also where the last one has ended without a word."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [jwk(RSA, "a")]}))
    auth = believing(jwks=path)

    async def begun() -> None:
        await auth.open(MemoryStore(), lambda credential, gone=True: None)

    await asyncio.to_thread(asyncio.run, begun())
    await begun()
    assert auth._jwks is not None
    following = auth._jwks._following
    assert following is not None
    assert not following.done()
    await auth.close()
    await auth.close()
    assert following.cancelled()


async def test_nobody_asks_for_a_set_that_nobody_has_wanted() -> None:
    """An application that is started asks no issuer; one that is stopped asks no more."""
    with issuing() as issuer:
        auth = believing(jwks=issuer.url)
        app = Legato("memory:", agents=[agent], auth=auth)
        await app.start()
        assert auth._jwks is not None
        following = auth._jwks._following
        assert following is not None
        await asyncio.sleep(0)
        await app.stop()
        assert (issuer.asked, following.cancelled()) == (0, True)
