"""Optuna's samplers."""

from __future__ import annotations

import importlib.metadata
import warnings
from typing import Any

from peers.base import Peer
from raytuner.search import Observation
from raytuner.space import Choice, Config, Float, Int, Space

__all__ = ["OptunaCMA", "OptunaTPE"]


class OptunaTPE(Peer):
    """``TPESampler`` as it comes; parameters are suggested where they are active, parents first."""

    package = "optuna"

    def __init__(self, space: Space, **arguments: Any) -> None:
        super().__init__(space, **arguments)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.states = optuna.trial.TrialState
        self.study = optuna.create_study(sampler=self._sampler(optuna.samplers))
        self.open: dict[str, Any] = {}

    def _sampler(self, samplers: Any) -> Any:
        return samplers.TPESampler(seed=self.seed, **self.given)

    def ask(self, trial_id: str) -> Config:
        trial = self.open[trial_id] = self.study.ask()
        config: Config = {}
        for name in self.space.names:
            if name in self.space.active(config):
                config[name] = self._suggest(trial, name)
        return config

    def _suggest(self, trial: Any, name: str) -> Any:
        match self.space.parameters[name]:
            case Float() as given:
                return trial.suggest_float(name, given.low, given.high, step=given.step, log=given.log)
            case Int() as given:
                return trial.suggest_int(name, given.low, given.high, step=given.step or 1, log=given.log)
            case Choice(ordered=True, values=values):
                return values[trial.suggest_int(name, 0, len(values) - 1)]
            case Choice(values=values):
                return trial.suggest_categorical(name, list(values))

    def tell(self, observation: Observation) -> None:
        trial = self.open[observation.trial_id]
        if observation.status == "failed":
            self.study.tell(trial, state=self.states.FAIL)
            return
        if observation.status == "finished":
            self.study.tell(trial, observation.value)
            return
        trial.report(observation.value, observation.step)
        if observation.status == "stopped":
            self.study.tell(trial, state=self.states.PRUNED)


class OptunaCMA(OptunaTPE):
    """``CmaEsSampler``; what is no number, or not always there, is drawn at random."""

    @classmethod
    def version(cls) -> str:
        return f"{super().version()}, cmaes {importlib.metadata.version('cmaes')}"

    def _sampler(self, samplers: Any) -> Any:
        return samplers.CmaEsSampler(seed=self.seed, warn_independent_sampling=False, **self.given)
