"""What a search is: it proposes configurations, and learns from what became of them."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from pydantic import BaseModel

from raytuner.errors import Problem, SearchError, SpaceError
from raytuner.space import Config, Space, config_key

__all__ = ["Observation", "Search", "Status", "Trial"]

Status = Literal["pending", "running", "paused", "finished", "stopped", "failed"]
DRAWS = 1000
"""Draws that may be invalid or old ones before a finite space is looked through for a new one."""


@dataclass(frozen=True)
class Observation:
    """What is known about a trial at one of its steps."""

    trial_id: str
    config: Config
    step: int
    """The step that the value was taken at, counted from 1; 0 before the first."""
    value: float | None
    """The objective, minimised; None for a pending or failed trial, and where only the status is news."""
    status: Status
    """``running`` and ``paused`` may yet get better; ``stopped`` was cut short; ``finished`` came to its own end."""


@dataclass
class Trial:
    """What a search knows of a trial, whoever proposed it."""

    config: Config
    status: Status = "pending"
    values: dict[int, float] = field(default_factory=dict)
    """Its value at each step that was told."""


class Search(ABC):
    """Proposes configurations and learns from them. Always minimises, and never imports Ray.

    Deterministic: the same seed and the same calls in the same order get the same answers; ask k draws from
    ``np.random.default_rng([seed, k])`` and nothing else::

        search = RandomSearch(space, seed=0, options=RandomOptions())
        while (config := search.ask(trial_id := next_id())) is not None:
            value = train(config)
            search.tell(Observation(trial_id, config, step=1, value=value, status="finished"))

    No configuration is proposed twice, nor one that was told by somebody else; when a finite space has none left,
    ``ask`` returns None. A subclass proposes in ``_propose``; it may keep something of its own in ``_learn``.
    """

    Options: ClassVar[type[BaseModel]]
    """The model of the options that the search takes."""

    def __init__(self, space: Space, *, seed: int, first: Sequence[Config] = (), options: BaseModel) -> None:
        """first: configurations to propose before all others, in this order. Raises SpaceError if one is not valid."""
        self.space = space
        self.seed = seed
        self.options = options
        self.first = [copy.deepcopy(config) for config in first]
        problems = [
            Problem(f"first[{index}].{problem.where}", problem.rule, problem.got, problem.remedy)
            for index, config in enumerate(self.first)
            for problem in space.problems(config)
        ]
        if problems:
            raise SpaceError(problems)
        self.trials: dict[str, Trial] = {}
        """All trials asked for or told of, in this order."""
        self.why = ""
        """How the last proposal came about, for people; a subclass says it in ``_propose``."""
        self._asked: list[str] = []
        self._seen: set[str] = set()
        self._all: list[tuple[str, Config]] | None = None

    @classmethod
    def supports(cls, space: Space, options: BaseModel | None = None) -> list[str]:
        """Why this search cannot express a space, as sentences; empty when it can. ``None`` means default options."""
        return []

    @classmethod
    def most_proposals(cls, options: BaseModel) -> int | None:
        """After how many proposals it ends of itself, whatever the space; None when it goes on while there is one."""
        return None

    @classmethod
    def startup_trials(cls, options: BaseModel) -> int:
        """How many trials it proposes before it can begin to learn from them; 0 when it does not say."""
        return 0

    def warm_up(self) -> None:  # noqa: B027, most searches have nothing to import
        """Imports what a later ask needs, so that it need not wait; may run in a thread of its own meanwhile."""

    def ask(self, trial_id: str) -> Config | None:
        """The configuration for a new trial, or None when there is nothing more to propose.

        Raises SearchError for a trial that is known already.
        """
        self._check_new(trial_id)
        number = len(self._asked)
        if number < len(self.first):
            config: Config | None = self.first[number]
            self.why = "given to begin with"
        else:
            config = self._propose(np.random.default_rng([self.seed, number]), number)
        if config is None:
            return None
        self.asked(trial_id, config)
        return copy.deepcopy(config)

    def asked(self, trial_id: str, config: Config) -> None:
        """Takes over an earlier answer of ``ask`` without thinking again, as when a record is replayed."""
        self._check_new(trial_id)
        self._asked.append(trial_id)
        self._enter(trial_id, config)

    def tell(self, observation: Observation) -> None:
        """Learns what became of a trial; may be called several times for one, the last word on each step counts.

        ``pending`` for an unknown trial says that somebody else's configuration is under way. Without a value, only the
        status is news. A known trial keeps its configuration, whatever the observation has. Raises SearchError for a
        value that is not finite (tell the trial as failed), the value of a failed trial, or a negative step.
        """
        self._check(observation)
        if observation.trial_id not in self.trials:
            self._enter(observation.trial_id, observation.config)
        trial = self.trials[observation.trial_id]
        trial.status = observation.status
        if observation.value is not None:
            trial.values[observation.step] = float(observation.value)
        self._learn(observation)

    def state_dict(self) -> dict[str, Any]:
        """All that later proposals depend on besides space, seed, ``first`` and options, as JSON-able values."""
        return {
            "search": type(self).__name__,
            "seed": self.seed,
            "asked": list(self._asked),
            "trials": [
                [trial_id, copy.deepcopy(trial.config), trial.status, [list(item) for item in trial.values.items()]]
                for trial_id, trial in self.trials.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state; then proposes as the search it came from.

        Raises SearchError, and stays as it was, for a foreign state, or one that is not whole.
        """
        for key, own in (("search", type(self).__name__), ("seed", self.seed)):
            if state.get(key) != own:
                rule = f"a state must come from the same {key}, {own!r}"
                raise SearchError(str(Problem("search", rule, repr(state.get(key)), "build the search as it was")))
        try:
            trials = {
                trial_id: Trial(copy.deepcopy(config), status, {int(step): float(value) for step, value in values})
                for trial_id, config, status, values in state["trials"]
            }
            asked = list(state["asked"])
        except (KeyError, TypeError, ValueError) as error:
            rule, got = "a state must be whole", f"{type(error).__name__}: {error}"
            raise SearchError(str(Problem("search", rule, got, "use what state_dict gave"))) from error
        self.trials, self._asked = trials, asked
        self._seen = {config_key(trial.config) for trial in self.trials.values()}
        self.forget()

    def forget(self) -> None:  # noqa: B027, many searches keep nothing
        """Drops whatever was computed from the trials so far, since others take their place."""

    @abstractmethod
    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        """Configuration ``number`` (counted from 0, ``first`` included), valid and new, drawn from ``rng`` alone.

        None when there is none left. May be asked again with the same number and a fresh rng after None.
        """

    def _learn(self, observation: Observation) -> None:  # noqa: B027, most searches look at self.trials when asked
        """Called after an observation has been entered in ``trials``."""

    def is_new(self, config: Config) -> bool:
        """Whether a configuration has been neither proposed nor told."""
        return config_key(config) not in self._seen

    def _draw(self, rng: np.random.Generator) -> Config | None:
        """A valid, new configuration from the prior; None when there is none left, or none is found."""
        self.why = "drawn at random"
        valid = False
        for _ in range(DRAWS):
            config = self.space.from_unit(rng.random(len(self.space.names)))
            if self.space.satisfies(config):
                if self.is_new(config):
                    return config
                valid = True
        if not self.space.enumerable:
            return None if valid else self.space.sample(rng)  # which says that the constraints leave nothing
        if self._all is None:
            self._all = [(config_key(config), config) for config in self.space.grid(1)]
        left = [config for key, config in self._all if key not in self._seen]
        return copy.deepcopy(left[int(rng.integers(len(left)))]) if left else None

    def _enter(self, trial_id: str, config: Config) -> None:
        self.trials[trial_id] = Trial(copy.deepcopy(config))
        self._seen.add(config_key(config))

    def _check_new(self, trial_id: str) -> None:
        if trial_id in self.trials:
            raise SearchError(str(Problem("search", "a trial is asked for once", repr(trial_id), "use a new id")))

    def _check(self, observation: Observation) -> None:
        where, value = f"trial {observation.trial_id}, step {observation.step}", observation.value
        if observation.status not in get_args(Status):
            rule = f"status must be one of {', '.join(get_args(Status))}"
            raise SearchError(str(Problem(where, rule, repr(observation.status))))
        if observation.step < 0:
            rule = "steps count from 1, and 0 is before the first"
            raise SearchError(str(Problem(where, rule, str(observation.step))))
        if value is not None and (observation.status == "failed" or not math.isfinite(value)):
            rule = "a failed trial has no value" if observation.status == "failed" else "a value must be finite"
            raise SearchError(str(Problem(where, rule, repr(value), "tell it as failed, with value None")))
