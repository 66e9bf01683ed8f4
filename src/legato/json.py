"""What JSON is called in annotations."""

from __future__ import annotations

from typing import Any

__all__ = ["JsonObject"]

JsonObject = dict[str, Any]
"""A JSON object as it was decoded, or is to be encoded: whoever reads a field of it looks at what it is."""
