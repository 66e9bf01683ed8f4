"""When a plain request is repeated: the public names of ``legato.http.retry``, as users import them."""

from __future__ import annotations

from ..http.retry import DEFAULT_RETRIES, UNSET, BackoffStrategy, RetryConfig, Unset

__all__ = ["DEFAULT_RETRIES", "UNSET", "BackoffStrategy", "RetryConfig", "Unset"]
