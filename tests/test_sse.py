"""The SSE codec against vectors, against a slow reading of the standard, and against hostile input."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legato.errors import FrameError, StreamFormatError
from legato.sse import HEARTBEAT, MAX_LINE_BYTES, Decoder, SSEMessage, encode

CASES = json.loads((Path(__file__).parent / "vectors" / "sse.json").read_text())["cases"]
SMALL = [case for case in CASES if not isinstance(case.get("input"), list)]
LARGE = [case for case in CASES if isinstance(case.get("input"), list)]


class Decoded(NamedTuple):
    events: list[tuple[str, str, str]]
    last_event_id: str
    retry: int | None


def text_of(value: str | list[Any]) -> str:
    return value if isinstance(value, str) else "".join(text * count for text, count in value)


def input_of(case: dict[str, Any]) -> bytes:
    return bytes.fromhex(case["input_hex"]) if "input_hex" in case else text_of(case["input"]).encode()


def expected_of(case: dict[str, Any]) -> Decoded:
    events = [(event["event"], text_of(event["data"]), text_of(event["id"])) for event in case["events"]]
    return Decoded(events, text_of(case["last_event_id"]), case["retry"])


def feed(decoder: Decoder, chunks: Iterable[bytes]) -> list[SSEMessage]:
    return [message for chunk in chunks for message in decoder.feed(chunk)]


def decode(chunks: Iterable[bytes]) -> Decoded:
    decoder = Decoder()
    events = [(message.event, message.data, message.id) for message in feed(decoder, chunks)]
    return Decoded(events, decoder.last_event_id, decoder.retry)


def cut(body: bytes, positions: Iterable[int]) -> list[bytes]:
    return [body[start:end] for start, end in pairwise([0, *sorted(positions), len(body)])]


def pieces(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


def named(cases: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


def test_vectors_have_unique_names() -> None:
    """Each vector has a name of its own, and there are at least a hundred."""
    assert len(CASES) == len({case["name"] for case in CASES})
    assert len(CASES) >= 100


@named(CASES)
def test_vector_whole(case: dict[str, Any]) -> None:
    """A stream in one chunk decodes as its vector says."""
    assert expected_of(case) == decode([input_of(case)])


@named([case for case in CASES if "chunks" in case])
def test_vector_in_its_chunks(case: dict[str, Any]) -> None:
    """A stream cut at the delicate places decodes as its vector says."""
    assert expected_of(case) == decode(cut(input_of(case), case["chunks"]))


@named(SMALL)
def test_vector_byte_by_byte(case: dict[str, Any]) -> None:
    """A stream that comes one byte at a time decodes as its vector says, empty chunks between them or not."""
    body = input_of(case)
    assert expected_of(case) == decode(pieces(body, 1))
    assert expected_of(case) == decode(chunk for piece in pieces(body, 1) for chunk in (b"", piece, b""))


@named(SMALL)
def test_vector_cut_once_anywhere(case: dict[str, Any]) -> None:
    """A stream cut once, at any place, decodes as its vector says."""
    body = input_of(case)
    for position in range(len(body) + 1):
        assert expected_of(case) == decode(cut(body, [position])), f"cut at {position}"


@named(LARGE)
@pytest.mark.parametrize("size", [16, 1400, 4096, 16 * 1024])
def test_large_vector_in_pieces(case: dict[str, Any], size: int) -> None:
    """A large stream in equal pieces decodes as its vector says."""
    assert expected_of(case) == decode(pieces(input_of(case), size))


@named(SMALL)
def test_vector_agrees_with_the_standard(case: dict[str, Any]) -> None:
    """The vectors themselves say what the standard's steps give."""
    assert expected_of(case) == by_the_standard(input_of(case))


def by_the_standard(body: bytes) -> Decoded:
    """Decode a whole stream by the steps of WHATWG HTML 9.2.6, one by one and with no thought of speed."""
    text = body.decode("utf-8", "replace")
    if text.startswith("\ufeff"):
        text = text[1:]
    lines, line, position = [], "", 0
    while position < len(text):
        char = text[position]
        if char == "\r" and text[position : position + 2] == "\r\n":
            position += 1
        if char in ("\r", "\n"):
            lines.append(line)
            line = ""
        else:
            line += char
        position += 1
    events: list[tuple[str, str, str]] = []
    data = event_type = id_buffer = last_event_id = ""
    retry = None
    for line in lines:
        if line == "":
            last_event_id = id_buffer
            if data != "":
                events.append((event_type or "message", data[:-1], last_event_id))
            data = event_type = ""
            continue
        if line[0] == ":":
            continue
        field, value = (line[: line.index(":")], line[line.index(":") + 1 :]) if ":" in line else (line, "")
        if value[:1] == " ":
            value = value[1:]
        if field == "event":
            event_type = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            id_buffer = value
        elif field == "retry" and value and all(char in "0123456789" for char in value):
            retry = int(value) if len(value.lstrip("0")) <= 15 else retry  # our bound; the standard has none
    return Decoded(events, last_event_id, retry)


