"""hyperopt, by itself and as Ray Tune feeds it."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from peers.base import Asking, Peer
from raytuner.search import Observation
from raytuner.space import Choice, Config, Float, Int, Space

__all__ = ["HyperoptRaw", "RayHyperopt"]


class HyperoptRaw(Peer):
    """``tpe.suggest`` as ``fmin`` calls it; children of a category in nested ``hp.choice``; failures as STATUS_FAIL."""

    package = "hyperopt"

    def __init__(self, space: Space, **arguments: Any) -> None:
        super().__init__(space, **arguments)
        import hyperopt

        self.hyperopt = hyperopt
        self._nodes: dict[str, Any] = {}
        self.tree = {name: self._node(name) for name, given in space.parameters.items() if given.when is None}
        self.domain = hyperopt.Domain(None, self.tree)
        self.known = hyperopt.Trials()
        self.rng = np.random.default_rng(self.seed)
        self.tids: dict[str, int] = {}

    def ask(self, trial_id: str) -> Config | None:
        ids = self.known.new_trial_ids(1)
        self.known.refresh()
        seed = int(self.rng.integers(2**31 - 1))
        (document,) = self.hyperopt.tpe.suggest(ids, self.domain, self.known, seed, verbose=False, **self.given)
        self.known.insert_trial_docs([document])
        self.known.refresh()
        self._document(document["tid"])["state"] = self.hyperopt.JOB_STATE_RUNNING
        self.tids[trial_id] = document["tid"]
        values = {label: found[0] for label, found in document["misc"]["vals"].items() if found}
        return self._config(self.hyperopt.space_eval(self.tree, values))

    def tell(self, observation: Observation) -> None:
        if observation.status not in ("finished", "stopped", "failed"):
            return
        document = self._document(self.tids[observation.trial_id])
        document["state"] = self.hyperopt.JOB_STATE_DONE
        if observation.status == "failed":
            document["result"] = {"status": self.hyperopt.STATUS_FAIL}
        else:
            document["result"] = {"loss": observation.value, "status": self.hyperopt.STATUS_OK}
        self.known.refresh()

    def _document(self, tid: int) -> dict[str, Any]:
        found: dict[str, Any] = next(document for document in self.known.trials if document["tid"] == tid)
        return found

    def _node(self, name: str) -> Any:
        """A parameter as hyperopt has it: one node, in however many branches it stands."""
        if name not in self._nodes:
            self._nodes[name] = self._made(name)
        return self._nodes[name]

    def _made(self, name: str) -> Any:
        from hyperopt import hp

        match self.space.parameters[name]:
            case Float(low=low, high=high, log=log, step=None):
                return hp.loguniform(name, math.log(low), math.log(high)) if log else hp.uniform(name, low, high)
            case Float(low=low, high=high, log=log, step=step) | Int(low=low, high=high, log=log, step=step):
                bounds = (math.log(low), math.log(high)) if log else (low, high)
                return (hp.qloguniform if log else hp.quniform)(name, *bounds, step or 1)
            case Choice(ordered=True, values=values):
                return hp.quniform(name, 0, len(values) - 1, 1)
            case Choice(values=values):
                return hp.choice(name, [{name: value} | self._children(name, value) for value in values])

    def _children(self, parent: str, value: Any) -> dict[str, Any]:
        children = {}
        for name, given in self.space.parameters.items():
            if given.when is None:
                continue
            if not isinstance(given.when, dict) or len(given.when) != 1:
                raise ValueError(f"{name}: only a condition on one category can be nested, got {given.when!r}")
            allowed = given.when.get(parent, [])
            if value in (allowed if isinstance(allowed, list) else [allowed]):
                children[name] = self._node(name)
        return children

    def _config(self, tree: Mapping[str, Any]) -> Config:
        flat: Config = {}
        for name, value in tree.items():
            if isinstance(value, Mapping):
                flat |= self._config(value)
            else:
                flat[name] = self._native(name, value)
        return flat

    def _native(self, name: str, value: Any) -> Any:
        match self.space.parameters[name]:
            case Float(low=low, high=high):
                return min(max(float(value), low), high)
            case Int(low=low, high=high):
                return min(max(round(value), low), high)
            case Choice(ordered=True, values=values):
                return values[int(value)]
            case _:
                return value


class RayHyperopt(HyperoptRaw):
    """Ray Tune's ``HyperOptSearch`` with its ``ASHAScheduler``: each trial counts with the value that it ended with."""

    package = "ray"
    select = "last"

    def __init__(self, space: Space, **arguments: Any) -> None:
        super().__init__(space, **arguments)
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.hyperopt import HyperOptSearch

        self.theirs = HyperOptSearch(self.tree, metric="loss", mode="min", random_state_seed=self.seed, **self.given)
        self.asha = ASHAScheduler(metric="loss", mode="min", max_t=self.max_steps)
        steps = [step for bracket in self.asha._brackets for step, _ in bracket._rungs]
        self.scheduler = Asking(tuple(sorted({int(step) for step in steps if step < self.max_steps})), self._stops)

    @classmethod
    def version(cls) -> str:
        return f"{super().version()}, hyperopt {importlib.metadata.version('hyperopt')}"

    def ask(self, trial_id: str) -> Config | None:
        self.asha.on_trial_add(None, SimpleNamespace(trial_id=trial_id))
        found = self.theirs.suggest(trial_id)
        return None if found is None else self._config(found)

    def tell(self, observation: Observation) -> None:
        result = {"loss": observation.value, "training_iteration": observation.step}
        trial = SimpleNamespace(trial_id=observation.trial_id)
        if observation.status == "failed":
            self.asha.on_trial_remove(None, trial)
            self.theirs.on_trial_complete(observation.trial_id, error=True)
        elif observation.status in ("finished", "stopped"):
            self.asha.on_trial_complete(None, trial, result)
            self.theirs.on_trial_complete(observation.trial_id, result)

    def _stops(self, trial_id: str, step: int, value: float) -> bool:
        trial, result = SimpleNamespace(trial_id=trial_id), {"loss": value, "training_iteration": step}
        return bool(self.asha.on_trial_result(None, trial, result) == "STOP")
