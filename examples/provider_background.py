"""Let a provider write in the background; stop this program, start it again, and read on: it is paid for once.

``python examples/provider_background.py https://host/v1 MODEL "Write a long story."`` begins an answer and notes, in
``provider_background.json``, how far it was read. Run it again after Ctrl-C or ``kill -9``: it goes on there. The
provider must keep background responses, as OpenAI does; the key is taken from ``API_KEY``.
"""

import json
import os
import sys
from pathlib import Path

from legato.provider import ProviderError, ResponsesProvider

NOTE = Path("provider_background.json")


def main(base_url, model, *words):
    question = " ".join(words) or "Write a long story."
    with ResponsesProvider(base_url, os.environ.get("API_KEY")) as provider:
        if NOTE.exists():
            note = json.loads(NOTE.read_text())
            stream = provider.chat_resume(note["id"], starting_after=note["sequence_number"])
        else:
            messages = [{"role": "user", "content": question}]
            stream = provider.chat_stream(model=model, messages=messages, background=True)
        for chunk in stream:
            print(chunk.delta, end="", flush=True)
            NOTE.write_text(json.dumps({"id": stream.id, "sequence_number": stream.sequence_number}))
    NOTE.unlink(missing_ok=True)
    print()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except ProviderError as error:
        sys.exit(f"\n{error.code}: {error.message}")