# Words that make random bytes look enough like a stream to reach the corners.
words = st.one_of(
    st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"data\n", b"id\n", b": ping\n", b"\xef\xbb\xbf"]),
    st.sampled_from([b"data", b"data: ", b"data:", b"id", b"id: ", b"event", b"event: ", b"retry: ", b"retry:"]),
    st.sampled_from([b":", b": ", b" ", b"\t", b"\0", b"\x0b", b"1", b"23", b"x", b"[DONE]"]),
    st.sampled_from([b"\xef", b"\xbb", b"\xbf", b"\xff", b"\xe2", b"\x85", b"\xc2"]),
    st.sampled_from(["é", "\u2028", "😀"]).map(str.encode),
)
streams = st.lists(words, max_size=40).map(b"".join)


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    body = draw(streams)
    return body, cut(body, draw(st.lists(st.integers(0, len(body)), max_size=8)))


@given(cut_streams())
def test_any_stream_cut_anywhere_decodes_by_the_standard(stream: tuple[bytes, list[bytes]]) -> None:
    """However a stream is cut, the decoder gives what the standard's steps give."""
    body, chunks = stream
    assert by_the_standard(body) == decode(chunks)


@given(st.lists(st.binary(max_size=64), max_size=16))
def test_arbitrary_bytes_never_raise(chunks: list[bytes]) -> None:
    """No bytes make the decoder raise, and their cuts do not matter."""
    assert decode([b"".join(chunks)]) == decode(chunks)


# Wire text: anything but the three forgers and lone surrogates.
names = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=20)
messages = st.builds(
    SSEMessage,
    data=st.text(st.one_of(st.sampled_from("\r\n :"), st.characters(exclude_categories=["Cs"])), max_size=60),
    event=names,
    id=names,
    retry=st.none() | st.integers(0, 10**15 - 1),
)


@given(st.lists(messages, max_size=5), st.integers(1, 50))
def test_encode_then_decode_is_the_identity(sent: list[SSEMessage], size: int) -> None:
    """What was encoded decodes to the same messages, but for line ends in data, the default event and the sticky id."""
    expected, last_id = [], ""
    for m in sent:
        last_id = m.id or last_id
        data = m.data.replace("\r\n", "\n").replace("\r", "\n")
        expected.append(SSEMessage(data=data, event=m.event or "message", id=last_id, retry=m.retry))
    decoder = Decoder()
    wire = b"".join(map(encode, sent))
    assert expected == feed(decoder, pieces(wire, size))


@given(messages, st.data())
def test_a_cut_frame_never_moves_the_cursor(message: SSEMessage, data: st.DataObject) -> None:
    """A frame cut short gives no event and no id, and one before it stays as it was."""
    frame = encode(message)
    end = data.draw(st.integers(0, len(frame) - 1))
    assert decode([b"data: first\nid: e1-1\n\n", frame[:end]])[:2] == ([("message", "first", "e1-1")], "e1-1")


def test_message_of_a_decoder_carries_its_own_retry() -> None:
    """A message has the retry of its own lines; that of a block without data stays with the decoder alone."""
    decoder = Decoder()
    decoded = decoder.feed(b"retry: 5\ndata: a\n\ndata: b\n\nretry: 6\n\ndata: c\n\n")
    assert [message.retry for message in decoded] == [5, None, None]
    assert decoder.retry == 6


def test_event_comes_out_with_its_last_byte() -> None:
    """The chunk that ends an event returns it; nothing waits for the next chunk."""
    decoder = Decoder()
    assert decoder.feed(b"data: a\r\n") == []
    assert [SSEMessage(data="a")] == decoder.feed(b"\r")
    assert decoder.feed(b"\n") == []


def test_id_counts_only_at_the_blank_line() -> None:
    """Until its block is finished, an id is not the one to resume after."""
    decoder = Decoder()
    decoder.feed(b"id: 1\n")
    assert decoder.last_event_id == ""
    decoder.feed(b"\n")
    assert decoder.last_event_id == "1"


