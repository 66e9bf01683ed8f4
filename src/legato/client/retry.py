"""When a plain request is repeated; see ``legato.http.retry``."""

from __future__ import annotations

from ..http.retry import DEFAULT_RETRIES, UNSET, BackoffStrategy, RetryConfig, Unset

__all__ = ["DEFAULT_RETRIES", "UNSET", "BackoffStrategy", "RetryConfig", "Unset"]
