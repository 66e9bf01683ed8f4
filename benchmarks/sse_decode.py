"""How long SSE decoders of Python take: one token stream in large and in small chunks, and one large event.

    python benchmarks/sse_decode.py [--rounds 9] > benchmarks/results/sse_decode.txt

Bytes come from memory, so this is the decoding alone: no network, and no JSON. Each decoder is driven through the
entry point that an application uses, over a stand-in for its response. Rounds are interleaved, so that a busy moment
of the machine hits all decoders; the median round counts.
"""

from __future__ import annotations

import argparse
import codecs
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

EVENTS = 20_000
MIB = 1024 * 1024
# The event buffer of mix-python-sdk is searched from its start for each chunk: 1 MiB takes it seconds.
SMALL_EVENT = 128 * 1024

Decode = Callable[[list[bytes]], Iterable[Any]]


class Response:
    """As much of a streamed HTTP response as the decoders look at."""

    headers: ClassVar = {"content-type": "text/event-stream"}

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    def iter_bytes(self) -> Iterator[bytes]:
        return iter(self._chunks)

    def iter_text(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for chunk in self._chunks:
            if text := decoder.decode(chunk):
                yield text

    def close(self) -> None:
        pass


def legato() -> Decode:
    from legato.sse import Decoder

    def decode(chunks: list[bytes]) -> Iterable[Any]:
        decoder = Decoder()
        for chunk in chunks:
            yield from decoder.feed(chunk)

    return decode


def httpx_sse() -> Decode:
    from httpx_sse import EventSource

    return lambda chunks: EventSource(Response(chunks)).iter_sse()  # type: ignore[arg-type]


def openai() -> Decode:
    from openai._streaming import SSEDecoder

    return lambda chunks: SSEDecoder().iter_bytes(iter(chunks))


def mix() -> Decode:
    from mix_python_sdk.utils.eventstreaming import stream_events

    # Its own last step, JSON into a model, is left out: the other decoders do not have one.
    return lambda chunks: stream_events(Response(chunks), decoder=lambda text: text)  # type: ignore[arg-type]


DECODERS: dict[str, Callable[[], Decode]] = {
    "legato": legato,
    "httpx-sse": httpx_sse,
    "openai": openai,
    "mix-python-sdk": mix,
}


def token_stream() -> bytes:
    """Return small events as a model's tokens make them, about 55 bytes each."""
    return b"".join(
        b'event: token\ndata: {"text":"tok %04d"}\nid: e1-%06d\n\n' % (i % 10_000, i) for i in range(EVENTS)
    )


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[i : i + size] for i in range(0, len(body), size)]


def large_event(size: int) -> list[bytes]:
    return cut(b"data: " + b"x" * size + b"\nid: 1\n\n", 16 * 1024)


def seconds(decode: Decode, chunks: list[bytes], *, events: int) -> float:
    """Return the time of one pass, and make sure that it did the work."""
    start = time.perf_counter()
    count = sum(1 for _ in decode(chunks))
    taken = time.perf_counter() - start
    if count != events:
        raise RuntimeError(f"expected {events} events, got {count}")
    return taken


def installed() -> dict[str, Decode]:
    """Return the decoders that can be imported, and say on stderr how to get the others."""
    found = {}
    for name, load in DECODERS.items():
        try:
            found[name] = load()
        except ImportError as exc:
            print(f"{name} is left out ({exc}); to install it: pip install 'legato[bench]'", file=sys.stderr)
    return found


def machine() -> str:
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs{load}"


def cell(times: list[float], reference: list[float], *, scale: float) -> str:
    median = statistics.median(times)
    return f"{median * scale:10.2f} {median / statistics.median(reference):6.1f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    decoders = installed()
    body = token_stream()
    cases = {
        "1400": (cut(body, 1400), EVENTS),
        "40": (cut(body, 40), EVENTS),
        "large": (large_event(MIB), 1),
        "small": (large_event(SMALL_EVENT), 1),
    }
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for case, (chunks, events) in cases.items():
            for name, decode in decoders.items():
                if (name, case) != ("mix-python-sdk", "large"):
                    times.setdefault((name, case), []).append(seconds(decode, chunks, events=events))

    print(f"# {machine()}; median of {rounds} interleaved rounds")
    print(f"# token stream: {EVENTS} events of {len(body) / EVENTS:.0f} bytes; large events in 16 KiB chunks")
    print("# x = times as long as legato")
    columns = ("1400-B chunks, us/event", "40-B chunks, us/event", "128 KiB event, ms", "1 MiB event, ms")
    print(f"{'decoder':22}" + "".join(f"{column:>26}" for column in columns))
    for name in decoders:
        version = importlib.metadata.version(name)
        row = f"{name + ' ' + version:22}"
        for case, scale in (("1400", 1e6 / EVENTS), ("40", 1e6 / EVENTS), ("small", 1e3), ("large", 1e3)):
            measured = times.get((name, case))
            text = cell(measured, times["legato", case], scale=scale) if measured else "quadratic: left out"
            row += f"{text:>26}"
        print(row)


if __name__ == "__main__":
    main()
