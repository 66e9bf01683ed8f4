"""Sign-in by JSON Web Tokens that somebody else issues, checked with PyJWT.

Everything that decides is said here, by whoever runs the server, and nothing by a token: which algorithms, whose
tokens, for whom, and which keys. A token names at most one of the keys that there are (``kid``).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

try:
    import jwt
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
except ModuleNotFoundError as exc:
    raise ImportError("legato.auth.JWT needs PyJWT: pip install 'legato[auth]'") from exc
from starlette.requests import HTTPConnection

from ..addresses import server_of, shown
from ..caller import SCOPES, Caller, Revoked
from ..errors import InvalidInput, Overloaded
from ..log import Store
from .bearer import bearer, noted

__all__ = ["JWT"]

logger = logging.getLogger("legato")

SECRET = ("HS256", "HS384", "HS512")
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512", "secp256k1": "ES256K"}
PUBLIC = (*_RSA, *_CURVES.values(), "EdDSA")
"""The algorithms of keys that may be known to all."""
SECRET_BYTES = 32
"""Of a secret at least (RFC 7518, 3.2)."""
MOST_LEEWAY = 300.0
"""Seconds by which two clocks may differ."""

KNOWN = 1_000
"""Tokens that were found good and are not looked at again, but for their time: to check one takes 0.1 to 0.2 ms."""

JWKS_BYTES = 262_144
JWKS_KEYS = 100
"""Of a set of keys at most."""
FETCH_SECONDS = 5.0
KEEP_SECONDS = 600.0
"""For which a set of keys is as good as new,"""
STALE_SECONDS = 86_400.0
"""and for which it is used where no newer one can be had."""
AGAIN_SECONDS = 30.0
"""Between two times that it is asked for since a token names a key that is not in it, or since it could not be had."""
FILE_SECONDS = 5.0
"""The same two times for a set that is a file: to look at that costs little, and nobody else."""


class JWT:
    """Believes ``Authorization: Bearer`` tokens that an issuer has signed, for an audience, and that have not expired.

    Exactly one of ``secret``, ``key`` and ``jwks`` says how they are checked.

    Args:
        issuer: what ``iss`` has to be.
        audience: what ``aud`` has to be or hold: the name that the issuer has for this server.
        secret: shared with the issuer, 32 bytes or more.
        key: a public key as PEM, or the path of a file of it.
        jwks: a set of public keys (RFC 7517): the issuer's ``https`` address of it, or the path of a file.
        algorithms: those that are accepted, of the kind of the keys. By default HS256 for a secret, and those that fit
            for a public key (RS256 for RSA); with ``jwks`` RS256 and ES256.
        leeway: seconds by which the issuer's clock may be wrong, 300 at most.
        subject: the claim that says who it is.
        scopes: the claim that says what they may, as a list or with blanks between; None: all but ``admin``, whatever a
            token says.
        admins: subjects who may do what ``admin`` may, where ``scopes`` names no claim.

    Raises:
        InvalidInput: something of it is none, or too weak.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: str | Sequence[str],
        secret: str | bytes | None = None,
        key: str | bytes | Path | None = None,
        jwks: str | Path | None = None,
        algorithms: Sequence[str] | None = None,
        leeway: float = 30.0,
        subject: str = "sub",
        scopes: str | None = None,
        admins: Sequence[str] = (),
    ) -> None:
        if not issuer or not audience:
            raise InvalidInput("JWT(...) needs the issuer and the audience of its tokens.")
        if sum(each is not None for each in (secret, key, jwks)) != 1:
            raise InvalidInput("JWT(...) takes exactly one of secret=, key= and jwks=.")
        if not 0 <= leeway <= MOST_LEEWAY:
            raise InvalidInput(f"leeway is 0 to {MOST_LEEWAY:g} seconds, got {leeway}.")
        self._issuer = issuer
        self._audience = [audience] if isinstance(audience, str) else list(audience)
        self._leeway = leeway
        self._subject = subject
        self._scopes = scopes
        self._admins = frozenset(admins)
        self._jwks: _KeySet | None = None
        self._key: Any = None
        self._known: dict[bytes, tuple[Caller, int]] = {}  # by hash, with the set of keys that it was checked with
        if secret is not None:
            self._key = secret.encode() if isinstance(secret, str) else secret
            if len(self._key) < SECRET_BYTES:
                raise InvalidInput(f"A secret for JWT has {SECRET_BYTES} bytes at least, got {len(self._key)}.")
            self._algorithms = _allowed(algorithms, SECRET, ("HS256",), "a secret")
        elif key is not None:
            self._key = _public_key(key)
            fitting = _fitting(self._key)
            self._algorithms = _allowed(algorithms, fitting, fitting[:1], "this key")
        else:
            assert jwks is not None
            self._jwks = _KeySet(jwks)
            self._algorithms = _allowed(algorithms, PUBLIC, ("RS256", "ES256"), "public keys")

    async def open(self, store: Store, revoked: Revoked) -> None:
        """Look after the set of keys: what was signed in with by one that is in it no more ends."""
        if self._jwks is not None:
            self._jwks.follow(revoked)

    async def close(self) -> None:
        """Look after it no more, once all are closed that were opened."""
        if self._jwks is not None:
            await self._jwks.leave()

    async def __call__(self, request: HTTPConnection) -> Caller | None:
        """Who asks; None if it is not with such a token.

        Raises:
            Overloaded: the issuer's keys cannot be had.
        """
        token = bearer(request)
        if token is None or token.count(".") != 2:
            return None
        return noted(self, await self._known_by(token))

    async def _known_by(self, token: str) -> Caller | None:
        name = hashlib.sha256(token.encode()).digest()
        caller, number = self._known.get(name, (None, 0))
        if caller is not None and number == self._number:
            assert caller.expires_at is not None
            return caller if caller.expires_at > time.time() else None
        caller = await self._checked(token)
        if caller is not None and self._number is not None:
            if len(self._known) >= KNOWN:
                del self._known[next(iter(self._known))]
            self._known[name] = (caller, self._number)
        return caller

    @property
    def _number(self) -> int | None:
        return 0 if self._jwks is None else self._jwks.number

    async def _checked(self, token: str) -> Caller | None:
        try:
            header = jwt.get_unverified_header(token)
            if "crit" in header:  # what has to be understood, and is not
                return None
            found = (self._key, "") if self._jwks is None else await self._jwks.key(header)
            if found is None:
                return None
            key, credential = found
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=self._algorithms,
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway,
                options={"require": ["exp", "iss", "aud", self._subject]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError):
            return None
        subject = claims.get(self._subject)
        if not isinstance(subject, str) or not subject:
            return None
        return Caller(subject, "", self._granted(subject, claims), float(claims["exp"]) + self._leeway, credential)

    def _granted(self, subject: str, claims: Mapping[str, object]) -> frozenset[str] | None:
        if self._scopes is None:
            return frozenset(SCOPES) if subject in self._admins else None
        said = claims.get(self._scopes, ())
        names = said.split() if isinstance(said, str) else said if isinstance(said, list) else ()
        return frozenset(name for name in names if name in SCOPES)