def test_retry_counts_at_its_line() -> None:
    """A reconnection time is known before its block is finished."""
    decoder = Decoder()
    decoder.feed(b"retry: 250\n")
    assert decoder.retry == 250


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
@pytest.mark.parametrize("field", [b"data: ", b"data:", b": ", b"id: ", b"unknown: ", b"\xef\xbb\xbfdata: "])
def test_line_beyond_its_limit_is_refused(field: bytes, size: int) -> None:
    """One byte more than the limit is an error for every kind of line, finished or not, however it is cut."""
    for end in (b"", b"\n", b"\n\ndata: b\n\n"):
        decoder = Decoder(max_line_bytes=9000)
        with pytest.raises(StreamFormatError) as caught:
            feed(decoder, pieces(field + b"x" * (9001 - len(field)) + end, size))
        assert caught.value.detail == {"limit": 9000}
        assert caught.value.code == "stream_malformed"


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_line_at_its_limit_is_taken(size: int) -> None:
    """A line as long as the limit is whole."""
    decoder = Decoder(max_line_bytes=9000)
    data = "x" * (9000 - len("data: "))
    decoded = feed(decoder, pieces(f"data: {data}\n\n".encode(), size))
    assert [SSEMessage(data=data)] == decoded


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_event_beyond_its_limit_is_refused(size: int) -> None:
    """Data lines that are short one by one are too long together; the LF between them count."""
    taken, refused = b"data: xxxx\ndata: \xc3\xa9\ndata: xx\n", b"data: xxxx\ndata: \xc3\xa9\ndata: xxx\n"
    decoder = Decoder(max_event_bytes=10, max_line_bytes=100)
    decoded = feed(decoder, pieces(taken + b"\n", size))
    assert [SSEMessage(data="xxxx\né\nxx")] == decoded
    with pytest.raises(StreamFormatError, match="data of an event"):
        feed(decoder, pieces(refused, size))


def test_large_line_added_to_an_event_counts() -> None:
    """A data line that came in many pieces counts for the limit of its event too."""
    decoder = Decoder(max_event_bytes=12_000)
    with pytest.raises(StreamFormatError, match="data of an event"):
        feed(decoder, pieces(b"data: " + b"x" * 6000 + b"\ndata: " + b"y" * 6000 + b"\n", 100))


def test_one_data_line_beyond_the_event_limit_is_refused() -> None:
    """The event limit holds for an event of one line, with no line limit of its own."""
    with pytest.raises(StreamFormatError):
        Decoder(max_event_bytes=10).feed(b"data: 1234567890x\n\n")


def test_unfinished_line_beyond_its_limit_is_refused_at_once() -> None:
    """A line is refused before its end has come, also in a chunk that ends another line."""
    with pytest.raises(StreamFormatError):
        Decoder(max_line_bytes=10).feed(b": short\n: very long")


def test_line_limit_starts_anew_with_each_line() -> None:
    """Many lines below the limit are taken, whatever they are together."""
    decoder = Decoder(max_line_bytes=9000)
    body = (b"data: " + b"x" * 6000 + b"\n\n") * 5
    assert [SSEMessage(data="x" * 6000)] * 5 == feed(decoder, pieces(body, 100))


def test_event_limit_starts_anew_with_each_event() -> None:
    """Many events below the limit are taken, whatever they are together."""
    decoder = Decoder(max_event_bytes=20)
    assert len(decoder.feed(b"data: 123456\ndata: 123456\n\n" * 100)) == 100


@given(cut_streams(), st.integers(1, 12), st.integers(1, 16))
def test_limits_do_not_depend_on_the_cuts(stream: tuple[bytes, list[bytes]], line: int, event: int) -> None:
    """A limit is met at the same place however the stream is cut: the same events before it, then the same error."""

    def outcome(chunks: list[bytes]) -> tuple[list[SSEMessage], str]:
        decoder = Decoder(max_line_bytes=line, max_event_bytes=event)
        decoded: list[SSEMessage] = []
        try:
            for chunk in [*chunks, b""]:
                decoded += decoder.feed(chunk)
        except StreamFormatError as error:
            return decoded, str(error)
        return decoded, ""

    body, chunks = stream
    assert outcome([body]) == outcome(chunks)


def test_events_before_an_error_are_returned_first() -> None:
    """An error does not swallow what its chunk completed before; the next call raises, even without bytes."""
    decoder = Decoder(max_line_bytes=20)
    assert [SSEMessage(data="a", id="1")] == decoder.feed(b"data: a\nid: 1\n\ndata: " + b"x" * 20 + b"\n\ndata: c\n\n")
    assert decoder.last_event_id == "1"
    with pytest.raises(StreamFormatError):
        decoder.feed(b"")


def test_error_is_final_and_frees_what_was_held() -> None:
    """After an error each call raises a new error, and no part of the stream is kept."""
    decoder = Decoder(max_line_bytes=10_000)
    with pytest.raises(StreamFormatError) as first:
        feed(decoder, [b"data: " + b"x" * 3000] * 4)
    with pytest.raises(StreamFormatError) as second:
        decoder.feed(b"\n\ndata: a\n\n")
    assert str(first.value) == str(second.value)
    assert first.value is not second.value
    assert (decoder._tail, decoder._pieces, decoder._data, decoder._more) == (b"", [], None, [])


