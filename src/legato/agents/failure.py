"""What users are told when a model fails: what went wrong, and never a key."""

from __future__ import annotations

import logging
import math
import re

from ..errors import AgentError
from ..logs import told
from ..provider import ProviderError, ProviderRefused, ProviderUnreachable, ResponseFailed, StreamInterrupted

logger = logging.getLogger("legato")

WORDS = 1_000
"""Characters of a provider's words that are shown."""
_SECRET = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|hf)[-_][\w*.-]{6,}|\bAIza[\w*-]{10,}"  # as providers write keys, if only in part
    r"|(?<=\bBearer )\S+"
    r"|(?<![\w:/.])/(?:[\w.@~+-]+/)+[\w.@~+-]*"  # a file of a model server's machine, which may be this one
    r"|\b[A-Za-z]:\\[\w.\\~-]+"
    r"|\b0x[0-9a-f]{6,}"
)


def failure(error: ProviderError, key: str | None = None) -> AgentError:
    """The error that ends the run, in words that users may see.

    Args:
        error: what the provider raised.
        key: which the provider may have quoted; it is in no message then, and not in the log.
    """
    said = error.message.replace(key, "[key]") if key else error.message
    logger.warning("the model failed: %s", told(error, said))
    if isinstance(error, ProviderUnreachable):
        return AgentError("The model cannot be reached.", code="model_unreachable")
    if isinstance(error, ProviderRefused) and error.status_code in (401, 403):
        # Their messages quote the key, or most of it.
        return AgentError("The model's provider does not accept the server's key.", code="model_key_refused")
    later = ""
    if isinstance(error, ProviderRefused) and error.retry_after:
        later = f" It wants to be asked again in {math.ceil(error.retry_after)} seconds."
    if isinstance(error, ProviderRefused) and not error.body.lstrip().startswith(("{", "[")):
        # A page of a proxy between us and the provider, or nothing.
        text = f"The model's provider answered with the status {error.status_code}.{later}"
        return AgentError(text, code=error.code)
    if isinstance(error, StreamInterrupted):
        return AgentError("The model's answer broke off, and cannot be continued.", code="model_interrupted")
    if isinstance(error, ProviderRefused | ResponseFailed):
        words = _SECRET.sub("[...]", said)[:WORDS]
        return AgentError(f"The model's provider says: {words}{later}", code=error.code)
    return AgentError("What the model's provider sent cannot be understood.", code="model_malformed")
