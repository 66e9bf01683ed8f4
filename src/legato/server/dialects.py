"""The table of dialects. A further one is a further row, here or in ``Legato(dialects=...)``."""

from __future__ import annotations

from .deva import DEVA
from .mix_operations import MIX
from .operation import Dialect
from .responses_operations import CHAT, RESPONSES

DIALECTS: tuple[Dialect, ...] = (MIX, DEVA, RESPONSES, CHAT)
"""Those that every application speaks."""
