"""Addresses that may hold a password, and how they may be shown."""

from __future__ import annotations

import re

__all__ = ["holds_password", "without_password"]

_ACCESS = re.compile(r"(?<=://)(?:(?P<user>[^:/@]*):[^@]*|(?<=https://)[^/@]+|(?<=http://)[^/@]+)@")
"""As SQLAlchemy reads it, for which a password may hold a slash; a server's user alone is a token."""
_OPTION = re.compile(r"([?&]\w*(?:password|token)=)[^&#]+")


def holds_password(uri: str) -> bool:
    """Whether an address gives access to whoever reads it."""
    return without_password(uri) != uri


def without_password(uri: str) -> str:
    """An address as it may be shown."""
    shown = _ACCESS.sub(lambda found: f"{found['user']}:***@" if found["user"] is not None else "***@", uri, count=1)
    return _OPTION.sub(r"\1***", shown)
