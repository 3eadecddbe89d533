"""From a reference in the definition to the object it names, in the process that runs it."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from raytuner.errors import TrialError

__all__ = ["load_module", "resolve"]


def load_module(reference: str, root: str | Path) -> ModuleType:
    """Import the module of ``module:attr`` or ``path/file.py:attr`` (a relative path counts from ``root``)."""
    where = reference.rpartition(":")[0]
    if not where.endswith(".py"):
        return importlib.import_module(where)
    path = (Path(root) / where).resolve()
    name = f"raytuner_script_{re.sub(r'[^0-9A-Za-z]', '_', where)}"  # the whole path: two may have one last name
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TrialError(f"{reference}: {path} is not a Python file that can be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def resolve(reference: str, root: str | Path) -> Callable[..., Any]:
    """The function or class that ``reference`` names. Raises TrialError when its module has no such name."""
    target: Any = load_module(reference, root)
    for part in reference.rpartition(":")[2].split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            raise TrialError(f"{reference}: the module has no {part!r}; name a function at its top level") from None
    if not callable(target):
        raise TrialError(f"{reference}: a function or a class is needed, got {type(target).__name__}")
    return target  # type: ignore[no-any-return]  # checked just above
