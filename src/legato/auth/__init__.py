"""Ready-made sign-in for ``Legato(auth=...)``: each is a function of a request that gives a ``Caller`` or None.

``JWT`` needs ``legato[auth]``; what it needs is loaded with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..late import late

if TYPE_CHECKING:
    from .jwt import JWT
    from .keys import APIKeys
    from .proxy import ProxyHeader

__all__ = ["JWT", "APIKeys", "ProxyHeader"]

__getattr__, __dir__ = late(__name__, "keys", "proxy", "jwt")
