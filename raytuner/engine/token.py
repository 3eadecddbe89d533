"""The token that a cluster's dashboard may ask for: where it is found, and what it must be. It is never shown."""

from __future__ import annotations

import os
import re
from pathlib import Path

from raytuner.errors import LaunchError

__all__ = ["cluster_token", "token_file", "token_source"]


def cluster_token() -> str:
    """The token from ``RAY_AUTH_TOKEN``, the file at ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``; or "".

    Raises LaunchError, which does not show it, for what no header of HTTP can hold.
    """
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip() or _read(token_file())
    if token and not re.fullmatch(r"[!-~]+", token):
        raise LaunchError(
            f"{token_source()}: a cluster's token is one word of ASCII characters, and what is there is not; "
            "put the token there and nothing else, as `ray get-auth-token` prints it"
        )
    return token


def token_file() -> Path:
    """The file of the token, which need not be there."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()


def token_source() -> str:
    """Where the token in use comes from, for a person."""
    return "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN", "").strip() else str(token_file())


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("latin-1").strip()  # what is not ASCII is refused with the rest
    except FileNotFoundError as error:
        if os.environ.get("RAY_AUTH_TOKEN_PATH"):
            raise LaunchError(f"RAY_AUTH_TOKEN_PATH: there is no file {file}; put the cluster's token there") from error
        return ""
    except OSError as error:
        raise LaunchError(f"{file}: the cluster's token cannot be read: {error.strerror}") from error
