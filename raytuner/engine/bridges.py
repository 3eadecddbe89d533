"""The two bridges to Ray Tune: the only SearchAlgorithm and the only TrialScheduler that it sees. Both are thin."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ray
from ray.tune import CheckpointConfig
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search.search_algorithm import SearchAlgorithm
from ray.tune.trainable import Trainable

from raytuner.engine.batch import Batch
from raytuner.engine.conductor import Conductor
from raytuner.engine.groups import PatientGroups
from raytuner.engine.job import NoStorage, SlotConfig
from raytuner.engine.slot import BATCH, Slot
from raytuner.training.trial import TrialSpec

__all__ = ["SchedulerBridge", "SearchBridge", "SlotTrainable", "SlotTrial"]

HOLD_SECONDS = (15.0, 60.0)
"""How long, at least and at most, a slot that is free waits for others that start, so as not to be handed the trial
that starts them; in between, twice as long as a start has taken. Where machines are so busy that one takes longer, each
trial would else end another's start, and there would never be more than one slot."""
THOUGHT_SECONDS = 0.1
"""How long to wait for a proposal, with nothing else to do, before looking whether all is to end."""
LOOK_SECONDS = 0.005
"""How long to wait for the one of two things, a proposal or news of a slot, before looking for the other."""


class SlotTrainable(Trainable):  # type: ignore[misc]  # Ray has no types
    """What the Tuner is given, since it insists on a Trainable; the actors are made of Slot."""


class SlotTrial(Trial):  # type: ignore[misc]  # Ray has no types
    """One attempt of ours as Ray Tune's trial, without what Ray Tune would do for the sake of its own records."""

    def __init__(self, spec: TrialSpec, *, job: str, resources: PlacementGroupFactory) -> None:
        self.attempt = spec.attempt
        self.name = spec.trial
        self.problem = ""
        super().__init__(
            Slot.__name__,
            trial_id=f"{spec.trial}-{spec.attempt}",
            config=SlotConfig(job=job, attempt=json.dumps(asdict(spec))),
            storage=NoStorage(),
            placement_group_factory=resources,
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            stub=True,  # no look-up of the trainable in the cluster's registry, a millisecond each
        )

    def set_ray_actor(self, ray_actor: Any) -> None:
        self.temporary_state.ray_actor = ray_actor  # and no call to ask for metrics that are made up

    def create_placement_group_factory(self) -> None:
        self.placement_group_factory = self._default_placement_group_factory

    def get_trainable_cls(self) -> type[Slot]:
        return Slot

    def init_local_path(self) -> None:
        """No folder of Ray Tune's own a trial."""

    def get_json_state(self) -> tuple[str, str]:
        return "{}", "{}"  # Ray Tune's snapshot is never read: the journal is the record

    def handle_error(self, exc: Exception | None = None) -> None:
        """Ray Tune would write files and pickle; the conductor records what counts."""
        self.problem = str(exc)

    @property
    def last_result(self) -> dict[str, Any]:
        return {"attempt": self.attempt}  # with an empty one, Ray Tune prints a line for every trial that ends

    def update_last_result(self, result: dict[str, Any]) -> None:
        """Keep nothing of a result."""

    def forget(self) -> None:
        """Free what a trial that has ended need not hold: Ray Tune keeps every trial for ever."""
        nothing: dict[str, Any] = {}
        self.config = self._Trial__unresolved_config = nothing
        self.evaluated_params = nothing


