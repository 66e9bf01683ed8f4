"""A real OpenAI-compatible model server: llama.cpp's own, with a tiny llama of random weights that is made here.

What it says is gibberish, but it is generated: prompt in, token by token out. It takes milliseconds to start and
nothing has to be downloaded besides Python packages. See ``realmodel/make_model.py`` for what can be relied on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from processes import running
from venvs import CACHE, LLAMA, llama_python

__all__ = ["MODEL", "serving_model", "tiny_model"]

MODEL = "tiny"
REALMODEL = Path(__file__).parent / "realmodel"
MAKER = REALMODEL / "make_model.py"


@contextlib.contextmanager
def serving_model(*, endless: bool = False) -> Iterator[str]:
    """The address of a model server while it runs, up to its version (``/v1``); skips the test when there is none.

    It speaks Chat Completions, Responses and Messages, for two requests at a time, and needs no key; ``/slots`` and
    ``/metrics`` beside ``/v1`` tell what it does. It generates thousands of tokens a second,
    fewer when an answer is long.

    Args:
        endless: answers do not end by themselves before 30,000 tokens, so that there is time to act in the middle.
    """
    python, model = llama_python(), tiny_model()
    options = ["endless"] if endless else []
    with running("serve_model", str(model), *options, cwd=REALMODEL, python=python) as server:
        yield f"{server.url}/v1"


def tiny_model() -> Path:
    """The model's file, kept for the next time; made anew when its maker has changed."""
    recipe = hashlib.sha256(MAKER.read_bytes() + repr(LLAMA).encode()).hexdigest()
    file = CACHE.parent / "models" / f"{MODEL}-{recipe[:16]}.gguf"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        # Two test processes may do so at once; each gives it its name only when it is whole.
        draft = file.with_suffix(f".{os.getpid()}")
        subprocess.run([str(llama_python()), str(MAKER), str(draft)], check=True, timeout=60)
        draft.replace(file)
    return file
