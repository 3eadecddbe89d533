"""The methods that ``search_quality.py`` compares: searches with schedulers of ours, and peers."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, Literal

from peers import PEERS, Peer

from raytuner.plan import derived_seed
from raytuner.schedulers import SCHEDULERS, Scheduler, build_scheduler
from raytuner.search import SEARCHES, Search, build_search
from raytuner.simulation import Table

__all__ = ["Method"]


@dataclass(frozen=True)
class Method:
    """A search and a scheduler, as ``search:key=value,...+scheduler:key=value,...``, or a peer."""

    text: str

    def build(self, table: Table, seed: int) -> tuple[Search, Scheduler, Literal["best", "last"]]:
        """The search, the scheduler, and which of a trial's values both are told."""
        search, _, scheduler = self.text.partition("+")
        scheduler_options = _options(scheduler or "none", SCHEDULERS)
        ready = build_scheduler(scheduler_options, table.steps, derived_seed(seed, "scheduler"))
        name, given = _parsed(search)
        if name in PEERS:
            peer = PEERS[name](table.space, seed=derived_seed(seed, "search"), max_steps=table.steps, given=given)
            return peer, peer.scheduler or ready, peer.select
        ours = build_search(_options(search, SEARCHES), table.space, derived_seed(seed, "search"))
        return ours, ready, "best"

    @property
    def version(self) -> str:
        """Changes when the method's code does: ours by its modules, a peer's by its package and our wrapping."""
        parts = []
        for part, known in zip(self.text.split("+"), (SEARCHES | PEERS, SCHEDULERS), strict=False):
            name, _ = _parsed(part)
            if name not in known:
                sys.exit(f"no such method: {name}; there are {', '.join(known)}")
            found = known[name]
            if issubclass(found, Peer):
                try:
                    parts.append(f"{found.version()} {_digest(*found.code())}")
                except PackageNotFoundError as missing:
                    sys.exit(f'{name} needs the package {missing.name}; pip install -e ".[bench]"')
            else:
                parts.append(_digest(*_sources(found.__module__)))
        return " + ".join(parts)


def _options(text: str, known: dict[str, type[Any]]) -> Any:
    name, given = _parsed(text)
    return known[name].Options(type=name, **given)


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    name, _, rest = text.partition(":")
    items = (item.split("=", 1) for item in rest.split(",") if item)
    return name, {key: _value(value) for key, value in items}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _digest(*sources: str) -> str:
    """Of what the sources do: comments and layout do not count."""
    return hashlib.sha256("\n".join(ast.dump(ast.parse(source)) for source in sources).encode()).hexdigest()[:12]


@cache
def _sources(module: str) -> tuple[str, ...]:
    """The source of a module, and of those in its room that it imports, and so on."""
    found: dict[str, str] = {}
    room = module.rpartition(".")[0] + "."
    wanted = [module]
    while wanted:
        name = wanted.pop()
        spec = importlib.util.find_spec(name)
        if name in found or spec is None or spec.origin is None:
            continue
        found[name] = Path(spec.origin).read_text()
        imports = (node.module for node in ast.walk(ast.parse(found[name])) if isinstance(node, ast.ImportFrom))
        wanted += [known for known in imports if known and known.startswith(room)]
    return tuple(found[name] for name in sorted(found))
