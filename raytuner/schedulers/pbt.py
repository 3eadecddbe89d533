"""Population-based training: trials that fall behind go on from the best ones, with slightly other parameters.

Jaderberg, Dalibard, Osindero, Czarnecki, Donahue, Razavi, Vinyals, Green, Dunning, Simonyan, Fernando and Kavukcuoglu:
Population Based Training of Neural Networks, 2017.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field

from raytuner.components import Options
from raytuner.errors import Problem, SearchError
from raytuner.schedulers.base import Decision, Exploit, Resume, Scheduler, check_report
from raytuner.schedulers.perturbation import Perturbation
from raytuner.space import Config, Space

__all__ = ["PbtOptions", "PbtScheduler"]


class PbtOptions(Options):
    """Population-based training: who falls behind copies one of the best, and changes its parameters a little."""

    type: Literal["pbt"] = "pbt"
    """The kind of scheduler."""
    mutate: list[str] = Field(default_factory=list)
    """The parameters that may change while a trial trains, such as the learning rate. All others go with the state that
    is copied, since a state of another structure would not load."""
    population: int = Field(16, ge=2, le=100_000)
    """The trials, all of which train to the end."""
    perturbation_interval: int = Field(1, ge=1, le=10**9)
    """Steps between two decisions on a trial, each with a checkpoint."""
    burn_in: int = Field(0, ge=0, le=10**9)
    """Steps before which nobody copies anybody."""
    exploit: Literal["truncation", "tournament"] = "truncation"
    """``truncation``: the worst ``quantile`` copy one of the best ``quantile``. ``tournament``: each trial looks at
    another one, drawn at random, and copies it if that is better."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """The share of the population that is worst, and that is best."""
    resample_probability: float = Field(0.25, ge=0, le=1)
    """The chance of a parameter to be drawn anew, and not just to change a little."""
    factor: float = Field(1.2, gt=1, le=100)
    """A logarithmic number is multiplied or divided by this; another moves by (factor - 1) / 2 of its range."""
    synchronous: bool = False
    """Whether all wait for the last one at each decision."""


@dataclass
class Member:
    """A trial of the population."""

    config: Config
    number: int
    baseline: bool = False
    values: dict[int, float] = field(default_factory=dict)
    """What it reported at its deciding steps."""
    since: int = 0
    """Its step when it copied somebody: what it reported up to then was another state's."""
    status: Literal["training", "waiting", "finished", "gone"] = "training"
    """``gone``: failed or stopped, and compared with nobody any more."""

    @property
    def waiting(self) -> bool:
        return self.status == "waiting"

    @property
    def step(self) -> int:
        """Its last deciding step; 0 before the first."""
        return max(self.values, default=0)


@dataclass(frozen=True)
class Verdict:
    """What becomes of a member: it waits, copies somebody, or goes on."""

    reason: str
    waits: bool = False
    exploit: Exploit | None = None