class SearchBridge(SearchAlgorithm):  # type: ignore[misc]  # Ray has no types
    """Hands Ray Tune the next attempt whenever a slot is free."""

    def __init__(
        self,
        conductor: Conductor,
        scheduler: SchedulerBridge,
        *,
        job: str,
        resources: Callable[[TrialSpec], PlacementGroupFactory],
    ) -> None:
        self._conductor = conductor
        self._scheduler = scheduler
        self._job = job
        self._resources = resources

    def __reduce__(self) -> Any:
        return object, ()  # the Tuner pickles itself for a restore, which is never made: the journal is the record

    def add_configurations(self, experiments: Any) -> None:
        """There is one experiment, and the conductor has it."""

    @property
    def total_samples(self) -> int:
        return self._conductor.plan.trials or 2**31

    def next_trial(self) -> SlotTrial | None:
        conductor, scheduler = self._conductor, self._scheduler
        spec = conductor.next(scheduler.held)
        while spec is None and conductor.thinking and not conductor.running and not scheduler.held:
            # Nobody has anything to say, and Ray Tune would sleep for a second.
            conductor.proposals.wait(THOUGHT_SECONDS)
            scheduler.tick()
            spec = conductor.next()
        if spec is None:
            return None
        return SlotTrial(spec, job=self._job, resources=self._resources(spec))

    def is_finished(self) -> bool:
        conductor = self._conductor
        return conductor.finished or not conductor.has_more

    def set_finished(self) -> None:
        self._conductor.stop("Ray Tune was told to stop", "interrupted")

    def on_trial_result(self, trial_id: str, result: Any) -> None:
        """The scheduler's bridge takes the results, in whose hands the decision is."""

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """As above."""

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Nothing: the journal is the record."""

    def has_checkpoint(self, dirpath: str) -> bool:
        return False

    def get_state(self) -> dict[str, Any]:
        return {}


def _take_ready_workers(controller: Any) -> None:
    """Have Ray Tune make its actors without an environment of their own, for which Ray would start a process each, two
    seconds of CPU, and leave those idle that it holds ready. A Ray that this driver started has the driver's anyway.
    """
    with contextlib.suppress(AttributeError):  # nothing but time is lost where another Ray keeps its classes elsewhere
        classes = controller._class_cache._cache
        if Slot not in classes:
            classes[Slot] = ray.remote(Slot)


class SchedulerBridge(TrialScheduler):  # type: ignore[misc]  # Ray has no types
    """Passes each batch to the conductor, and its decision back; ``on_tick`` is called several times a second."""

    def __init__(self, conductor: Conductor, on_tick: Callable[[], None], *, own_ray: bool = False) -> None:
        super().__init__()
        self._own_ray = own_ray
        self._conductor = conductor
        self.tick = on_tick
        self._coming: dict[SlotTrial, float | None] = {}
        """Trials that do not run yet, and since when an actor of their own starts, if one does."""
        self._longest_start = 0.0
        self._seen: set[str] = set()
        self._held: list[SlotTrial] = []
        self._reuse = True
        self._freed = False
        self._added = False
        self._listening = False
        self._groups = PatientGroups()

    @property
    def held(self) -> int:
        """Slots that are free, but wait."""
        return len(self._held)

    def __reduce__(self) -> Any:
        return object, ()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, controller: Any, trial: SlotTrial) -> None:
        if self._own_ray:
            _take_ready_workers(controller)
        if not self._listening:  # the first trial: Ray Tune has asked for nothing yet
            self._listening = True
            self._listen_to_both(controller)
            with contextlib.suppress(AttributeError):
                controller._actor_manager._resource_manager = self._groups
        self._added = True
        self._coming[trial] = None

    def on_trial_result(self, controller: Any, trial: SlotTrial, result: dict[str, Any]) -> str:
        self._seen.add(result["slot"])
        batch = Batch.loads(result[BATCH])
        if not self._conductor.take(batch, **json.loads(result["place"])):
            return str(TrialScheduler.CONTINUE)
        if (trial.name, trial.attempt) in self._conductor.left:
            controller._tune_controller._reuse_actors = False  # its node is going away
            self._reuse = False
            trial.forget()
            return str(TrialScheduler.STOP)
        self._look_at_starts(controller)
        if self._others_start() or self._freed:
            # Ray Tune hands a free actor to a trial whose own is still coming up, and drops that: where trials are
            # shorter than an actor's start, it would never have more than one. And it keeps one actor that nobody
            # asks for, not two: so one a round is let go, and none while the search thinks about the trial of the one
            # before; the others wait.
            self._held.append(trial)
            return str(TrialScheduler.NOOP)
        trial.forget()
        self._freed = True
        return str(TrialScheduler.STOP)

    def _look_at_starts(self, controller: Any) -> None:
        """Note whose actors have begun to start, and whose trials run."""
        now = time.monotonic()
        with contextlib.suppress(AttributeError):  # nothing but time is lost, as above
            manager, actors = controller._actor_manager, controller._tune_controller._trial_to_actor
            for trial, since in list(self._coming.items()):
                if trial.status != Trial.PENDING:
                    del self._coming[trial]
                    self._longest_start = max(self._longest_start, now - (since or now))
                elif since is None and trial in actors and manager.is_actor_started(actors[trial]):
                    self._coming[trial] = now

    def _others_start(self) -> bool:
        """Whether slots start that a free one had better not keep from it. Those for which there is no room yet, as
        others use the cluster too, have nothing to lose.
        """
        if len(self._seen) >= self._conductor.books.slots_now or self._conductor.books.waiting is not None:
            return False  # or what is free is what it waits for
        now, (least, most) = time.monotonic(), HOLD_SECONDS
        patience = min(max(least, 2 * self._longest_start), most)
        return any(since is not None and now - since < patience for since in self._coming.values())

    def _listen_to_both(self, controller: Any) -> None:
        """Have Ray Tune's wait for news of its slots, a tenth of a second in each round, end when the search has
        something for a slot that is free, and not begin when one was just let go.
        """
        with contextlib.suppress(AttributeError):  # nothing but time is lost, as above
            manager, conductor = controller._actor_manager, self._conductor
            wait: Callable[..., bool] = manager.next

            def wait_for_both(timeout: float) -> bool:
                if not conductor.thinking:
                    return wait(timeout=0 if self._freed else timeout)
                limit = time.monotonic() + timeout
                while not conductor.proposals.wait(LOOK_SECONDS) and time.monotonic() < limit:
                    if wait(timeout=LOOK_SECONDS):
                        return True
                return False

            manager.next = wait_for_both

    def choose_trial_to_run(self, controller: Any) -> None:
        """Called in every round of Ray Tune's loop. Which trial starts is left to Ray Tune."""
        self.tick()
        self._groups.sweep()
        if self._conductor.stopping is not None:
            for trial in [trial for trial in controller.get_live_trials() if trial.status == Trial.PENDING]:
                controller.stop_trial(trial)  # it has no slot that could be told to stop, and may never get one
        if not self._reuse:
            self._reuse = controller._tune_controller._reuse_actors = True
        freed = self._freed
        self._freed = freed and self._conductor.thinking and not self._added
        self._added = False
        self._look_at_starts(controller)
        if self._held and not freed and not self._others_start():
            trial = self._held.pop(0)
            controller.stop_trial(trial)
            trial.forget()
            self._freed = True

    def on_trial_error(self, controller: Any, trial: SlotTrial) -> None:
        self._coming.pop(trial, None)
        last = (trial.problem.strip().splitlines() or ["no reason given"])[-1]
        self._conductor.lost(trial.name, trial.attempt, f"its slot was lost: {last}")

    def on_trial_complete(self, controller: Any, trial: SlotTrial, result: Any) -> None:
        """Nothing: the conductor knows."""

    def on_trial_remove(self, controller: Any, trial: SlotTrial) -> None:
        self._coming.pop(trial, None)
        self._conductor.lost(trial.name, trial.attempt, "its slot was taken away")

    def debug_string(self) -> str:
        return "raytuner"