def _allowed(given: Sequence[str] | None, fitting: Sequence[str], default: Sequence[str], what: str) -> list[str]:
    names = [given] if isinstance(given, str) else list(default if given is None else given)
    for name in names:
        if name not in fitting:
            raise InvalidInput(f"With {what}, algorithms are of {', '.join(fitting)}; got {str(name)[:60]!r}.")
    if not names:
        raise InvalidInput(f"algorithms names those that are accepted, of {', '.join(fitting)}.")
    return names


def _public_key(given: str | bytes | Path) -> Any:
    pem = given
    if isinstance(given, Path) or (isinstance(given, str) and "-----BEGIN" not in given):
        try:
            pem = Path(given).read_bytes()
        except OSError as exc:
            raise InvalidInput(f"The key's file cannot be read: {exc}.") from None
    raw = pem.encode() if isinstance(pem, str) else pem
    assert isinstance(raw, bytes)
    try:
        return load_pem_public_key(raw)
    except (ValueError, TypeError) as exc:
        raise InvalidInput("key is a public key as PEM (-----BEGIN PUBLIC KEY-----), or the path of one.") from exc


def _fitting(key: object) -> tuple[str, ...]:
    """The algorithms that a public key is for."""
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < 2048:
            raise InvalidInput(f"An RSA key has 2048 bits at least, got {key.key_size}.")
        return _RSA
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return (_CURVES[key.curve.name],)
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return ("EdDSA",)
    raise InvalidInput(f"A key for JWT is of RSA, of an elliptic curve or of EdDSA, got {type(key).__name__}.")


