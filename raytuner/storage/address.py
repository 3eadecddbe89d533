"""Addresses of object stores, such as ``s3://bucket/folder?endpoint_override=http://minio:9000``."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["SCHEMES", "is_address", "join", "split", "work_folder"]

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
"""What pyarrow has a file system for."""


def is_address(storage: str) -> bool:
    """Whether this is an address, and no folder's path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", storage) is not None


def join(address: str, name: str) -> str:
    """The address of what is called ``name`` below an address; options (after ``?``) stay at the end."""
    place, mark, options = address.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def split(address: str) -> tuple[str, str]:
    """The address above this one, and the name below that: what ``join`` put together."""
    place, mark, options = address.partition("?")
    above, _, name = place.rstrip("/").rpartition("/")
    return f"{above}{mark}{options}", name


def work_folder(address: str) -> Path:
    """Where a machine keeps its own copies of what lies at an address: below ``RAYTUNER_CACHE``, or ~/.cache/raytuner.

    The same address has the same folder on all machines whose users have the same home.
    """
    root = Path(os.environ.get("RAYTUNER_CACHE") or "~/.cache/raytuner").expanduser().absolute()
    scheme, _, place = address.partition("?")[0].partition("://")
    return root / scheme / "/".join(part for part in place.split("/") if part not in ("", ".", ".."))