def test_limits_must_be_positive() -> None:
    """A limit of nothing is a mistake of the caller."""
    for limits in ({"max_line_bytes": 0}, {"max_event_bytes": -1}):
        with pytest.raises(ValueError, match="at least 1"):
            Decoder(**limits)


def test_unfinished_line_in_small_pieces_is_held_compactly() -> None:
    """What a long unfinished line occupies does not grow with the number of its pieces."""
    decoder = Decoder()
    for _ in range(10_000):
        decoder.feed(b"0123456789")
    assert len(decoder._pieces) < 30


def test_many_short_lines_are_held_compactly() -> None:
    """What an unfinished event occupies does not grow with the number of its lines."""
    decoder = Decoder()
    for _ in range(2):
        decoder.feed(b"data: ab\n" * 100_000)
        groups, lines = divmod(100_000 - 1, 1024)  # the first line is kept apart
        assert groups + lines == len(decoder._more)
        assert {"\n".join(["ab"] * 1024)} == set(decoder._more[:groups])
        assert [SSEMessage(data="\n".join(["ab"] * 100_000))] == decoder.feed(b"\n")


def test_default_limits_take_what_agents_send() -> None:
    """A line of several MiB passes by default, one beyond the limit does not."""
    data = "x" * (MAX_LINE_BYTES - len("data: "))
    assert [SSEMessage(data=data)] == Decoder().feed(f"data: {data}\n\n".encode())
    with pytest.raises(StreamFormatError):
        Decoder().feed(f"data: {data}x\n\n".encode())


def test_encode_writes_the_id_last() -> None:
    """The fields come in the order event, retry, data, id, with LF only."""
    message = SSEMessage(data="a\nb", event="text", id="e1-7", retry=2000)
    assert encode(message) == b"event: text\nretry: 2000\ndata: a\ndata: b\nid: e1-7\n\n"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (SSEMessage(), b"data: \n\n"),
        (SSEMessage(data="a"), b"data: a\n\n"),
        (SSEMessage(data="a", event=""), b"data: a\n\n"),
        (SSEMessage(data="a", retry=0), b"retry: 0\ndata: a\n\n"),
        (SSEMessage(data=" a", event=" b", id=" c"), b"event:  b\ndata:  a\nid:  c\n\n"),
        (SSEMessage(data="a\rb\r\nc\n"), b"data: a\ndata: b\ndata: c\ndata: \n\n"),
        (SSEMessage(data="a\u2028b\u0085c\x0bd"), "data: a\u2028b\u0085c\x0bd\n\n".encode()),
        (SSEMessage(data="a\0b"), b"data: a\0b\n\n"),
        (SSEMessage(data="id: 9\r\rid: 9"), b"data: id: 9\ndata: \ndata: id: 9\n\n"),
    ],
)
def test_encode(message: SSEMessage, expected: bytes) -> None:
    """Defaults are not written, one space always is, and every line end in data begins a data line."""
    assert expected == encode(message)


@pytest.mark.parametrize(
    "hostile", ["a\nb", "a\rb", "a\r\nb", "a\0b", "\n", "\r", "\0", "x\n\nid: 9", "a\nevent: done"]
)
@pytest.mark.parametrize("field", ["event", "id"])
def test_encode_refuses_forgery(field: str, hostile: str) -> None:
    """CR, LF or NUL in an event or an id is refused, never stripped."""
    with pytest.raises(FrameError) as caught:
        encode(SSEMessage(data="a", **{field: hostile}))
    assert {"field": field} == caught.value.detail
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("retry", [-1, True, False, 1.5, "5", "5\nid: 9", 10**15])
def test_encode_refuses_a_bad_retry(retry: Any) -> None:
    """A retry must be a plain int of milliseconds that every reader can take."""
    with pytest.raises(FrameError):
        encode(SSEMessage(data="a", retry=retry))


@pytest.mark.parametrize("field", ["data", "event", "id"])
def test_encode_refuses_lone_surrogates(field: str) -> None:
    """Text that UTF-8 cannot write is refused."""
    with pytest.raises(FrameError, match="surrogate"):
        encode(SSEMessage(**{field: "a\ud800b"}))


def test_heartbeat_is_nothing_to_a_reader() -> None:
    """A heartbeat is one comment line: no event, no id, wherever it stands."""
    assert HEARTBEAT == b":\n"
    wire = HEARTBEAT.join([b"data: a\n", b"id: 1\n", b"\n", b""])
    assert decode([wire, HEARTBEAT]) == ([("message", "a", "1")], "1", None)


def test_message_is_immutable() -> None:
    """A message cannot be changed after its fields were checked."""
    with pytest.raises(AttributeError):
        SSEMessage(data="a").data = "b"  # type: ignore[misc]
