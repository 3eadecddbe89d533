"""Optuna's samplers.

Akiba, Sano, Yanase, Ohta and Koyama: Optuna, a next-generation hyperparameter optimization framework, KDD 2019.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from raytuner.components import Options
from raytuner.errors import Problem, SearchError, SpaceError
from raytuner.search.base import Observation, Search, Trial
from raytuner.space import Config, Space

if TYPE_CHECKING:  # optuna comes with an extra
    import optuna
    from optuna.trial import FrozenTrial

    from raytuner.search.optuna_record import Coordinate, Record

__all__ = ["OptunaOptions", "OptunaSearch", "not_installed"]

TRIES = 10
"""Suggestions that may be invalid or old ones before a configuration is drawn from the prior."""
LARGEST = 1e100
"""The greatest value that a sampler is told: some square it."""
REMEMBERING = ("CmaEsSampler", "NSGAIISampler", "QMCSampler")
"""Samplers that leave something in the study when they are asked, and look it up when they are asked again."""
FUNCTION, OBJECT = "it is a function, which no file can hold", "it is an object of Optuna's, which no file can hold"
REFUSED = {
    "seed": "it follows from the experiment's seed",
    "with_margin": "it needs more than the configuration of a trial, which is all that a record holds",
    **dict.fromkeys(("gamma", "weights", "constraints_func", "after_trial_strategy"), FUNCTION),
    **dict.fromkeys(("elite_population_selection_strategy", "child_generation_strategy"), FUNCTION),
    **dict.fromkeys(("independent_sampler", "mutation", "crossover", "source_trials"), OBJECT),
    "x0": "it is a mapping, and options are single values; give the configuration as defaults",
}
"""Options of samplers that cannot be given, and why."""
COUNTS = ("n_startup_trials", "popsize", "population_size")
"""Options that say how many trials there must be before a sampler shows what it does."""
FEW = 6
"""So many are enough to see it; twice as many, and two more, are invented."""


class OptunaOptions(Options):
    """Any of Optuna's samplers. Needs ``pip install "raytuner[optuna]"``."""

    type: Literal["optuna"] = "optuna"
    """The kind of search."""
    sampler: Literal[
        "TPESampler",
        "GPSampler",
        "CmaEsSampler",
        "NSGAIISampler",
        "QMCSampler",
        "RandomSampler",
    ] = "TPESampler"
    """The sampler, by its class in ``optuna.samplers``."""
    options: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    """Arguments of this class, such as ``{multivariate: true, group: true}``."""


