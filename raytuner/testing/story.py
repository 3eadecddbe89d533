"""What may befall a search: asks, and tells in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st

from raytuner.search import Observation, Search, Status
from raytuner.space import Config, config_key

__all__ = ["ENDS", "Event", "Story", "events"]

Kind = Literal["ask", "report", "pause", "stop", "finish", "fail", "foreign"]
Event = tuple[Kind, int, float]
"""What happens, to which of the trials under way (modulo their number), with which value."""
ENDS: dict[Kind, Status] = {
    "report": "running",
    "pause": "paused",
    "stop": "stopped",
    "finish": "finished",
    "fail": "failed",
}


def events(least: int = 15, most: int = 40) -> st.SearchStrategy[list[Event]]:
    """Any events; about every second one is an ask."""
    kinds: st.SearchStrategy[Any] = st.sampled_from(["ask", *ENDS, "finish", "foreign"])
    kinds = st.one_of(st.just("ask"), kinds)
    return st.lists(st.tuples(kinds, st.integers(0, 50), st.floats(-1e6, 1e6)), min_size=least, max_size=most)


@dataclass
class Story:
    """A search, and all that was done with it: what it proposed must be valid and new."""

    search: Search
    prefix: str = ""
    """Of the names of its trials."""
    configs: list[Config] = field(default_factory=list)
    """What was proposed, in order."""
    steps: dict[str, int] = field(default_factory=dict)
    """The trials under way, with the last step of each."""
    over: bool = False
    """Whether the search had nothing more to propose."""
    _known: set[str] = field(default_factory=set)

    def ask(self) -> Config | None:
        """Asks for the next trial, and checks the answer."""
        trial_id = f"{self.prefix}{len(self.configs):06}"
        config = self.search.ask(trial_id)
        if config is None:
            assert trial_id not in self.search.trials, "a trial that was not proposed is none"
            self.over = True
            return None
        problems = self.search.space.problems(config)
        assert not problems, "; ".join(map(str, problems))
        assert config_key(config) not in self._known, f"{config} was proposed or told before"
        self._known.add(config_key(config))
        self.configs.append(config)
        self.steps[trial_id] = 0
        return config

    def asks(self, number: int) -> list[Config]:
        """So many asks, each told as pending; fewer when the search has nothing more to propose."""
        found = []
        for _ in range(number):
            config = self.ask()
            if config is None:
                break
            self.search.tell(Observation(f"{self.prefix}{len(self.configs) - 1:06}", config, 0, None, "pending"))
            found.append(config)
        return found

    def play(self, story: Sequence[Event]) -> list[Config]:
        """Everything that happens, one after the other; returns all that was proposed so far."""
        for number, (kind, which, value) in enumerate(story):
            if kind == "ask":
                self.ask()
            elif kind == "foreign":
                self._foreign(number, which)
            elif self.steps:
                self._tell(list(self.steps)[which % len(self.steps)], kind, value)
        return self.configs

    def _tell(self, trial_id: str, kind: Kind, value: float) -> None:
        config = self.search.trials[trial_id].config
        status = ENDS[kind]
        step = self.steps[trial_id] + 1
        told = None if status == "failed" else value
        self.search.tell(Observation(trial_id, config, step, told, status))
        self.steps[trial_id] = step
        if status not in ("running", "paused"):
            del self.steps[trial_id]

    def _foreign(self, number: int, which: int) -> None:
        config = self.search.space.sample(np.random.default_rng([which, number]))
        self._known.add(config_key(config))
        self.search.tell(Observation(f"foreign {self.prefix}{number}", config, 0, None, "pending"))
