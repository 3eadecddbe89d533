"""How many threads a search's linear algebra takes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for linear algebra (BLAS). The matrices of a search are small: several threads would wait for one
    another, take processors from trials that train here, and round differently where there are more of them.
    """
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@cache
def _libraries() -> Any:
    """numpy's and scipy's; they are looked for once, which takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    importlib.import_module("scipy.linalg")
    return ThreadpoolController()
