"""What the bridges to Ray Tune stand on: which trial runs next, what becomes of it, and what is recorded. No Ray here.

Every fact goes to the journal first; the state that decisions are made on is the journal, folded.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

from raytuner.engine.batch import Batch
from raytuner.engine.earlier import Earlier, cut_off
from raytuner.engine.needs import Books, larger_share
from raytuner.engine.proposals import Proposals
from raytuner.engine.shelf import Shelf
from raytuner.engine.upkeep import Upkeep
from raytuner.engine.usage import Occupancy
from raytuner.errors import JournalError, PlanError, SpaceError
from raytuner.journal import (
    CheckpointRemoved,
    CheckpointWritten,
    Decided,
    Event,
    ExperimentState,
    Exploited,
    Extended,
    Folder,
    JournalWriter,
    Logged,
    Measured,
    Reported,
    Retried,
    TrialAsked,
    TrialEnded,
    TrialStarted,
    TrialState,
)
from raytuner.journal.snapshot import save_snapshot, worth_saving
from raytuner.journal.state import EXPLOIT, INTERRUPTED, USED_UP, failure_way
from raytuner.plan import Needs, Plan
from raytuner.schedulers import Decision, Exploit
from raytuner.search import Observation, Search, Status
from raytuner.training.trial import TrialSpec

__all__ = ["GOING_AWAY", "LOST_ATTEMPTS", "NOT_ITS_FAULT", "Conductor"]

LOST_ATTEMPTS = 3
"""How often a trial is started again after it was lost without another step done in between, in one driver's time."""
NOT_ITS_FAULT = ("lost", "disk", "killed")
"""Kinds of errors after which a trial starts again."""
GOING_AWAY = "its node is going away"
SHOWN_CHARACTERS = 300
"""How much of a long error is told where its trial's log has all of it."""
AHEAD_SLOTS = 4
"""Slots from which on a proposal is prepared before one is free: with three trials under way, of which the search does
not know the end either, one more changes little. With one slot, each proposal knows all trials before."""


