"""Syne Tune's schedulers."""

from __future__ import annotations

import logging
from datetime import datetime
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from peers.base import Asking, Peer
from raytuner.search import Observation
from raytuner.space import Choice, Config, Float, Int, Space

__all__ = ["SyneASHA", "SyneBORE", "SyneCQR", "SyneEvolution"]


class SyneTune(Peer):
    """A scheduler of Syne Tune's that asks for trials and lets them train to their end. It knows no conditions."""

    package = "syne-tune"
    theirs: ClassVar[str]
    """The name among its baselines."""

    def __init__(self, space: Space, **arguments: Any) -> None:
        super().__init__(space, **arguments)
        from syne_tune.backend.trial_status import Trial as SyneTrial
        from syne_tune.optimizer import baselines

        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        self.trial_type = SyneTrial
        np.random.seed(self.seed)  # some of it draws from numpy's global generator
        self.tuner = self._build(getattr(baselines, self.theirs))
        self.open: dict[str, Any] = {}

    def _build(self, made: Any) -> Any:
        return made(self.their_space, metric="loss", do_minimize=True, random_seed=self.seed, **self.given)

    @cached_property
    def their_space(self) -> dict[str, Any]:
        from syne_tune import config_space as cs

        found = {}
        for name, parameter in self.space.parameters.items():
            match parameter:
                case Float(low=low, high=high, log=log):
                    found[name] = (cs.loguniform if log else cs.uniform)(low, high)
                case Int(low=low, high=high, log=log):
                    found[name] = (cs.lograndint if log else cs.randint)(low, high)
                case Choice(ordered=True, values=values):
                    found[name] = cs.randint(0, len(values) - 1)
                case Choice(values=values):
                    found[name] = cs.choice(list(values))
        return found

    def ask(self, trial_id: str) -> Config | None:
        suggestion = self.tuner.suggest()
        if suggestion is None:
            return None
        trial = self.trial_type(len(self.open), suggestion.config, datetime.fromtimestamp(0))
        self.open[trial_id] = trial
        self.tuner.on_trial_add(trial)
        values = {}
        for name, value in suggestion.config.items():
            levels = self._levels(name)
            values[name] = levels[int(value)] if levels else value.item() if hasattr(value, "item") else value
        return self._active(values)

    def tell(self, observation: Observation) -> None:
        trial = self.open[observation.trial_id]
        result = {"loss": observation.value, "epoch": observation.step}
        if observation.status == "failed":
            self.tuner.on_trial_error(trial)
        elif observation.status == "finished":
            self.tuner.on_trial_complete(trial, result)
        elif observation.status == "stopped":
            self.tuner.on_trial_remove(trial)


class SyneEvolution(SyneTune):
    """Regularised evolution (Real et al. 2019): a population of 100, and so random until trial 101."""

    theirs = "REA"


class SyneBORE(SyneTune):
    """BORE (Tiao et al. 2021): the density ratio by a classifier."""

    theirs = "BORE"


class SyneCQR(SyneTune):
    """CQR (Salinas et al. 2023): conformalised quantile regression, Thompson sampling."""

    theirs = "CQR"


class SyneASHA(SyneTune):
    """ASHA's stopping form on random configurations, asked at its rungs."""

    theirs = "ASHA"
    select = "last"

    def _build(self, made: Any) -> Any:
        tuner = made(
            self.their_space,
            metric="loss",
            do_minimize=True,
            time_attr="epoch",
            max_t=self.max_steps,
            random_seed=self.seed,
            **self.given,
        )
        steps = {int(step) for bracket in tuner.brackets for step, _ in bracket.rungs if step < self.max_steps}
        self.scheduler = Asking(tuple(sorted(steps)), self._stops)
        return tuner

    def _stops(self, trial_id: str, step: int, value: float) -> bool:
        result = {"loss": value, "epoch": step}
        return bool(self.tuner.on_trial_result(self.open[trial_id], result) == "STOP")
