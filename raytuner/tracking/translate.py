"""Events of the journal, translated into what MLflow should hold. Pure: no store is asked, and no clock.

The same events give the same updates however often they are read, and from wherever reading starts anew; with
stores that ignore what they have already, that is what makes tracking idempotent.
"""

from __future__ import annotations

import getpass
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from raytuner.journal import (
    Checkpoint,
    DriverEnded,
    DriverStarted,
    Event,
    ExperimentState,
    Exploited,
    Folder,
    Logged,
    Phase,
    Reported,
    Tested,
    TrialEnded,
    TrialStarted,
    TrialState,
    Usage,
)
from raytuner.tracking import lineage
from raytuner.tracking.details import Details, read_details
from raytuner.tracking.naming import STATES, metric_key, param_value, run_name, tag_value
from raytuner.tracking.store import EXPERIMENT, MODEL, PARENT, TRIAL, Artifact, Birth, Metric, Update

__all__ = ["Translator"]

LINEAGE_SECONDS = 60.0
"""How often the lineage is drawn anew while there are new copies."""
_ENDS = ("finished", "stopped", "failed")


class Translator:
    """Takes events in, and has the updates that follow from them taken out again.

    >>> translator.apply(event)
    >>> for trial, update in translator.take().items(): ...   # "" is the experiment's own run
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._updates: dict[str, Update] = {}
        self._user = _user()
        self._command = ""
        self._crowned: str | None = None
        self._drawn = 0.0
        self.details = Details()
        self.state = ExperimentState(history=False)
        self.key = ""
        """What tells this experiment from others of its name; empty before a driver started."""

    def apply(self, event: Event) -> None:
        """Take one event in."""
        incumbents = len(self.state.incumbents)
        self.state.apply(event)
        match event:
            case DriverStarted():
                self._driver_started(event)
            case DriverEnded():
                self._driver_ended(event)
            case TrialStarted():
                self._started(event)
            case Exploited():
                self._exploited(event)
            case Reported():
                self._reported(event)
                if len(self.state.incumbents) > incumbents:
                    value = self.state.incumbents[-1][-1]
                    self._measure(PARENT, {f"best/{self.state.metric}": value}, event.time or event.at)
            case TrialEnded():
                self._ended(event)
            case Tested():
                self._tested(event)
            case Usage():
                self._used(event)
            case Logged():
                self._attach(event.trial, Artifact(_place(event.name, event.path), self._folder.here(event.path)))

    def take(self) -> dict[str, Update]:
        """The updates since the last time, by trial; the parent's first."""
        updates, self._updates = self._updates, {}
        return dict(sorted(updates.items()))

    def labels(self) -> dict[str, str]:
        """The tags of the MLflow experiment, which its pages go by."""
        return {
            "mlflow.experimentKind": "custom_model_development",  # the pages for training, not those for agents
            "mlflow.experiment.primaryMetric.name": metric_key(f"best/{self.state.metric}"),
            "mlflow.experiment.primaryMetric.greaterIsBetter": str(self.state.mode == "max").lower(),
        }

    def birth(self, trial_id: str) -> Birth:
        """What the run of a trial, or the parent's, is created with."""
        tags = {
            EXPERIMENT: self.key,
            "raytuner.kind": "trial" if trial_id else "experiment",
            "raytuner.status": "running",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": tag_value(self._command or "raytuner"),
        }
        if trial_id == PARENT:
            return Birth(self.state.name, _ms(self.state.started_at), self._user, tags)
        trial = self.state.trials[trial_id]
        tags |= {TRIAL: trial_id, "raytuner.source": trial.source}
        name = run_name(trial_id, trial.asked, trial.source)
        return Birth(name, _ms(trial.started_at or trial.asked_at), self._user, tags)

    def params(self, trial_id: str) -> dict[str, str]:
        """The parameters of a run: a trial's configuration, or the parent's few."""
        if trial_id != PARENT:
            return {metric_key(key): param_value(value) for key, value in self.state.trials[trial_id].asked.items()}
        params = {
            "objective": f"{self.state.mode} {self.state.metric}",
            "search": self.details.search,
            "scheduler": self.details.scheduler,
        }
        return {key: value for key, value in params.items() if value}

    def _update(self, trial_id: str) -> Update:
        return self._updates.setdefault(trial_id, Update())

    def _measure(self, trial_id: str, metrics: dict[str, float | None], at: float, step: int | None = None) -> None:
        step = self.state.steps if step is None else step
        self._update(trial_id).metrics.extend(
            Metric(metric_key(key), float(value), _ms(at), step) for key, value in metrics.items() if value is not None
        )

    def _attach(self, trial_id: str, artifact: Artifact) -> None:
        self._update(trial_id).artifacts[artifact.place] = artifact

    def _label(self, trial_id: str, status: str, reason: str, at: float | None = None) -> None:
        """Set a run's status; ``at`` is when it ended, None while it goes on."""
        update = self._update(trial_id)
        update.tags["raytuner.status"] = status
        update.tags["raytuner.reason"] = tag_value(reason)
        update.status = "RUNNING" if at is None else STATES.get(status, "FAILED")
        update.ended = None if at is None else _ms(at)

    def _driver_started(self, event: DriverStarted) -> None:
        if not self.key:
            birth = json.dumps([event.name, event.at, event.host, event.pid, event.seed])
            self.key = f"{event.name}-{hashlib.sha256(birth.encode()).hexdigest()[:12]}"
        self.details = read_details(self._folder.plan)
        self._command = event.command
        self._label(PARENT, "running", "")
        update = self._update(PARENT)
        update.params |= self.params(PARENT)
        update.tags |= {key: tag_value(value) for key, value in self.details.tags.items()}
        update.tags |= {
            "raytuner.folder": self._folder.where,
            "raytuner.seed": str(event.seed),
            "raytuner.budget": _budget(event.budget),
            "raytuner.versions": tag_value(", ".join(f"{name} {version}" for name, version in event.versions.items())),
        }
        if event.git.get("commit"):
            update.tags["mlflow.source.git.commit"] = str(event.git["commit"])
            update.tags["raytuner.git.dirty"] = str(bool(event.git.get("dirty"))).lower()
        if self.details.description:
            update.tags["mlflow.note.content"] = tag_value(self.details.description)
        for path in (self._folder.definition, self._folder.plan):
            self._attach(PARENT, Artifact(path.name, path))

    def _driver_ended(self, event: DriverEnded) -> None:
        for trial in self.state.trials.values():
            if trial.status in {"running", "paused"}:
                reason = trial.reason or f"the experiment ended: {event.reason or event.status}"
                self._label(trial.id, trial.status if trial.status == "paused" else "interrupted", reason, event.at)
        self._label(PARENT, event.status, event.reason, event.at)
        if any(len(trial.phases) > 1 for trial in self.state.trials.values()):
            self._draw_lineage()
        self._measure(PARENT, {"total/steps": self.state.steps, "total/seconds": self._train_seconds()}, event.at)
        best = self.state.best
        if self._crowned is not None and (best is None or best.id != self._crowned):
            self._update(self._crowned).tags["raytuner.best"] = "false"
        if best is None:
            return
        self._crowned = best.id
        self._update(best.id).tags["raytuner.best"] = "true"
        self._update(PARENT).tags["raytuner.best_trial"] = best.id
        if best.best_checkpoint is not None:
            self._model(best, best.best_checkpoint)

    def _draw_lineage(self) -> None:
        self._attach(PARENT, Artifact(lineage.TABLE, text=lineage.table(self.state)))
        self._attach(PARENT, Artifact(lineage.PICTURE, text=lineage.picture(self.state)))
        shown = [{"path": lineage.TABLE, "type": "table"}]
        self._update(PARENT).tags["mlflow.loggedArtifacts"] = json.dumps(shown)

    def _train_seconds(self) -> float:
        return round(sum(trial.seconds for trial in self.state.trials.values()), 3)

    def _model(self, best: TrialState, checkpoint: Checkpoint) -> None:
        about: dict[str, Any] = {"trial": best.id, "step": checkpoint.step, self.state.metric: best.value}
        flavor = {**about, "checkpoint": "checkpoint", "config": "config.json"}
        # JSON is YAML, which is what MLflow reads this file as.
        card = {"artifact_path": MODEL, "flavors": {"raytuner": flavor}, "metadata": {"experiment": self.key}}
        self._attach(PARENT, Artifact(f"{MODEL}/checkpoint", self._folder.here(checkpoint.path)))
        self._attach(PARENT, Artifact(f"{MODEL}/config.json", text=json.dumps(best.config, indent=2, default=str)))
        self._attach(PARENT, Artifact(f"{MODEL}/MLmodel", text=json.dumps(card, indent=2, default=str)))
        self._update(PARENT).model = {f"raytuner.{name}": tag_value(value) for name, value in about.items()}

    def _started(self, event: TrialStarted) -> None:
        self._label(event.trial, "running", "")
        self._update(event.trial).params |= self.params(event.trial)
        trial = self.state.trials[event.trial]
        if trial.started_at == event.at:  # for the first time on record
            self._settings(event.trial, self.details.mutated, trial.asked, event.at, 1)

    def _exploited(self, event: Exploited) -> None:
        trial = self.state.trials[event.trial]
        *before, last, new = trial.phases
        names = self._changing(trial.phases)
        first_seen = names - self._changing([*before, last])
        self._settings(event.trial, first_seen, trial.asked, trial.started_at, 1)
        # At both ends of a phase, so that a chart shows a value for as long as it was in force.
        self._settings(event.trial, names, last.config, event.at, event.step)
        self._settings(event.trial, names, new.config, event.at, event.source_step + 1)
        tags = self._update(event.trial).tags
        tags["raytuner.exploits"] = str(len(trial.phases) - 1)
        tags["raytuner.lineage"] = tag_value(lineage.exploits(trial))
        tags["raytuner.config"] = tag_value(json.dumps(new.config, default=str))
        if event.at - self._drawn >= LINEAGE_SECONDS:
            self._drawn = event.at
            self._draw_lineage()

    def _changing(self, phases: Sequence[Phase]) -> set[str]:
        """The parameters that may change while a trial trains, and those that did: the state that it copies brings its
        own along.
        """
        names = {name for phase in phases for name in phase.config}
        differ = {name for name in names if len({repr(phase.config.get(name)) for phase in phases}) > 1}
        return differ | set(self.details.mutated)

    def _settings(self, trial_id: str, names: Iterable[str], config: dict[str, Any], at: float, step: int) -> None:
        """What changes while a trial trains is no parameter to MLflow, where these never change: it is measured."""
        measured = dict(self.details.measure(name, config[name]) for name in sorted(names) if name in config)
        self._measure(trial_id, {f"config/{name}": value for name, value in measured.items()}, at, step)

    def _reported(self, event: Reported) -> None:
        self._measure(event.trial, dict(event.metrics), event.time or event.at, event.step)

    def _ended(self, event: TrialEnded) -> None:
        trial = self.state.trials[event.trial]
        # A paused trial may go on, so that its run does: only the end of the driver ends it.
        status = "interrupted" if trial.interrupted else event.status
        self._label(event.trial, status, event.reason, event.at if event.status in _ENDS else None)
        if trial.value is not None:
            # Names in a group: MLflow draws a chart for each, and what has but one point must not lie among the curves.
            best: dict[str, float | None] = {f"best/{self.state.metric}": trial.value, "best/step": trial.value_step}
            self._measure(event.trial, best, event.at, trial.step)
        if event.status in _ENDS:
            self._settings(event.trial, self._changing(trial.phases), trial.current, event.at, trial.step)
            if not trial.interrupted:
                self._measure(PARENT, {f"trials/{event.status}": self.state.count(event.status)}, event.at)
        if event.error:
            self._update(event.trial).tags["raytuner.error"] = _error(event.error)[-500:]
            text = "\n".join(str(part) for part in (event.error.get("traceback"), _error(event.error)) if part)
            self._attach(event.trial, Artifact("error.txt", text=text))

    def _used(self, event: Usage) -> None:
        """The devices' time, with the experiment's run; what each of them does, by its node and number."""
        usage = self.state.usage
        assert usage is not None
        if usage.total > 0:
            idle = {f"usage/idle_seconds_{reason}": seconds for reason, seconds in usage.idle.items()}
            parts = {"usage/busy_share": usage.busy / usage.total, "usage/trials_per_hour": self.state.trials_an_hour}
            self._measure(PARENT, {**parts, **idle}, event.at)
        for device in event.devices:
            name = f"device/{device['node']}-{device['gpu']}"
            self._measure(PARENT, {f"{name}-use": device["use"], f"{name}-GiB": device["memory"] / 2**30}, event.at)

    def _tested(self, event: Tested) -> None:
        best = self.state.best
        for run in (event.trial, PARENT) if best is not None and best.id == event.trial else (event.trial,):
            self._measure(run, {_test_key(name): value for name, value in event.metrics.items()}, event.at, event.step)
            if event.error:
                self._update(run).tags["raytuner.test_error"] = _error(event.error)[-500:]


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return "unknown"


def _test_key(name: str) -> str:
    return name if name.startswith("test") else f"test/{name}"


def _error(error: dict[str, Any]) -> str:
    return ": ".join(str(error[part]) for part in ("kind", "message") if error.get(part))


def _budget(budget: dict[str, Any]) -> str:
    trials, seconds = budget.get("trials"), budget.get("time")
    parts = [] if trials is None else [f"{trials} trials"]
    if seconds is not None:
        parts.append(f"{seconds:g} s")
    if budget.get("gpu_hours") is not None:
        parts.append(f"{budget['gpu_hours']:g} GPU-hours")
    return ", ".join(parts) or "the whole grid"


def _place(name: str, path: str) -> str:
    """Where a logged file goes: its name, with the file's own ending when it has none, and never outside."""
    parts = [part for part in name.split("/") if part not in {"", ".", ".."}]
    place = "/".join(parts) or Path(path).name
    return place if Path(place).suffix else place + Path(path).suffix