_Entry = tuple[Any, dict[str, str]]
"""A public key, and the credential that it is by each algorithm that it is for."""
_Keys = dict[str | None, list[_Entry]]


class _KeySet:
    """The public keys of one issuer, from where the server was told that they are."""

    def __init__(self, where: str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._where = where
        text = str(where)
        self._told = re.split("[?#]", text)[0] if "://" in text else text  # a query may have a key
        if "://" in text and not _may_be_fetched(text):
            raise InvalidInput(
                "jwks is an https address without a user, in ASCII without blanks, or http on this machine, or a file; "
                f"got one of {server_of(text)!r}."
            )
        self._fetches = "://" in text
        self._keep, self._again = (KEEP_SECONDS, AGAIN_SECONDS) if self._fetches else (FILE_SECONDS, FILE_SECONDS)
        self._clock = clock
        self._number = 0
        self._keys: _Keys = {}
        self._read_at = -STALE_SECONDS
        self._asked_at = -AGAIN_SECONDS
        self._raw = b""
        self._failing = False
        self._reading: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._listeners: list[Revoked] = []  # of applications, which may have this in common
        self._open = 0
        self._thread = ThreadPoolExecutor(1, "legato-jwks")  # nobody who signs in waits for what agents do in threads
        if not self._fetches:
            try:
                self._take(_read_file(text))
                self._asked_at = self._read_at
            except (OSError, ValueError, RecursionError) as exc:
                why = exc.strerror if isinstance(exc, OSError) else exc  # without the name, which may be an address
                raise InvalidInput(f"The keys of {shown(text)[:200]!r} cannot be read: {why}.") from None

    @property
    def number(self) -> int | None:
        """Of the set that there is, while it is as good as new; else None."""
        return self._number if self._clock() - self._read_at <= self._keep else None

    def follow(self, revoked: Revoked) -> None:
        """Read them again whenever they are as good as new no more, once somebody has wanted one, and tell
        ``revoked`` of the credentials of each that is gone, and of each that is there again."""
        self._listeners.append(revoked)
        self._open += 1
        if self._following is None or self._following.get_loop() is not asyncio.get_running_loop():
            self._following = asyncio.create_task(self._follow(), name="legato-jwks-follow")

    async def _follow(self) -> None:
        while True:
            left = self._read_at + self._keep - self._clock() if self._keys else self._keep
            await asyncio.sleep(left if left > 0 else self._again)
            if self._keys and self._clock() - self._read_at >= self._keep:
                await self._read_again(wait=True)

    async def leave(self) -> None:
        """Read them only when they are wanted, once as many have left as follow."""
        self._open -= 1
        if self._open > 0:
            return
        self._listeners.clear()
        following, self._following = self._following, None
        tasks = [task for task in (following, self._reading) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def key(self, header: Mapping[str, Any]) -> tuple[Any, str] | None:
        """The key that a token was signed with by its own word, if its algorithm is for it, and the credential that it
        is by that algorithm; else None.

        Raises:
            Overloaded: nobody knows, since they cannot be had.
        """
        kid = header.get("kid")
        if not (kid is None or isinstance(kid, str)):
            return None
        age, found = self._clock() - self._read_at, self._found(kid)
        if age > self._keep or not found:
            # After a silence a key that was withdrawn in it is not to be good once more; but while an issuer does not
            # answer, nobody is to wait for that.
            idle = age > 2 * self._keep and not self._failing
            await self._read_again(wait=not self._fetches or not found or idle or age > STALE_SECONDS)
        if self._clock() - self._read_at > STALE_SECONDS:
            raise Overloaded("The keys of those who sign tokens cannot be had now; try again later.")
        algorithm = header.get("alg")
        fitting = [(key, by[algorithm]) for key, by in self._found(kid) if algorithm in by]
        return fitting[0] if len(fitting) == 1 else None  # without a name it must be the only one

    def _found(self, kid: str | None) -> list[_Entry]:
        if kid is None:
            return [key for keys in self._keys.values() for key in keys]
        return self._keys.get(kid, [])

    async def _read_again(self, *, wait: bool) -> None:
        """Ask for them, unless that was done of late; all who want them wait for the one request."""
        if self._reading is None and self._clock() - self._asked_at >= self._again:
            self._asked_at = self._clock()
            self._reading = asyncio.create_task(self._read(), name="legato-jwks")
        if self._reading is not None and wait:
            await asyncio.shield(self._reading)

    async def _read(self) -> None:
        try:
            read = _fetched if self._fetches else _read_file
            self._take(await asyncio.get_running_loop().run_in_executor(self._thread, read, str(self._where)))
            self._failing = False
        except Exception as exc:  # whatever the network or the other server does
            if self._fetches or not self._failing:
                why = str(exc)[:300]  # of the network, or of what is no set of keys
                so = "those from before are used" if self._keys else "nobody can sign in with tokens"
                logger.warning("the keys of %s cannot be had, and %s: %s", self._told, so, why)
            self._failing = True
        finally:
            self._reading = None

    def _take(self, raw: bytes) -> None:
        if raw != self._raw:
            keys = self._read_keys(raw)
            before, now = _credentials(self._keys), _credentials(keys)
            self._keys = keys
            self._raw = raw
            self._number += 1
            for revoked in self._listeners:
                for credential in before - now:
                    revoked(credential)
                for credential in now - before:
                    revoked(credential, gone=False)
        self._read_at = self._clock()

    def _read_keys(self, raw: bytes) -> _Keys:
        said = json.loads(raw)
        entries = said.get("keys") if isinstance(said, dict) else None
        if not isinstance(entries, list):
            raise ValueError("expected a JSON object with a list of keys")
        keys: _Keys = {}
        for entry in entries[:JWKS_KEYS]:
            try:
                if entry.get("kty") not in ("RSA", "EC", "OKP") or entry.get("use", "sig") != "sig":
                    continue  # a secret would be no secret here
                key = jwt.PyJWK({name: value for name, value in entry.items() if name != "alg"}).key
                fitting = _fitting(key)
                known = keys.setdefault(entry.get("kid"), [])
            except (jwt.PyJWTError, InvalidInput, ValueError, TypeError, AttributeError, KeyError) as exc:
                logger.warning("a key of %s is left out: %s", self._told, type(exc).__name__)
                continue
            algorithms = (name for name in fitting if entry.get("alg", name) == name)
            known.append((key, {name: self._credential(entry.get("kid"), name, key) for name in algorithms}))
        if not keys:
            raise ValueError("there is no public key in it")
        return keys

    def _credential(self, kid: str | None, algorithm: str, key: Any) -> str:
        """What those have signed in with whose tokens this key has signed so: the same name on all nodes."""
        public = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        named = f"{self._where}\n{kid}\n{algorithm}\n".encode("utf-8", "surrogatepass")
        return f"jwt {hashlib.sha256(named + public).hexdigest()[:32]}"


def _credentials(keys: _Keys) -> set[str]:
    return {credential for known in keys.values() for _, by in known for credential in by.values()}


def _may_be_fetched(url: str) -> bool:
    """Whether an address is one for all who read it: what one of them takes for a part of the host or the port, and
    tells, may be a password."""
    if not re.fullmatch("[!-~]+", url):
        return False
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0 and not set("@%") & set(parts.netloc)  # urllib decodes a %
        # Of a user with a slash in the password, or with "#". In other paths it is a name, as in Google's.
        inside = "/" if parts.port is None else parts.path  # where an "@" may end a user
        doubtful = "@" in parts.fragment or parts.path.startswith("/@") or "@" in inside
    except ValueError:  # no port at all, or half of an IPv6 address
        return False
    if not usable or doubtful:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1"))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object, **kwargs: object) -> None:
        """Nowhere: the keys are where the server was told that they are."""


def _fetched(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"accept": "application/json"})  # noqa: S310  # see _may_be_fetched
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=FETCH_SECONDS) as response:
        return _bounded(response.read(JWKS_BYTES + 1))


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return _bounded(file.read(JWKS_BYTES + 1))


def _bounded(raw: bytes) -> bytes:
    if len(raw) > JWKS_BYTES:
        raise ValueError(f"a set of keys has {JWKS_BYTES} bytes at most")
    return raw
