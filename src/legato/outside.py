"""Where large blobs may be besides the store: in a folder, or in a bucket of S3 or of what speaks as it does.

Both keep bytes under names that are never given to other bytes, so what is there is right whenever it was put. Nothing
is listed: which names there are stands in the store (``blobs``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Awaitable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from .blobs import Outside
from .check import digits
from .errors import BlobsAway, InvalidInput
from .store import shown

T = TypeVar("T")

ABOVE = 65_536
"""Bytes of a blob that is put outside if it has more; smaller ones cost less where the log is."""
BUCKETS = {"s3", "s3a", "gs", "az", "azure"}
"""Schemes of URLs of buckets."""


def open_outside(url: str) -> Outside:
    """The folder or bucket that ``url`` names.

    ``"file:///var/lib/legato/blobs"``, or ``"s3://bucket/prefix"``; both with ``?above=BYTES``. A bucket takes what
    obstore calls ``region``, ``endpoint``, ``access_key_id`` ..., too, as far as the environment does not say it.

    Raises:
        InvalidInput: it names neither.
        ModuleNotFoundError: buckets need a package that is not installed.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # half of an IPv6 address
        raise _none(url) from None
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    above = digits(options.pop("above", str(ABOVE)))
    if above is None:
        raise InvalidInput("The option 'above' of blobs is a number of bytes, such as above=65536.")
    if parts.scheme == "file" and not parts.netloc and len(parts.path) > 1 and parts.path.startswith("/"):
        if "\0" in (path := unquote(parts.path)):
            raise _none(url)
        if options:
            raise InvalidInput(f"A folder of blobs has the option 'above' only, got {', '.join(map(repr, options))}.")
        return BlobFolder(Path(path), above=above)
    if parts.scheme in BUCKETS and parts.netloc:
        return BlobBucket(parts._replace(query="").geturl(), above=above, **options)
    raise _none(url)


def _none(url: str) -> InvalidInput:
    return InvalidInput(
        "Blobs are in a folder, 'file:///var/lib/legato/blobs', or in a bucket, 's3://bucket/prefix', got "
        f"{shown(url)[:200]!r}."
    )


class BlobFolder:
    """A folder. Each file is written beside its place, and is there whole or not at all. Several nodes need one that
    they share.

    Args:
        path: of the folder; made with the first blob, unless it is there.
        above: see ``Outside``.
    """

    def __init__(self, path: Path, *, above: int = ABOVE) -> None:
        self.path = path
        self.above = above

    async def put(self, name: str, data: bytes) -> None:
        """See ``Outside``."""
        await self._do(self._put, name, data)

    async def get(self, name: str) -> bytes | None:
        """See ``Outside``. A folder that is not there is one that is not mounted."""
        found: bytes | None = await self._do(self._get, name)
        return found

    async def delete(self, name: str) -> None:
        """See ``Outside``."""
        await self._do(self._delete, name)

    async def _do(self, work: Any, *args: Any) -> Any:
        try:
            return await asyncio.to_thread(work, *args)
        except OSError as exc:
            raise BlobsAway(f"{self.path}: {exc.strerror or exc}.") from exc

    def _put(self, name: str, data: bytes) -> None:
        file = self.path / name
        for _ in range(2):  # whoever deletes the last file beside it takes the folder along
            if file.exists():
                break
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
            with contextlib.suppress(FileNotFoundError):
                with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as to:
                    to.write(data)
                    to.flush()
                    os.fsync(to.fileno())
                draft.replace(file)
                break
        else:
            raise BlobsAway(f"{file} cannot be written: its folder is deleted again and again.")
        for folder in (file.parent, self.path, self.path.parent):
            _sync(folder)

    def _get(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            if self.path.is_dir():
                return None
            raise

    def _delete(self, name: str) -> None:
        file = self.path / name
        if not file.parent.is_dir():
            return
        for left in (file, *file.parent.glob(f".{file.name}.*")):
            left.unlink(missing_ok=True)
        _sync(file.parent)
        with contextlib.suppress(OSError):  # others are in it
            file.parent.rmdir()


def _sync(folder: Path) -> None:
    """Have the names in a folder as durable as the files."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class BlobBucket:
    """A bucket, and a prefix in it, by obstore.

    Args:
        url: ``s3://bucket/prefix``.
        above: see ``Outside``.
        options: of obstore: ``region``, ``endpoint``, ``access_key_id``, ``secret_access_key`` ...; what is not among
            them is taken from the environment (``AWS_REGION`` ...), or from the machine.

    Raises:
        InvalidInput: there is no such option.
        ModuleNotFoundError: obstore is not installed: ``pip install 'legato[buckets]'``.
    """

    def __init__(self, url: str, *, above: int = ABOVE, **options: str) -> None:
        try:
            import obstore.exceptions
            import obstore.store
        except ModuleNotFoundError as exc:
            raise ModuleNotFoundError(
                "Blobs in a bucket need a package: pip install 'legato[buckets]'.", name=exc.name
            ) from exc
        self.above = above
        self._error = obstore.exceptions.BaseError
        plain = options.get("endpoint", "").startswith("http://")
        if url.startswith("s3"):  # which not all have that speak as S3 does, and blobs go one by one
            options.setdefault("disable_bulk_delete", "true")
        open: Any = obstore.store.from_url
        try:
            self._bucket = open(
                url,
                config=options or None,
                client_options={"allow_http": plain, "timeout": "30s"},
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
            )
        except (self._error, ValueError, TypeError) as exc:
            raise InvalidInput(f"{shown(url)[:200]!r} is no bucket of obstore's: {_brief(exc)}") from exc

    async def put(self, name: str, data: bytes) -> None:
        """See ``Outside``."""
        await self._asked(self._bucket.put_async(name, data))

    async def get(self, name: str) -> bytes | None:
        """See ``Outside``."""
        try:
            found = await self._asked(self._bucket.get_async(name))
            return bytes(await self._asked(found.bytes_async()))
        except FileNotFoundError:
            return None

    async def delete(self, name: str) -> None:
        """See ``Outside``."""
        with contextlib.suppress(FileNotFoundError):
            await self._asked(self._bucket.delete_async(name))

    async def _asked(self, asking: Awaitable[T]) -> T:
        try:
            return await asking
        except FileNotFoundError:
            raise
        except (self._error, OSError) as exc:
            raise BlobsAway(f"The bucket of blobs: {_brief(exc)}") from exc


def _brief(exc: Exception) -> str:
    """What an error of obstore's says, without its long story."""
    return str(exc).strip().partition("\n")[0][:500]