class Conductor:
    """Runs the search and the scheduler of one driver's time, and keeps the record."""

    def __init__(
        self,
        plan: Plan,
        folder: Folder,
        journal: JournalWriter,
        state: ExperimentState,
        shelf: Shelf | None = None,
    ) -> None:
        self.plan = plan
        self.experiment = plan.experiment
        self.folder = folder
        self.state = state
        self.proposals = Proposals(plan.build_search())
        self.scheduler = plan.build_scheduler()
        self.stopping: str | None = None
        """Why no trial is started any more, once something has ended the experiment."""
        self.stop_status = "finished"
        self.books = Books(plan, state)
        self.usage = Occupancy(self.books)
        self.thinking = False
        """Whether ``next`` gave none only because the search still thinks about it."""
        self.warnings: list[str] = []
        self.fatal: str | None = None
        """Why going on makes no sense, such as a training module that cannot be imported."""
        self.unwritable: JournalError | None = None
        """Why the record could not be kept any more; Ray Tune makes text of what it is told."""
        self._journal = journal
        self._snapshot_at = 0  # how many events of this driver the last snapshot has
        self.torn = False
        """Whether earlier drivers left torn lines, of which only a reader tells."""
        self._sign = -1.0 if self.experiment.objective.mode == "max" else 1.0
        self._running: dict[str, int] = {}
        self._queue: deque[str] = deque()
        self._interrupted: set[str] = set()
        self._decided: dict[str, int] = {}  # the last step of a trial at which was decided
        self._unfollowed: dict[str, Decided] = {}  # pauses and stops whose trial's end is not on record
        self._exploits: dict[str, Exploit] = {}  # decided, and not carried out yet
        self._lost: dict[str, tuple[int, int]] = {}  # how often, since which step
        self._nodes: dict[str, frozenset[str]] = {}  # where the processes of a running trial are
        self._leaving: set[str] = set()  # trials on nodes that are going away
        self.left: set[tuple[str, int]] = set()
        """Attempts that have ended on a node that is going away: their slots are of no use any more."""
        self._users = 0  # trials that were asked for by hand
        self._highest = 0  # the number of the last trial
        self._decides = self._deciding_steps()
        self._clock: float | None = None  # begins with the first trial
        self._upkeep = Upkeep(
            folder,
            state,
            self.record,
            lambda text: self.warnings.append(text),
            disk=self.experiment.checkpoints.disk,
            keep=self.experiment.checkpoints.trials,
            shelf=shelf,
        )

    # -- starting, and starting again ---------------------------------------------------------------------------

    def replay(self, events: Iterable[Event]) -> None:
        """Take earlier drivers' events into state, search and scheduler, as if this driver had seen them.

        What came before search and scheduler began anew is told to them afterwards, as it stood then.
        """
        events = list(events)
        anew = [number for number, event in enumerate(events) if isinstance(event, Extended) and event.anew]
        if anew:
            self._replay_earlier(events[: anew[-1] + 1])
            del events[: anew[-1] + 1]
        undone = _undone_ends(events)
        for number, event in enumerate(events):
            self.state.apply(event)
            match event:
                case TrialAsked():
                    self._count(event)
                    if event.source == "user":
                        self._tell_of_users(event.trial)
                    else:
                        self.proposals.asked(event.trial, event.config, event.known)
                    self._start(event)
                case Extended():
                    for trial in event.retried:
                        self._tell_of_users(trial)
                        self._start(self.state.trials[trial])
                case Exploited():
                    self._exploits.pop(event.trial, None)
                    self.scheduler.on_start(event.trial, event.config)
                case Retried():
                    self._interrupted.add(event.trial)
                case TrialStarted():
                    self._interrupted.discard(event.trial)
                case Decided(action="resume"):
                    resumed = self.scheduler.next_to_resume()
                    if resumed is not None and resumed.exploit is not None:
                        self._exploits[event.trial] = resumed.exploit
                    self._interrupted.add(event.trial)  # until it has started
                case Decided(action="keep"):
                    self._exploits.pop(event.trial, None)
                    self.scheduler.on_start(event.trial, self.state.trials[event.trial].current)
                case Decided() if event.value is not None:
                    decision = self.scheduler.on_report(event.trial, event.step, self._sign * event.value)
                    if event.action == "exploit" and decision.exploit is not None:
                        self._exploits[event.trial] = decision.exploit
                    self._decided[event.trial] = event.step
                    if event.action == "continue":
                        self._tell(self.state.trials[event.trial], "running")
                    else:
                        self._unfollowed[event.trial] = event
                case TrialEnded():
                    self._unfollowed.pop(event.trial, None)
                    self._interrupted.discard(event.trial)
                    if event.reason.startswith(INTERRUPTED) or number in undone:
                        self._interrupted.add(event.trial)
                    else:
                        if event.trial in self._exploits:
                            self._interrupted.add(event.trial)  # until it has started from there
                        self._learn_end(self.state.trials[event.trial])
                case _:
                    pass
        self.proposals.settled()

    def _replay_earlier(self, events: list[Event]) -> None:
        earlier = Earlier(self.state)
        for event in events:
            self.state.apply(event)
            earlier.take(event)
            if isinstance(event, TrialAsked):
                self._count(event)
        extended = events[-1]
        assert isinstance(extended, Extended)
        self._interrupted.update(earlier.hand_over(extended, self.proposals, self.scheduler))
        self._interrupted.update(trial.id for trial in self.state.trials.values() if cut_off(trial))

    def _count(self, event: TrialAsked) -> None:
        self._users += event.source == "user"
        self._highest = max(self._highest, int(event.trial))

    def _tell_of_users(self, trial_id: str) -> None:
        """Tell the search of a trial that is under way though it did not ask for it."""
        config = self.state.trials[trial_id].config
        self.proposals.tell(Observation(trial_id, config, step=0, value=None, status="pending"))

    def take_over(self) -> None:
        """Queue what the driver before left unfinished. Call it once this driver's start is on record."""
        with self._upkeep.shelf.at_once():
            for trial in self.state.trials.values():
                if trial.status in ("running", "pending") or trial.id in self._interrupted:
                    self._upkeep.fence(trial, trial.attempt + 2)
                    self._take_up(trial)
                    trial.attempt += 1  # one that was handed out as its driver died may be at work without a record
        self._promote()

    def _take_up(self, trial: TrialState) -> None:
        """Queue a trial whose attempt was cut off, after doing what was to be done about it when that happened."""
        decided = self._unfollowed.pop(trial.id, None)
        if decided is not None:
            self._follow(trial, trial.attempt, decided)
            return
        self._exploit(trial)
        self._upkeep.recover(trial)
        newest = trial.last_checkpoint
        at_rung = newest is not None and newest.step == trial.step and self.scheduler.decides_at(trial.step)
        # It would go on after the deciding step, and not ask again.
        if not (at_rung and self._decide(trial, trial.attempt, trial.step)):
            self._queue.append(trial.id)

    def _deciding_steps(self) -> tuple[int, ...] | None:
        steps = self.scheduler.decision_steps()
        most = self.experiment.objective.max_steps
        if most is not None and len(steps) >= most - 1 > 1000:
            return None  # every step: said shorter
        return tuple(steps)

    # -- what runs next -------------------------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """Trials that run at the same time, at most."""
        return self.books.slots

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def search(self) -> Search:
        """The search, once it knows all that is to be known: this waits for it."""
        return self.proposals.settled()

    def next(self, held: int = 0) -> TrialSpec | None:
        """The next attempt to start, or None while there is none, or no slot for it, or the search thinks about it.

        held: slots that are free, but wait. Raises what the search has raised.
        """
        self.thinking = False
        if self.stopping is not None or len(self._running) + held >= self.slots or self.books.waiting is not None:
            return None
        if not self._upkeep.has_room():
            return None
        while (trial := self._next_trial()) is not None:
            if self.stopping is not None:  # it was to copy, and there is nothing to copy
                return None
            spec = self._attempt(trial)
            if spec is not None:
                return spec
        return None

    def _next_trial(self) -> TrialState | None:
        if self._queue:
            return self.state.trials[self._queue.popleft()]
        return self._resume() or self._ask()

    def _resume(self) -> TrialState | None:
        """The paused trial that goes on next, if there is one."""
        resumed = self.scheduler.next_to_resume(fresh=self._next_id is not None and not self.proposals.spent)
        if resumed is None:
            return None
        trial = self.state.trials[resumed.trial_id]
        self.record(Decided(trial=trial.id, step=trial.step, action="resume", reason=resumed.reason))
        if resumed.exploit is not None:
            self._exploits[trial.id] = resumed.exploit
            self._exploit(trial)
        return trial

    def _exploit(self, trial: TrialState) -> None:
        """Have a trial go on from where the scheduler said, if it said so: its next attempt begins there."""
        exploit = self._exploits.pop(trial.id, None)
        if exploit is None:
            return
        source = self.state.trials[exploit.source]
        phase = len(source.phases) - 1
        step = self._upkeep.adopt(trial, source)
        if step is None:
            if not any(other.checkpoints for other in self.state.trials.values()):
                self._nothing_to_copy(trial, source)
                return
            reason = f"no checkpoint of {source.id} could be used; it goes on as it was"
            self.warnings.append(f"trial {trial.id}: {reason}")
            self.scheduler.on_start(trial.id, trial.current)
            self.record(Decided(trial=trial.id, step=trial.step, action="keep", reason=reason))
            return
        self.record(
            Exploited(
                trial=trial.id,
                step=trial.step,
                source=source.id,
                source_step=step,
                source_phase=phase,
                config=exploit.config,
            )
        )

    def _nothing_to_copy(self, trial: TrialState, source: TrialState) -> None:
        """End the experiment: without a state to go on from, it would be a random search by another name."""
        whose = "its own" if source is trial else f"trial {source.id}'s"
        self._give_up_all(
            f"trial {trial.id} was to go on from {whose} checkpoint after step {trial.step} with other parameters, and "
            "no trial writes any; have the training function loop over trial.steps(model=model, optimizer=optimizer), "
            "with all that makes up its state, or write it with trial.checkpoint_dir() (in Ray Tune code: "
            "report(..., checkpoint=...))"
        )

    def _promote(self) -> None:
        """With nothing at work and nothing queued, a paused trial that may go on is all that is left to do: find it
        now, so that nobody takes the experiment for finished.
        """
        if not self._running and not self._queue and self.stopping is None:
            resumed = self._resume()
            if resumed is not None:
                self._queue.append(resumed.id)

    def _ask(self) -> TrialState | None:
        trial_id = self._next_id
        if trial_id is None:
            return None
        proposal = self.proposals.take(trial_id)
        if proposal is None:
            self.thinking = self.proposals.asking
            return None
        first = "replay" if self.experiment.replay is not None else "defaults"
        source = first if self.experiment.defaults and not self.state.trials else "search"
        asked = TrialAsked(
            trial=trial_id, config=proposal.config, source=source, known=proposal.known, why=proposal.why
        )
        self.record(asked)
        self._count(asked)
        self._start(asked)
        following = self._next_id
        if self.slots >= AHEAD_SLOTS and following is not None:
            self.proposals.prepare(following)
        return self.state.trials[trial_id]

    def _start(self, asked: TrialAsked | TrialState) -> None:
        """Tell the scheduler of a new trial."""
        trial_id = asked.trial if isinstance(asked, TrialAsked) else asked.id
        self.scheduler.on_start(trial_id, asked.config, baseline=asked.source == "defaults")

    @property
    def _next_id(self) -> str | None:
        """The id of the next new trial; None when the budget has no more."""
        number, limit = len(self.state.trials) - self._users, self.plan.trials
        if limit is not None and number >= limit:
            return None
        return self.proposals.asked_for or f"{self._highest + 1:06d}"

    def enqueue(self, config: dict[str, Any]) -> str:
        """Have a configuration of the user's tried next, beside the budget's trials; the new trial's id.

        Raises SpaceError when it does not lie in the space.
        """
        problems = self.plan.space.problems(config)
        if problems:
            raise SpaceError(problems)
        trial_id = f"{max(self._highest, int(self.proposals.asked_for or 0)) + 1:06d}"
        asked = TrialAsked(trial=trial_id, config=config, source="user", why="asked for by hand")
        self.record(asked)
        self._count(asked)
        self._tell_of_users(trial_id)
        self._start(asked)
        self._queue.append(trial_id)
        return trial_id

    def try_asked(self, config: dict[str, Any]) -> None:
        """``enqueue``, for a request that nobody waits for any more: a warning says where it cannot be done."""
        try:
            self.enqueue(config)
        except SpaceError as error:
            self.warnings.append(f"a configuration that was asked for cannot be tried: {error}")

    def _attempt(self, trial: TrialState) -> TrialSpec | None:
        """The next attempt of a trial; None when it can never run, which is on record then."""
        attempt = trial.attempt + 1
        try:
            needs = self.books.start(trial)
        except PlanError as problem:
            self._running[trial.id] = attempt
            error = {"kind": "resources", "message": str(problem), "traceback": ""}
            self._ended(trial, attempt, status="failed", reason=str(problem), step=trial.step, error=error)
            return None
        self._running[trial.id] = attempt
        return self._spec(trial, attempt, needs)

    def _spec(self, trial: TrialState, attempt: int, needs: Needs) -> TrialSpec:
        experiment = self.experiment
        objective, policy = experiment.objective, experiment.checkpoints
        newest = sorted(trial.checkpoints.values(), key=lambda c: (c.step, c.attempt), reverse=True)
        return TrialSpec(
            trial=trial.id,
            attempt=attempt,
            config=trial.current,
            seed=self.plan.trial_seed(trial.id),
            dir=str(self.folder.trial(trial.id)),
            metric=objective.metric,
            mode=objective.mode,
            select=objective.select,
            max_steps=objective.max_steps,
            decides=self._decides,
            pauses=self.scheduler.pauses,
            checkpoints=tuple(c.path for c in newest),
            deadline=self._deadline(),
            policy={
                "best": policy.best,
                "every_steps": policy.every_steps,
                "every_time": policy.every_time,
                "keep": policy.keep,
            },
            cpus=needs.cpu,
            gpu=needs.gpu,
            world_size=needs.workers,
            best=(trial.value, trial.value_step) if trial.value is not None else None,
            earlier_seconds=trial.seconds,
        )

    def spec_for_test(self, trial: TrialState, checkpoint: str) -> TrialSpec:
        """The spec under which the test function sees a checkpoint of a trial: in one process."""
        spec = self._spec(trial, trial.attempt + 1, replace(self.books.needs(trial), workers=1))
        folder = self.folder.trial(trial.id) / "test"
        return replace(spec, config=trial.config, checkpoints=(checkpoint,), dir=str(folder), decides=(), deadline=None)

    def _deadline(self) -> float | None:
        limit = self.experiment.budget.time
        return None if limit is None else time.time() + limit - self.time_used

    @property
    def time_used(self) -> float:
        """Seconds in which drivers were at work, this one included, each from its first trial's start."""
        return self.state.elapsed + (time.monotonic() - self._clock if self._clock is not None else 0.0)

    @property
    def finished(self) -> bool:
        """Nothing runs and nothing will."""
        return not self._running and (self.stopping is not None or not self.has_more)

    @property
    def has_more(self) -> bool:
        """Whether ``next`` may yet give an attempt, now or after what runs has reported."""
        if self.stopping is not None:
            return False
        if self._queue or (self.scheduler.pauses and self._running):
            return True
        exhausted = self.proposals.spent and not self._running
        return not exhausted and self._next_id is not None

    # -- what becomes of it -----------------------------------------------------------------------------------------

    def take(self, batch: Batch, **place: Any) -> bool:
        """Record a batch and decide; True when the attempt has ended (its slot is free).

        place: ``node``, ``gpus`` and ``ranks``, as the record of a start has them, and ``nodes``, by Ray's names.
        """
        if self._running.get(batch.trial) != batch.attempt:
            return True  # an attempt that was given up: whatever it still says does not count
        self._nodes[batch.trial] = frozenset(place.pop("nodes", ()))
        trial = self.state.trials[batch.trial]
        for message in batch.messages:
            self._message(batch, message, place)
        if batch.end is not None:
            self._ended(trial, batch.attempt, **batch.end)
        elif batch.decide is None or not self._decide(trial, batch.attempt, batch.decide):
            return False
        self._promote()
        return True

    def _message(self, batch: Batch, message: dict[str, Any], place: dict[str, Any]) -> None:
        ids: dict[str, Any] = {"trial": batch.trial, "attempt": batch.attempt}
        match message.pop("m"):
            case "report":
                self.record(Reported(**ids, **message))
            case "devices":
                self.usage.devices[place["node"]] = message["devices"]
            case "memory":
                self.record(Measured(**ids, **message))
                self.books.measured()
            case "started":
                self._clock = self._clock or time.monotonic()
                needs = self.books.started(batch.trial)
                self.record(TrialStarted(**ids, **message, **place, cpu=needs.cpu, gpu=needs.gpu))
            case "checkpoint":
                self.record(CheckpointWritten(**ids, **message))
                self._upkeep.retire()
            case "removed":
                self.record(CheckpointRemoved(trial=batch.trial, path=message["path"]))
                self._upkeep.shelf.removed(message["path"])
            case "logged":
                self.record(Logged(**ids, **message))
            case "warning":
                self.warnings.append(message["text"])
            case other:
                raise AssertionError(f"a slot sent a message of the unknown kind {other!r}")

    def _decide(self, trial: TrialState, attempt: int, step: int) -> bool:
        """Ask the scheduler, and do as it says; True when the attempt has ended with that."""
        if self._decided.get(trial.id, 0) >= step:
            return False  # trained again after a loss: decided long since
        value = trial.last[self.state.metric] if self.scheduler.compares == "last" else trial.value
        assert value is not None, "a report with a finite objective comes before every question"
        decision = self.scheduler.on_report(trial.id, step, self._sign * value)
        if decision.action == "stop" and trial.source == "defaults":
            # They are what the best is compared with: half a baseline would flatter it.
            decision = Decision("continue", f"{decision.reason}; the defaults go on all the same, as the baseline")
        if decision.exploit is not None:
            self._exploits[trial.id] = decision.exploit
        decided = Decided(trial=trial.id, step=step, action=decision.action, reason=decision.reason, value=value)
        self._decided[trial.id] = step
        self.record(decided)
        if decision.action == "continue":
            self._tell(trial, "running")
            return False
        self._follow(trial, attempt, decided)
        return True

    def _follow(self, trial: TrialState, attempt: int, decided: Decided) -> None:
        status = "stopped" if decided.action == "stop" else "paused"
        self._leave(trial.id)
        self.record(
            TrialEnded(trial=trial.id, attempt=attempt, status=status, step=decided.step, reason=decided.reason)
        )
        self._learn_end(trial)
        if decided.action == "exploit":
            self._exploit(trial)
            self._queue.appendleft(trial.id)
        self._upkeep.retire()

    def _ended(
        self,
        trial: TrialState,
        attempt: int,
        *,
        status: str,
        reason: str,
        step: int,
        error: dict[str, Any] | None,
    ) -> None:
        leaving = trial.id in self._leaving
        needs = self._leave(trial.id)
        if leaving and status == "stopped" and self.stopping is None:
            self.record(Retried(trial=trial.id, attempt=attempt, step=step, reason=GOING_AWAY))
            self._take_up(trial)
            return
        if error is not None and error["kind"] == "disk":
            self._upkeep.say_room(False)  # and look again before it starts once more
        if error is not None and error["kind"] in NOT_ITS_FAULT:
            self._given_up(trial, attempt, error["message"], error)
            return
        if error is not None and error["kind"] == "gpu_memory" and needs is not None and 0 < needs.gpu < 1:
            self._give_more(trial, attempt, needs.gpu, error["message"])
            return
        interrupted = status == "stopped" and self.stopping is not None and self.stop_status != "finished"
        if interrupted:
            reason = f"{INTERRUPTED}: {reason}"
        event = TrialEnded(trial=trial.id, attempt=attempt, status=status, step=step, reason=reason, error=error)
        self.record(event)
        if not interrupted:  # it goes on some day: search and scheduler have nothing to learn from that
            self._learn_end(trial)
        self._upkeep.retire()
        if error is not None and error["kind"] == "import":
            self._give_up_all(reason)
        elif error is not None and error["kind"] == "checkpoint" and self._began_elsewhere(trial):
            now = trial.phases[-1]
            source = self.state.trials[now.source]
            theirs = source.phases[now.source_phase].config
            names = _structural(now.config, theirs, reason)
            self._give_up_all(
                f"trial {trial.id}: a state of trial {source.id} does not load with other values of "
                f"{', '.join(names)}; take out of scheduler.mutate what the shape of the model hangs on "
                f"({' '.join(reason.split())[:SHOWN_CHARACTERS]})"
            )
        elif error is not None:
            self._all_the_same()

    def _all_the_same(self) -> None:
        """Give up when the first trials have all failed, and in the same way: so would the others."""
        ended = [trial for trial in self.state.trials.values() if trial.status not in ("pending", "running")]
        enough = self.experiment.give_up_after
        if enough is None or len(ended) < enough:
            return
        if len({(trial.status, failure_way(trial.error)) for trial in ended}) == 1:
            self._give_up_all(
                f"the first {len(ended)} trials all failed in the same way, the last one so: {ended[-1].reason}; "
                "mend the training code and start again, or say how many may with give_up_after"
            )

    def _leave(self, trial_id: str) -> Needs | None:
        """Strike an attempt off; what it had taken."""
        attempt = self._running.pop(trial_id, None)
        self._nodes.pop(trial_id, None)
        if trial_id in self._leaving:
            self._leaving.discard(trial_id)
            self.left.add((trial_id, attempt or 0))
        return self.books.end(trial_id)

    def _give_more(self, trial: TrialState, attempt: int, had: float, message: str) -> None:
        """Start a trial again that had too small a share of a GPU."""
        if self.stopping is not None:
            self._ended(trial, attempt, status="stopped", reason=self.stopping, step=trial.step, error=None)
            return
        share = larger_share(had)
        reason = f"out of memory with {had:g} of a GPU, once more with {share:g}: {message}"
        self.record(Retried(trial=trial.id, attempt=attempt, step=trial.step, reason=reason, gpu=share))
        self.warnings.append(f"trial {trial.id}: {reason.splitlines()[0][:200]}")
        self._take_up(trial)

    def _began_elsewhere(self, trial: TrialState) -> bool:
        """Whether a trial has reported nothing since it took over a checkpoint."""
        return len(trial.phases) > 1 and trial.last_checkpoint is not None and trial.last_checkpoint.reason == EXPLOIT

    def _give_up_all(self, reason: str) -> None:
        self.fatal = reason
        self.stop(reason, "failed")

    def leave(self, node: str) -> list[str]:
        """The attempts on a node that is going away, which are to end and start again elsewhere; each is told once.

        node: as Ray names it.
        """
        found = [trial for trial in self._running if node in self._nodes.get(trial, ()) and trial not in self._leaving]
        self._leaving.update(found)
        return [f"{trial}-{self._running[trial]}" for trial in found]

    def lost(self, trial_id: str, attempt: int, message: str) -> None:
        """The slot of an attempt died, or never came up."""
        if self._running.get(trial_id) == attempt:
            self._leave(trial_id)
            self._given_up(self.state.trials[trial_id], attempt, message)
            self._promote()

    def _given_up(self, trial: TrialState, attempt: int, message: str, error: dict[str, Any] | None = None) -> None:
        before, times = self._lost.get(trial.id, (0, 0))
        times = times + 1 if trial.step <= before else 1
        self._lost[trial.id] = (trial.step, times)
        trial.attempt = max(trial.attempt, attempt)
        self._upkeep.fence(trial, trial.attempt + 1)
        if self.stopping is not None:
            self._ended(trial, attempt, status="stopped", reason=self.stopping, step=trial.step, error=None)
            return
        if times <= LOST_ATTEMPTS:
            self.record(Retried(trial=trial.id, attempt=attempt, step=trial.step, reason=message))
            self.warnings.append(f"trial {trial.id}: {message}; it starts again")
            self._take_up(trial)
            return
        reason = f"{message}; that was {times} times without another step done"
        error = {"kind": "lost", "traceback": "", **(error or {}), "message": reason}
        self.record(
            TrialEnded(trial=trial.id, attempt=attempt, status="failed", step=trial.step, reason=reason, error=error)
        )
        self._learn_end(trial)

    def _learn_end(self, trial: TrialState) -> None:
        status = cast("Status", trial.status)
        if status != "paused":
            self.scheduler.on_end(trial.id, status)
        self._tell(trial, status)

    def _tell(self, trial: TrialState, status: Status) -> None:
        if len(trial.phases) > 1:
            return  # what comes after is not what its configuration came to
        value = None if status == "failed" or trial.value is None else self._sign * trial.value
        step = max(trial.step, 1)
        self.proposals.tell(Observation(trial.id, trial.config, step=step, value=value, status=status))

    def stop_trial(self, trial_id: str, reason: str) -> bool:
        """End a trial; False where an attempt of it runs, which has to be asked."""
        trial = self.state.trials.get(trial_id)
        if trial is None or trial_id in self._running:
            return False
        if not trial.ended:
            if trial_id in self._queue:
                self._queue.remove(trial_id)
            step, attempt = trial.step, trial.attempt
            self.record(TrialEnded(trial=trial_id, attempt=attempt, status="stopped", step=step, reason=reason))
            self._learn_end(trial)
            self._upkeep.retire()
        return True

    def stop(self, reason: str, status: str = "finished") -> None:
        """Start nothing any more. What runs is asked to end by whoever holds the line to the slots."""
        self.thinking = False  # or nobody waits for it any more
        if self.stopping is None or status != "finished":
            self.stopping, self.stop_status = reason, status

    def account(self, *, last: bool = False) -> None:
        """Take note of what the devices do, and of why some are idle; once the first trial has started.

        Now and then, the state is written down too: who looks at a long record need not read all of it.
        """
        self._upkeep.has_room()
        if worth_saving(self._journal.events - self._snapshot_at) and not self.torn:
            self._snapshot_at = self._journal.events
            save_snapshot(self.folder, self.state, self._journal.cursor, [])
        if self._clock is None:
            return
        self.usage.account(self._idle_reason())
        due = self.usage.due(last=last)
        if due is not None:
            self.record(due)

    def _idle_reason(self) -> str:
        """Why nothing starts on what is free."""
        if self.stopping is not None:
            return "ending"
        if self.books.waiting is not None:
            return "resources"
        if not self._upkeep.has_room():
            return "disk"
        if self.thinking:
            return "search"
        if self._queue or (self._next_id is not None and not self.proposals.spent):
            return "start-up"
        return "rung" if self.state.count("paused") else "ending"

    def used_up(self) -> str:
        """Which budget of time or GPU-hours is used up, as a sentence; empty while none is."""
        time_limit, gpu_hours = self.experiment.budget.time, self.experiment.budget.gpu_hours
        if time_limit is not None and self.time_used >= time_limit:
            return f"the time budget {USED_UP}"
        if gpu_hours is not None and self.state.gpu_hours + self.usage.unrecorded / 3600 >= gpu_hours:
            return f"the budget of {gpu_hours:g} GPU-hours {USED_UP}"
        return ""

    def wait_for_room(self) -> bool:
        """Say that the disk is full."""
        self._upkeep.say_room(False)
        return True

    # -- the record -------------------------------------------------------------------------------------------------

    def record(self, event: Event) -> None:
        """Append the event to the journal, and take it into the state. Raises JournalError where that is given up."""
        try:
            written = self._journal.append(event)
        except JournalError as error:
            self.unwritable = error
            raise
        self.state.apply(written)


def _structural(config: dict[str, Any], theirs: dict[str, Any], said: str) -> list[str]:
    """The parameters for which a state of another configuration may not load: those whose values are told as sizes, if
    there are any, or else all that differ.
    """
    changed = sorted(name for name in config if config[name] != theirs.get(name))
    sizes = set(re.findall(r"\d+", said))
    return [name for name in changed if {str(config[name]), str(theirs.get(name))} <= sizes] or changed


def _undone_ends(events: Iterable[Event]) -> set[int]:
    """The places of ends that an extension has undone since: as if the budget had reached so far from the start."""
    last: dict[str, int] = {}
    undone: set[int] = set()
    for number, event in enumerate(events):
        if isinstance(event, TrialEnded):
            last[event.trial] = number
        elif isinstance(event, Extended):
            undone.update(last[trial] for trial in event.reopened if trial in last)
    return undone
