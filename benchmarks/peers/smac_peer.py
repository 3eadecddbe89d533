"""SMAC3."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from typing import Any

from peers.base import Peer
from raytuner.search import Observation
from raytuner.space import Choice, Config, Float, Int, Space

__all__ = ["SMAC"]


class SMAC(Peer):
    """SMAC3's ``HyperparameterOptimizationFacade`` through its ask and tell, for 100 trials, each counting for good.

    ``deterministic``: it would spend a part of the trials on training a configuration again with another seed.
    """

    package = "smac"

    def __init__(self, space: Space, **arguments: Any) -> None:
        super().__init__(space, **arguments)
        from smac import HyperparameterOptimizationFacade, Scenario
        from smac.runhistory.dataclasses import TrialValue
        from smac.runhistory.enumerations import StatusType

        self.value_type, self.statuses = TrialValue, StatusType
        self._folder = tempfile.TemporaryDirectory()
        settings = {"deterministic": True, "n_trials": 100, **self.given}
        scenario = Scenario(self._their_space(), seed=self.seed, output_directory=self._folder.name, **settings)
        self.facade = HyperparameterOptimizationFacade(
            scenario, lambda config, seed: 0.0, overwrite=True, logging_level=logging.ERROR
        )
        self.open: dict[str, Any] = {}

    def _their_space(self) -> Any:
        import ConfigSpace as CS

        theirs = CS.ConfigurationSpace(seed=self.seed)
        known: dict[str, Any] = {}
        for name in self.space.names:
            match self.space.parameters[name]:
                case Float(low=low, high=high, log=log):
                    known[name] = CS.UniformFloatHyperparameter(name, low, high, log=log)
                case Int(low=low, high=high, log=log):
                    known[name] = CS.UniformIntegerHyperparameter(name, low, high, log=log)
                case Choice(ordered=True, values=values):
                    known[name] = CS.UniformIntegerHyperparameter(name, 0, len(values) - 1)
                case Choice(values=values):
                    known[name] = CS.CategoricalHyperparameter(name, list(values))
            theirs.add(known[name])
        for name, given in self.space.parameters.items():
            if isinstance(given.when, dict):
                ((parent, allowed),) = given.when.items()
                allowed = allowed if isinstance(allowed, list) else [allowed]
                theirs.add(CS.InCondition(known[name], known[parent], allowed))
        return theirs

    def ask(self, trial_id: str) -> Config | None:
        info = self.open[trial_id] = self.facade.ask()
        values = {}
        for name, value in dict(info.config).items():
            levels = self._levels(name)
            values[name] = levels[int(value)] if levels else value.item() if hasattr(value, "item") else value
        return values

    def tell(self, observation: Observation) -> None:
        info = self.open[observation.trial_id]
        if observation.status == "failed":
            value = self.value_type(cost=math.inf, time=0.0, status=self.statuses.CRASHED)
        elif observation.status == "finished":
            value = self.value_type(cost=observation.value, time=0.0, starttime=time.time())
        else:
            return
        self.facade.tell(info, value)
