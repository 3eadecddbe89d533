"""What a peer is."""

from __future__ import annotations

import importlib.metadata
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from raytuner.components import Options
from raytuner.schedulers import Decision, Scheduler
from raytuner.search import Observation, Search
from raytuner.space import Choice, Config, Space

__all__ = ["Asking", "Peer"]


class NoOptions(Options):
    """A peer has its own defaults."""


class Peer(Search):
    """Somebody else's search. It gets neither our ``first`` nor our care for duplicates."""

    Options = NoOptions
    package: ClassVar[str]
    select: ClassVar[Literal["best", "last"]] = "best"
    """The value that a trial is told with: its best, or as Ray and Syne Tune do that of its last step."""

    def __init__(self, space: Space, *, seed: int, max_steps: int, given: Mapping[str, Any]) -> None:
        """given: settings of the peer's own that are not its defaults."""
        super().__init__(space, seed=seed, options=NoOptions())
        self.max_steps = max_steps
        self.given = dict(given)
        self.scheduler: Scheduler | None = None
        """The peer's own scheduler, if it brings one."""

    @classmethod
    def version(cls) -> str:
        return f"{cls.package} {importlib.metadata.version(cls.package)}"

    @classmethod
    def code(cls) -> list[str]:
        """The source of the wrapping."""
        return [inspect.getsource(base) for base in cls.__mro__ if issubclass(base, Peer)]

    @abstractmethod
    def ask(self, trial_id: str) -> Config | None: ...

    @abstractmethod
    def tell(self, observation: Observation) -> None: ...

    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        raise NotImplementedError("a peer answers in ask")

    def _active(self, values: Mapping[str, Any]) -> Config:
        """A configuration from values for all parameters."""
        return {name: values[name] for name in self.space.active(values)}

    def _levels(self, name: str) -> tuple[Any, ...]:
        """The values of an ordered choice, which peers know by their places; empty for other parameters."""
        parameter = self.space.parameters[name]
        return parameter.values if isinstance(parameter, Choice) and parameter.ordered else ()


class Asking(Scheduler):
    """A scheduler whose answers come from a peer's."""

    Options = NoOptions

    def __init__(self, steps: tuple[int, ...], stops: Callable[[str, int, float], bool]) -> None:
        super().__init__(NoOptions(), max_steps=None, seed=0)
        self._steps, self._stops = steps, stops

    def decision_steps(self) -> tuple[int, ...]:
        return self._steps

    def on_report(self, trial_id: str, step: int, value: float) -> Decision:
        return Decision("stop" if self._stops(trial_id, step, value) else "continue", "as the peer says")

    def expected_rungs(self, trials: int) -> list[tuple[int, float]]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError
