"""The time as records have it."""

from __future__ import annotations

from datetime import datetime, timezone


def utc_now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
