"""A bucket for tests: as much of S3 as blobs want of it, addressed by path; whatever is in it is for all to see."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Bucket:
    """What is in it.

    Attributes:
        objects: by the path of the request.
        broken: it answers with 403, as where the credentials are not good any more.
        url: for ``open_outside``.
    """

    def __init__(self, port: int) -> None:
        self.objects: dict[str, bytes] = {}
        self.broken = False
        self.url = f"s3://bucket/chat?endpoint=http://127.0.0.1:{port}&region=us-east-1&access_key_id=a&secret_access_key=b&above="


@contextlib.contextmanager
def bucket() -> Iterator[Bucket]:
    """One, on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _do(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if made.broken or not self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 Credential=a/"):
                return self._answer(403)
            if self.command == "PUT":
                made.objects[self.path] = sent
                return self._answer(200, ETag=f'"{hashlib.md5(sent).hexdigest()}"')
            if self.command == "DELETE":
                made.objects.pop(self.path, None)
                return self._answer(204)
            data = made.objects.get(self.path)
            if data is None:
                return self._answer(404)
            etag, date = f'"{hashlib.md5(data).hexdigest()}"', "Mon, 01 Jan 2024 00:00:00 GMT"
            return self._answer(200, data, ETag=etag, Last_Modified=date)

        do_PUT = do_GET = do_HEAD = do_DELETE = _do

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Bucket(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()
