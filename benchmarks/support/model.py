"""A stand-in for a model's API on loopback: any number of answers, each a chunk at a time at an even pace.

    python benchmarks/support/model.py RATE

It prints its port. Each connection asks once, and its answer goes on until the connection ends. The answers begin at
moments of their own, so that chunks of different answers seldom come together.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
from collections.abc import Iterator

import uvloop

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
WORDS = (" the", " voice", " enters", " alone", ",", " and", " then", " another", " follows", " it", ".")


def chat() -> Iterator[bytes]:
    """A chunk of Chat Completions for each word, with the fields that OpenAI sends."""
    about = {"id": "chatcmpl-C9qWfTqVhZ5LxKo2yRnXb1sEuJ0aG", "object": "chat.completion.chunk", "created": 1756500000}
    about |= {"model": "gpt-4o-mini-2024-07-18", "service_tier": "default", "system_fingerprint": "fp_560af6e559"}
    for word in itertools.cycle(WORDS):
        choice = {"index": 0, "delta": {"content": word}, "logprobs": None, "finish_reason": None}
        yield event({**about, "choices": [choice], "usage": None, "obfuscation": "kQ3vZ8mN"[len(word) % 4 :]})


def responses() -> Iterator[bytes]:
    """An event of the Responses API for each word."""
    item = "msg_68b2f1c0a3d48191b7e5d9c2f4a60e8b"
    kind = "response.output_text.delta"
    for number, word in enumerate(itertools.cycle(WORDS), 4):
        place = {"item_id": item, "output_index": 0, "content_index": 0}
        yield event({"type": kind, "sequence_number": number, **place, "delta": word, "logprobs": []}, kind)


def messages() -> Iterator[bytes]:
    """An event of Anthropic's API for each word, after those that begin an answer."""
    usage = {"input_tokens": 12, "output_tokens": 1}
    answer = {"id": "msg_01XwZ", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": []}
    yield event({"type": "message_start", "message": {**answer, "stop_reason": None, "usage": usage}}, "message_start")
    block = {"type": "text", "text": ""}
    yield event({"type": "content_block_start", "index": 0, "content_block": block}, "content_block_start")
    for word in itertools.cycle(WORDS):
        delta = {"type": "text_delta", "text": word}
        yield event({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")


def event(fields: object, name: str = "") -> bytes:
    """One event as a chunk of a body."""
    head = f"event: {name}\n" if name else ""
    body = f"{head}data: {json.dumps(fields, separators=(',', ':'))}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(body), body)


ANSWERS = {b"/v1/chat/completions": chat, b"/v1/responses": responses, b"/v1/messages": messages}


async def main(rate: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        await asyncio.sleep(random.random() / rate)
        at = asyncio.get_running_loop().time()
        for chunk in ANSWERS[head.split()[1]]():
            if writer.is_closing():
                return
            writer.write(chunk)
            at += 1 / rate
            await asyncio.sleep(at - asyncio.get_running_loop().time())

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1])))
