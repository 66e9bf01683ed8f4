"""Who issues tokens: keys, tokens of all kinds, good and forged, and a server of a set of keys."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ISSUER = "https://issuer.example"
AUDIENCE = "legato"
SECRET = "s" * 32


def _pem(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()  # type: ignore[no-any-return]


RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
RSA_PEM, EC_PEM, ED_PEM = map(_pem, (RSA, EC, ED))


def claims(**changed: Any) -> dict[str, Any]:
    """Those of a good token; with None, without one of them."""
    made = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 600, "iat": time.time()}
    return {name: value for name, value in {**made, **changed}.items() if value is not None}


def token(key: Any = RSA, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **changed: Any) -> str:
    """A token that is signed as it says."""
    return jwt.encode(claims(**changed), key, algorithm=algorithm, headers=headers)


def encoded(value: Any) -> str:
    """A part of a token."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unsigned(algorithm: str = "none", signature: bytes = b"", **changed: Any) -> str:
    """A token that nobody has signed."""
    return f"{encoded({'alg': algorithm, 'typ': 'JWT'})}.{encoded(claims(**changed))}.{encoded(signature)}"


def signed_by_secret(said: bytes, secret: str = SECRET) -> str:
    """A token that says just this."""
    text = f"{encoded({'alg': 'HS256', 'typ': 'JWT'})}.{encoded(said)}"
    return f"{text}.{encoded(hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest())}"


def confused(pem: str, **changed: Any) -> str:
    """A token whose secret is a public key, which all know."""
    return signed_by_secret(json.dumps(claims(**changed)).encode(), pem)


def jwk(key: Any, kid: str | None = None, **more: Any) -> dict[str, Any]:
    """A public key as a set of keys has it."""
    kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    made: dict[str, Any] = json.loads(kind.to_jwk(key.public_key()))
    return {**made, **({} if kid is None else {"kid": kid}), **more}


class Issuer:
    """A server of a set of keys.

    Attributes:
        keys: what it tells.
        asked: how often.
        status, location: of its answers.
    """

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.asked = 0
        self.status = 200
        self.location = ""
        self.raw: bytes | None = None
        self.url = ""


@contextlib.contextmanager
def issuing() -> Iterator[Issuer]:
    """An issuer while the block runs."""
    issuer = Issuer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked += 1
            body = issuer.raw if issuer.raw is not None else json.dumps({"keys": issuer.keys}).encode()
            self.send_response(issuer.status)
            if issuer.location:
                self.send_header("location", issuer.location)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    issuer.url = f"http://127.0.0.1:{server.server_address[1]}/keys"
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
