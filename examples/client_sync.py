"""Ask a question and print the answer as it comes; ask another one in the same session.

Run a server first (``legato serve``), then ``python examples/client_sync.py "What is a canon?"``. Stop the server while
the answer runs and start it again: the client comes back and reads on where it was.
"""

import os
import sys

from legato import Client
from legato.client import ClientError, ContentEvent, ErrorEvent, ThinkingEvent


def show_reconnect(attempt, seconds, error):
    print(f"\n[connection lost, attempt {attempt} in {seconds:.1f} s]", file=sys.stderr)


def main():
    question = " ".join(sys.argv[1:]) or "What is a canon?"
    with Client(os.environ.get("LEGATO_URL", "http://localhost:8088")) as client:
        session = None
        for text in (question, "Say that in one sentence."):
            print(f"> {text}")
            with client.ask(text, session_id=session, on_reconnect=show_reconnect) as answer:
                session = answer.session_id
                for event in answer:
                    match event:
                        case ContentEvent() | ThinkingEvent():
                            print(event.data.content, end="", flush=True)
                        case ErrorEvent():
                            print(f"\nThe run failed: {event.data.error}", file=sys.stderr)
            print("\n")


if __name__ == "__main__":
    try:
        main()
    except ClientError as error:
        sys.exit(f"{error} (is the server running? try: legato serve)")
