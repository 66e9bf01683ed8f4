"""Ask several questions at once, each in its own session, and watch one of the sessions from a second reader.

Run a server first (``legato serve``), then ``python examples/client_async.py``.
"""

import asyncio
import os
import sys

from legato import AsyncClient
from legato.client import ClientError

QUESTIONS = ["What is a canon?", "What is a fugue?", "What is a round?"]


async def ask(client, question):
    async with client.ask(question) as answer:
        return question, await answer.read()


async def watch(client, session_id, cursor):
    """A second reader of a session sees the same events, with the same ids."""
    async with client.streaming.stream_events(session_id=session_id, last_event_id=cursor, quiet=True) as events:
        async for event in events:
            print(f"  {event.id:>4} {event.event}")
            if event.event in ("complete", "error"):
                return


async def main():
    async with AsyncClient(os.environ.get("LEGATO_URL", "http://localhost:8088")) as client:
        async with asyncio.TaskGroup() as group:
            answers = [group.create_task(ask(client, question)) for question in QUESTIONS]
        for answer in answers:
            question, text = answer.result()
            print(f"> {question}\n{text}\n")

        session = await client.sessions.create(title="Two readers")
        sent = await client.messages.send(session.id, text="Say hello.")
        print("Two readers of one session:")
        await asyncio.gather(*(watch(client, session.id, sent.cursor) for _ in range(2)))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except* ClientError as group:
        sys.exit(f"{group.exceptions[0]} (is the server running? try: legato serve)")