class PbtScheduler(Scheduler):
    """Population-based training, in which trials of one population are compared at the same step.

    A trial at deciding step s is compared by what it reported there, with all that have reported there too. One that
    came before the others is compared at its next deciding step, by what all reported at s: so values of different
    steps are never compared, and nobody waits for the slowest.

    ``truncation``: of n that are compared, ``floor(quantile * n)`` are the worst, and as many the best. One of the
    worst goes on from the latest checkpoint of one of the best, drawn at random, at that checkpoint's step, with its
    configuration, of which the ``mutate`` parameters have changed (``Perturbation``). That step is never before its
    own: when the best have not come as far, it waits for them.

    ``tournament`` (the paper's binary tournament): it copies another, drawn from all that have come as far, if that was
    better.

    With fewer slots than members, each trains for an interval and makes room for those that are behind; who paused is
    judged when it goes on, by all that is known then. ``synchronous``: everybody waits at each deciding step for all
    others, and then all are judged at once, from their checkpoints at this step.

    The defaults, if there are any, are trained as they are: the others may copy them, they copy nobody.
    """

    Options = PbtOptions
    spares = False
    pauses = True
    compares = "last"

    def __init__(self, options: PbtOptions, *, max_steps: int | None, seed: int) -> None:
        super().__init__(options, max_steps=max_steps, seed=seed)
        if max_steps is None or max_steps <= options.perturbation_interval:
            rule = "pbt needs objective.max_steps above scheduler.perturbation_interval"
            got = f"max_steps={max_steps}, perturbation_interval={options.perturbation_interval}"
            raise SearchError(str(Problem("scheduler", rule, got, "set max_steps, or decide more often")))
        if options.exploit == "truncation" and self._share(options, options.population) < 1:
            rule = "at least one trial must be among the best, which is floor(quantile * population)"
            got = f"quantile={options.quantile:g}, population={options.population}"
            raise SearchError(str(Problem("scheduler", rule, got, "raise one of them")))
        self.settings = options
        self.most_trials = options.population
        self._interval = options.perturbation_interval
        self._steps = range(self._interval, max_steps, self._interval)
        self._members: dict[str, Member] = {}
        self._reported: dict[int, list[tuple[float, int, str]]] = {}
        """What is compared at each step, best first: value, number, trial; of equals, the older member is first."""
        self._perturb: Perturbation | None = None
        self._released: list[str] = []  # of those that met at a step, who has not gone on yet
        self._verdicts: dict[str, Verdict] = {}

    def use(self, space: Space) -> None:
        options = self.settings
        if not options.mutate:
            rule = "pbt must know which parameters may change while a trial trains"
            remedy = f"name some of {', '.join(space.names)}, but none that the shape of the model hangs on"
            raise SearchError(str(Problem("scheduler.mutate", rule, "none", remedy)))
        for name in options.mutate:
            if name not in space.names:
                rule, remedy = "must name parameters of the space", f"use some of {', '.join(space.names)}"
                raise SearchError(str(Problem("scheduler.mutate", rule, repr(name), remedy)))
        self._perturb = Perturbation(
            space, options.mutate, factor=options.factor, resample=options.resample_probability
        )

    def decision_steps(self) -> tuple[int, ...]:
        return tuple(self._steps)

    def decides_at(self, step: int) -> bool:
        return step in self._steps

    def on_start(self, trial_id: str, config: Config, *, baseline: bool = False) -> None:
        known = self._members.get(trial_id)
        if known is None:
            self._members[trial_id] = Member(dict(config), len(self._members), baseline)
        else:
            known.config = dict(config)

    def on_report(self, trial_id: str, step: int, value: float) -> Decision:
        check_report(trial_id, step, value)
        member = self._members[trial_id]
        member.status = "training"  # also if it had ended: a retry
        self._enter(trial_id, step, value)
        if self.settings.synchronous:
            member.status = "waiting"
            return Decision("pause", f"step {step}: waits for the others")
        if self._others_wait(step):
            member.status = "waiting"
            return Decision("pause", f"step {step}: makes room for those that are behind")
        verdict = self._judge(trial_id)
        if verdict.waits:
            member.status = "waiting"
            return Decision("pause", verdict.reason)
        if verdict.exploit is None:
            return Decision("continue", verdict.reason)
        self._copied(member, verdict.exploit)
        return Decision("exploit", verdict.reason, verdict.exploit)

    def on_end(self, trial_id: str, status: str) -> None:
        member = self._members[trial_id]
        member.status = "finished" if status == "finished" else "gone"
        if member.status == "gone":
            for step in list(member.values):
                self._remove(trial_id, step)
        self._released = [name for name in self._released if name != trial_id]

    def next_to_resume(self, *, fresh: bool = False) -> Resume | None:
        if fresh and len(self._members) < self.settings.population:
            return None
        if self.settings.synchronous:
            return self._released_next()
        waiting = self._waiting()
        judged = [(name, verdict) for name in waiting if not (verdict := self._judge(name)).waits]
        if judged:
            # Of those that are furthest behind, who copies goes first, while whom it copies still waits beside it.
            least = self._members[judged[0][0]].step
            copying = [found for found in judged if found[1].exploit and self._members[found[0]].step == least]
            return self._resume(*(copying or judged)[0])
        if waiting and not self._training():
            return self._resume(waiting[0], Verdict("nobody better has come as far"))
        return None

    def expected_rungs(self, trials: int) -> list[tuple[int, float]]:
        return [(self.max_steps or 0, float(trials))]

    def state_dict(self) -> dict[str, Any]:
        members = {
            name: {**vars(member), "values": list(member.values.items())} for name, member in self._members.items()
        }
        verdicts = {
            name: [verdict.reason, verdict.exploit and [verdict.exploit.source, verdict.exploit.config]]
            for name, verdict in self._verdicts.items()
        }
        return {"members": members, "released": list(self._released), "verdicts": verdicts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"members", "released", "verdicts"}:
            raise SearchError(str(Problem("scheduler", "a state must be one of pbt's", f"{sorted(state)}", "use it")))
        self._members = {
            name: Member(**{**fields, "values": {int(step): value for step, value in fields["values"]}})
            for name, fields in state["members"].items()
        }
        self._reported = {}
        for name, member in self._members.items():
            if member.status != "gone":
                for step, value in member.values.items():
                    insort(self._reported.setdefault(step, []), (value, member.number, name))
        self._released = list(state["released"])
        self._verdicts = {
            name: Verdict(reason, exploit=Exploit(*exploit) if exploit else None)
            for name, (reason, exploit) in state["verdicts"].items()
        }

    # -- who waits ------------------------------------------------------------------------------------------------

    def _waiting(self) -> list[str]:
        """The paused trials, those that are furthest behind first."""
        found = [(member.step, member.number, name) for name, member in self._members.items() if member.waiting]
        return [name for _, _, name in sorted(found)]

    def _training(self) -> bool:
        return any(member.status == "training" for member in self._members.values())

    def _others_wait(self, step: int) -> bool:
        """Whether the slot of a trial at this step is wanted by one that is behind, or not there yet."""
        missing = len(self._members) < self.settings.population
        return missing or any(member.waiting and member.step < step for member in self._members.values())

    def _released_next(self) -> Resume | None:
        """The next of those that have met at a step, once all have been judged there."""
        if not self._released and not self._training():
            waiting = self._waiting()
            self._verdicts = {name: self._judge(name) for name in waiting}
            # Who copies goes before whom it copies, while that has not trained on: the worst first.
            copying = [name for name in waiting if self._verdicts[name].exploit]
            copying.sort(key=lambda name: -self._members[name].values[self._members[name].step])
            self._released = [*copying, *(name for name in waiting if name not in copying)]
        if not self._released:
            return None
        name = self._released.pop(0)
        return self._resume(name, self._verdicts.pop(name))

    def _resume(self, name: str, verdict: Verdict) -> Resume:
        member = self._members[name]
        member.status = "training"
        if verdict.exploit is not None:
            self._copied(member, verdict.exploit)
        return Resume(name, verdict.reason, verdict.exploit)

    @staticmethod
    def _copied(member: Member, exploit: Exploit) -> None:
        member.config, member.since = dict(exploit.config), member.step

    # -- who copies whom --------------------------------------------------------------------------------------------

    def _judge(self, trial_id: str) -> Verdict:
        """What becomes of a trial at its last deciding step, by all that is known now."""
        member = self._members[trial_id]
        step = member.step
        if step < self.settings.burn_in:
            return Verdict(f"step {step}: nobody copies anybody before step {self.settings.burn_in}")
        rivals, at = self._reported[step], step
        earlier = step - self._interval
        known = earlier > member.since and earlier in member.values
        if known and len(self._reported[earlier]) > len(rivals):
            rivals, at = self._reported[earlier], earlier
        place = bisect_left(rivals, (member.values[at], member.number, trial_id)) + 1
        said = f"step {at}: {place} of {len(rivals)}"
        if member.baseline:
            return Verdict(f"{said}; the defaults go on as they are, as the baseline")
        rng = np.random.default_rng([self.seed, member.number, step])
        if self.settings.exploit == "tournament":
            others = [name for _, _, name in rivals if name != trial_id and self._is_source(name, step)]
            if not others:
                return Verdict(f"{said}, and nobody to compare with has come as far")
            other = others[int(rng.integers(len(others)))]
            if [name for _, _, name in rivals].index(other) >= place:
                return Verdict(f"{said}, better than {other}")
            return self._copy(other, f"{said}, worse than {other}", rng)
        count = self._share(self.settings, len(rivals))
        if place <= len(rivals) - count:
            return Verdict(f"{said}, not among the worst {count}")
        best = [name for _, _, name in rivals[:count] if self._members[name].status in ("training", "waiting")]
        sources = [name for name in best if self._is_source(name, step)]
        if sources:
            source = sources[int(rng.integers(len(sources)))]
            return self._copy(source, f"{said}, among the worst {count}", rng)
        if best:
            return Verdict(f"{said}, among the worst {count}: waits until one of the best has come as far", waits=True)
        return Verdict(f"{said}, among the worst {count}, and the best have ended")

    def _enter(self, trial_id: str, step: int, value: float) -> None:
        """Write down what a trial reported; a step that was trained again counts once."""
        member = self._members[trial_id]
        if step in member.values:
            self._remove(trial_id, step)
        member.values[step] = value
        insort(self._reported.setdefault(step, []), (value, member.number, trial_id))

    def _remove(self, trial_id: str, step: int) -> None:
        member, entries = self._members[trial_id], self._reported[step]
        entry = (member.values[step], member.number, trial_id)
        if entry in entries:
            entries.remove(entry)

    def _is_source(self, name: str, step: int) -> bool:
        """Whether a trial has a checkpoint of this step or a later one, and trains on itself."""
        member = self._members[name]
        return member.step >= step and member.status in ("training", "waiting")

    def _copy(self, source: str, why: str, rng: np.random.Generator) -> Verdict:
        assert self._perturb is not None, "told of the space first"
        config = self._perturb(self._members[source].config, rng)
        return Verdict(f"{why}: goes on from {source}", exploit=Exploit(source, config))

    @staticmethod
    def _share(options: PbtOptions, count: int) -> int:
        return int(options.quantile * count + 1e-9)
