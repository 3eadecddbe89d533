"""The search, on a thread of its own: reports and decisions don't wait while it thinks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import Queue
from typing import Any

from raytuner.search import Observation, Search

__all__ = ["Proposal", "Proposals"]


@dataclass(frozen=True)
class Proposal:
    """A configuration for a trial."""

    config: dict[str, Any]
    known: int
    """How many observations the search had been told when it was asked."""
    why: str
    """How it came about, for people."""


class Proposals:
    """Brings observations and questions to a search in the order in which they come, and its answers back.

    There is one question at a time; the next is put when its answer was taken, so that the search knows as much as it
    can. A question cannot be taken back, but an answer that nobody takes is on no record, and hence forgotten by a
    resume. All methods are for one thread; the search's own is a daemon, which keeps no process alive.
    """

    def __init__(self, search: Search) -> None:
        self.told = 0
        """Observations so far, which the search hears of before the next question."""
        self.asking = False
        """Whether a question was put whose answer was not taken."""
        self._search = search
        self._heard = 0
        self._jobs: Queue[Callable[[], None] | None] = Queue()
        self._thread: threading.Thread | None = None
        self._question: tuple[str, int] = ("", 0)  # the trial, and what is known
        self._answer: dict[str, Any] | None = None
        self._answered = threading.Event()
        self._error: BaseException | None = None
        self._spent: int | None = None  # what was told when it had nothing more to propose
        self._closed = False

    # -- what goes to the search ------------------------------------------------------------------------------------

    def tell(self, observation: Observation) -> None:
        """Tell the search, which hears of it in its own time."""
        self.told += 1
        self._jobs.put(partial(self._tell, observation))

    def prepare(self, trial_id: str) -> None:
        """Have the search think about a trial, unless it does already, or had nothing by all that it was told."""
        if self.asking or self.spent:
            return
        self.asking, self._question = True, (trial_id, self.told)
        self._answered.clear()
        self._jobs.put(self._ask)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="search", daemon=True)
            self._thread.start()

    def asked(self, trial_id: str, config: dict[str, Any], known: int) -> None:
        """Take over an answer on record between the observations where it belongs. Before the first question only."""
        assert self._thread is None, "a record is replayed before the first question"
        self._hear(known)
        self._search.asked(trial_id, config)

    @property
    def asked_for(self) -> str | None:
        """The trial that the search thinks about, or has thought about without its answer being taken."""
        return self._question[0] if self.asking else None

    # -- what comes back --------------------------------------------------------------------------------------------

    @property
    def spent(self) -> bool:
        """Whether the search has nothing more to propose, after all that it was told."""
        return self._spent == self.told

    def take(self, trial_id: str) -> Proposal | None:
        """The proposal for a trial; None while the search thinks about it, and when it has nothing more to propose.

        Raises what the search has raised.
        """
        self.check()
        self.prepare(trial_id)
        if not self.asking or not self._answered.is_set():
            return None
        self.check()
        self.asking = False
        asked_for, known = self._question
        assert asked_for == trial_id, "trials are taken in the order in which they were asked for"
        if self._answer is None:
            self._spent = known
            self.prepare(trial_id)  # it may have something by now
            return None
        return Proposal(self._answer, known, self._search.why)

    def wait(self, seconds: float) -> bool:
        """Wait until the question is answered, if only by an error; True when it is."""
        return self._answered.wait(seconds)

    def check(self) -> None:
        """Raises what the search has raised."""
        if self._error is not None:
            raise self._error

    def settled(self) -> Search:
        """The search, once it has heard all and thinks about nothing. Raises what it has raised."""
        if self._thread is None:
            self._hear(self.told)
        elif self._closed:
            self._thread.join()
        else:
            self._jobs.join()
        self.check()
        return self._search

    def close(self) -> None:
        """Let the thread end, once the search is done with what it was told. Nothing comes after this."""
        if self._thread is not None and not self._closed:
            self._closed = True
            self._jobs.put(None)

    # -- on the search's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None:
                    job()
            except BaseException as error:  # raised again where the answer is wanted
                self._error = error
                self._answered.set()
            self._jobs.task_done()

    def _hear(self, known: int) -> None:
        """The same at once, until the search has heard of so many observations. For as long as there is no thread."""
        while self._heard < min(known, self.told):
            job = self._jobs.get()
            assert job is not None
            job()
            self._jobs.task_done()

    def _tell(self, observation: Observation) -> None:
        self._search.tell(observation)
        self._heard += 1

    def _ask(self) -> None:
        self._answer = self._search.ask(self._question[0])
        self._answered.set()