class OptunaSearch(Search):
    """A sampler of Optuna's behind ``ask`` and ``tell``.

    For each ask a new sampler, with a seed of that ask's own, reads a study that is made from the trials told so far.
    So a proposal depends on the seed, its number and what was told, and on nothing that a sampler may have kept.

    * Pending and running trials are RUNNING, failed ones FAIL, finished ones COMPLETE with their last value.
    * Stopped and paused trials are PRUNED, with their values by step, for TPESampler. The other samplers know nothing
      of such trials, and are told of them as COMPLETE with the last value (``consider_pruned_trials`` of CmaEsSampler).
    * Parameters are suggested parents first. Those with steps are numbers of steps, and an ordered choice is the number
      of its value; with ``log`` and ``step`` together, the nearest value on a step counts.
    * A suggestion that breaks a constraint, or is not new, stays in the study as RUNNING while it is asked again.

    A sampler that remembers (CMA-ES its distribution, NSGA its generations, QMC its place) does so in attributes that
    it leaves in the study when it is asked. These are made again by asking it for each trial in the order of their
    numbers, as if one had ended before the next began, and only from the first trial on of which there is news.
    """

    Options: ClassVar[type[BaseModel]] = OptunaOptions

    def __init__(self, space: Space, **arguments: Any) -> None:
        """Raises SearchError for options that the sampler does not take."""
        super().__init__(space, **arguments)
        self.name, self.arguments = self._chosen()
        self._varying = [name for name in space.names if space.parameters[name].axis.size != 1]
        self._known: dict[str, dict[str, Any] | None] = {}
        self._numbers: dict[str, int] = {}
        self._stale = 0  # trials of the record from this number on are to be made anew
        try:
            self._rehearse()
        except Exception as error:  # samplers check little, and trip over the rest in ways of their own
            rule = f"must be options of {self.name} ({error})"
            remedy = f"see optuna.samplers.{self.name}"
            raise SearchError(str(Problem("search.options", rule, repr(self.arguments), remedy))) from error

    @classmethod
    def supports(cls, space: Space, options: BaseModel | None = None) -> list[str]:
        chosen = options if isinstance(options, OptunaOptions) else OptunaOptions()
        given = sorted(REFUSED.keys() & chosen.options.keys())
        return [
            *not_installed("optuna", *(["cmaes"] if chosen.sampler == "CmaEsSampler" else [])),
            *(f"the option {name!r} cannot be given, since {REFUSED[name]}; leave it out" for name in given),
        ]

    def warm_up(self) -> None:
        if self.name == "GPSampler":
            importlib.import_module("torch")
            importlib.import_module("scipy.optimize")
        if self.name == "QMCSampler":
            importlib.import_module("scipy.stats.qmc")

    def forget(self) -> None:
        self._known.clear()
        self._numbers.clear()
        self._stale = 0

    def _chosen(self) -> tuple[str, dict[str, Any]]:
        """The sampler's class and its arguments."""
        assert isinstance(self.options, OptunaOptions)
        # Without scrambling all seeds have the same sequence.
        own = {"scramble": True} if self.options.sampler == "QMCSampler" else {}
        return self.options.sampler, own | self.options.options

    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        self._catch_up()
        try:
            self._study.sampler = self._sampler(int(rng.integers(2**31)))
            for _ in range(TRIES):
                config = self._suggest()
                if self.space.satisfies(config) and self.is_new(config):
                    self.why = f"suggested by {self.name}, which knew of {len(self.trials)} trials"
                    return config
        finally:
            self._record.cut(len(self.trials))
        return self._draw(rng)

    def _learn(self, observation: Observation) -> None:
        number = self._numbers.get(observation.trial_id, self._stale)
        if number < self._stale:
            before, now = self._record.trials[number].state.name, self._state(self.trials[observation.trial_id])
            if not before == now == "RUNNING":
                self._stale = number

    def _sampler(self, seed: int, instead: dict[str, Any] | None = None) -> optuna.samplers.BaseSampler:
        from optuna import samplers

        arguments = {"seed": seed} | self.arguments | (instead or {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some of them are experimental
            if self.name == "QMCSampler":  # all asks go through one sequence
                arguments |= {"seed": self.seed % 2**32, "independent_sampler": samplers.RandomSampler(seed=seed)}
            sampler: optuna.samplers.BaseSampler = getattr(samplers, self.name)(**arguments)
        return sampler

    def _rehearse(self) -> None:
        """Asks the sampler among invented trials, since most options are first looked at there. Raises what it does."""
        import optuna

        self._sampler(0)
        if self.options == type(self.options)():
            return
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        short = {
            key: min(value, FEW + value % 1)  # 60.5 is as wrong as 6.5
            for key, value in self.arguments.items()
            if key in COUNTS and isinstance(value, int | float)
        }
        if self.name == "NSGAIISampler":
            short.setdefault("population_size", FEW)
        study = optuna.create_study(sampler=self._sampler(0, short))
        # A Gaussian process takes its time, and has no option that could be wrong beyond its start.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in range(1 if self.name == "GPSampler" else 2 * FEW + 2):
                trial = study.ask()
                study.tell(trial, trial.suggest_float("a", 0.0, 1.0) + trial.suggest_float("b", 0.0, 1.0) + number % 3)

    def _suggest(self) -> Config:
        trial = self._study.ask()
        config: Config = {}
        for name in self.space.names:
            if name in self.space.active(config):
                config[name] = self._coordinates[name].suggest(trial, name)
        return config

    def _catch_up(self) -> None:
        """Makes the record say what is known, from the first trial on of which something new is."""
        record = self._record
        record.cut(self._stale)
        self._study.sampler = self._sampler(0)  # what it leaves in the study does not depend on the seed
        for number, (name, trial) in islice(enumerate(self.trials.items()), self._stale, None):
            if self.name in REMEMBERING and self._varying and self._params(name, trial) is not None:
                # A sampler begins to work when the first value is wanted that it can choose.
                self._coordinates[self._varying[0]].suggest(self._study.ask(), self._varying[0])
                record.trials[number] = self._frozen(number, name, trial, record.trials[number].system_attrs)
            else:
                record.append(self._frozen(number, name, trial, {}))
            self._numbers[name] = number
        self._stale = len(self.trials)

    def _frozen(self, number: int, name: str, trial: Trial, attributes: dict[str, Any]) -> FrozenTrial:
        """A trial as Optuna has it."""
        from optuna.trial import TrialState

        from raytuner.search.optuna_record import frozen_trial

        params = self._params(name, trial)
        if params is None:
            return frozen_trial(number, TrialState.FAIL)
        known: dict[str, Any] = {"params": params, "system_attrs": attributes}
        known["distributions"] = {name: self._coordinates[name].distribution for name in params}
        state = self._state(trial)
        if state == "COMPLETE":
            known["value"] = float(np.clip(trial.values[max(trial.values)], -LARGEST, LARGEST))
        if state == "PRUNED":
            known["intermediate_values"] = trial.values
        return frozen_trial(number, TrialState[state], **known)

    def _state(self, trial: Trial) -> str:
        """The state that Optuna knows a trial in."""
        if trial.status == "failed":
            return "FAIL"
        if trial.status in ("pending", "running") or not trial.values:
            return "RUNNING" if trial.status in ("pending", "running", "paused") else "FAIL"
        return "PRUNED" if trial.status != "finished" and self.name == "TPESampler" else "COMPLETE"

    def _params(self, name: str, trial: Trial) -> dict[str, Any] | None:
        """A trial's configuration in Optuna's terms; None when it lies outside of the space."""
        if name not in self._known:
            try:
                self.space.to_unit(trial.config)
            except SpaceError:  # somebody else's trial, of another space
                self._known[name] = None
            else:
                active = self.space.active(trial.config)
                self._known[name] = {one: self._coordinates[one].number(trial.config[one]) for one in active}
        return self._known[name]

    @cached_property
    def _record(self) -> Record:
        from raytuner.search.optuna_record import Record

        return Record()

    @cached_property
    def _study(self) -> optuna.Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return optuna.Study(study_name="raytuner", storage=self._record)

    @cached_property
    def _coordinates(self) -> dict[str, Coordinate]:
        from raytuner.search.optuna_record import Coordinate

        return {name: Coordinate(parameter) for name, parameter in self.space.parameters.items()}


def not_installed(*packages: str) -> list[str]:
    """Says which packages are missing, without importing any; empty when none is."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return [f'{" and ".join(missing)} must be installed; pip install "raytuner[optuna]"'] if missing else []
