"""Pictures for tests: PNGs that no compression makes small."""

from __future__ import annotations

import random
import struct
import zlib


def png(width: int, height: int) -> bytes:
    """A picture of noise, the same each time, of some 3 bytes a pixel."""
    noise = random.Random(width * height)
    rows = b"".join(b"\0" + noise.randbytes(3 * width) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
