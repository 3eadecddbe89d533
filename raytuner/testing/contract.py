"""What every search promises, as a class of tests to derive from."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from raytuner.errors import SearchError, SpaceError
from raytuner.search import Observation, Search
from raytuner.space import Config, Space, config_key
from raytuner.testing.spaces import MIXED, SMALL, spaces
from raytuner.testing.story import Event, Story, events

__all__ = ["SearchContract"]

SEEDS = st.integers(0, 2**32)
OPENING: list[Event] = [("ask", 0, 0.0), ("ask", 0, 0.0), ("finish", 0, 1.5), ("finish", 0, -1.5)] * 3
"""What comes before any story, so that a search has learnt something."""


class SearchContract:
    """Tests of one search with its options; pytest finds them in a class that derives from this one::

        class TestHalton(SearchContract):
            search = HaltonSearch
            options = HaltonOptions()

    Options that make it learn early (few random trials at the start) let the tests reach what it does then.
    """

    search: ClassVar[type[Search]]
    """The search."""
    options: ClassVar[BaseModel]
    """Its options."""
    space: ClassVar[Space] = MIXED
    """A space with 40 configurations or more, that the search supports."""
    small: ClassVar[Space] = SMALL
    """A space with a handful of configurations, that the search supports."""
    spaces: ClassVar[st.SearchStrategy[Space]] = spaces()
    """Spaces, most of which the search supports; the others are left out."""
    seeded: ClassVar[bool] = True
    """Whether another seed gives other proposals."""
    ends: ClassVar[bool] = False
    """Whether it may end before the space is exhausted, as a grid does."""
    examples: ClassVar[int] = 10
    """Spaces and stories that are tried."""
    trials: ClassVar[int] = 25
    """Trials of the tests that use ``space``."""
    seconds: ClassVar[float] = 5.0
    """The most that a proposal may take beside 200 pending trials."""

    def make(self, space: Space, seed: int = 0, first: Sequence[Config] = ()) -> Search:
        """The search, new."""
        return self.search(space, seed=seed, first=first, options=self.options)

    def test_whatever_happens_proposals_are_valid_and_new_and_go_on_the_same(self) -> None:
        """Any space, any order of events: also when saved and loaded, and when replayed from a record."""

        @settings(
            max_examples=self.examples,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # to shrink a story takes minutes, for its searches are slow
            suppress_health_check=list(HealthCheck),
        )
        @given(self.spaces, SEEDS, events(), events(5, 10))
        def check(space: Space, seed: int, before: list[Event], after: list[Event]) -> None:
            if self.search.supports(space, self.options):
                return
            story = Story(self.make(space, seed))
            story.play([*OPENING, *before])
            self._ends_rightly(story)
            loaded = self.make(space, seed)
            loaded.load_state_dict(json.loads(json.dumps(story.search.state_dict())))
            assert loaded.state_dict() == story.search.state_dict()
            replayed = self._replayed(story.search, seed)
            told = [Story(one, "more ").play(after) for one in (story.search, loaded, replayed)]
            assert told[1] == told[0], "a loaded search must propose what the saved one does"
            assert told[2] == told[0], "a replayed search must propose what the first one does"

        check()

    def test_the_same_seed_and_calls_give_the_same_proposals(self) -> None:
        first, second = (self._lively(self.make(self.space, 7)) for _ in range(2))
        assert first.configs == second.configs
        assert len(first.configs) == self.trials

    def test_another_seed_is_another_search(self) -> None:
        if not self.seeded:
            pytest.skip("this search has no use for a seed")
        first, second = (Story(self.make(self.space, seed)).asks(6) for seed in (0, 1))
        assert all(one != other for one, other in zip(first, second, strict=True))

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
    def test_a_state_replaces_all_that_was_known(self, share: float) -> None:
        first = [self.space.sample(np.random.default_rng(5))]
        story = self._lively(self.make(self.space, 3, first), int(share * self.trials))
        fresh = self.make(self.space, 3, first)
        self._lively(fresh, 3)
        fresh.load_state_dict(json.loads(json.dumps(story.search.state_dict())))
        assert fresh.state_dict() == story.search.state_dict()
        assert Story(fresh, "more ").asks(4) == Story(story.search, "more ").asks(4)

    def test_what_is_first_is_proposed_first(self) -> None:
        rng = np.random.default_rng(3)
        first = [self.space.sample(rng) for _ in range(3)]
        story = Story(self.make(self.space, first=first))
        assert story.asks(4)[:3] == first
        with pytest.raises(SpaceError, match=r"first\[1\]"):
            self.make(self.space, first=[first[0], {"no such parameter": 1}])

    def test_a_finite_space_is_exhausted_without_duplicates(self) -> None:
        everything = {config_key(config) for config in self.small.grid(1)}
        story = Story(self.make(self.small))
        while (config := story.ask()) is not None:
            name = f"{len(story.configs) - 1:06}"
            story.search.tell(Observation(name, config, 1, float(len(story.configs)), "finished"))
        assert {config_key(config) for config in story.configs} == everything
        assert story.search.ask("again") is None
        assert "again" not in story.search.trials

    def test_what_somebody_else_tries_is_not_proposed(self) -> None:
        *others, last = self.small.grid(1)
        search = self.make(self.small)
        for number, config in enumerate(others):
            search.tell(Observation(f"foreign {number}", config, 0, None, "pending"))
        assert search.ask("own") == last
        assert search.ask("another") is None

    def test_a_search_keeps_its_configurations_to_itself(self) -> None:
        first = self.space.sample(np.random.default_rng(2))
        kept = json.dumps(first)
        search = self.make(self.space, first=[first])
        for number in range(3):
            config = search.ask(f"{number}")
            assert config is not None
            before = json.dumps(search.state_dict())
            for spoiled in (config, search.state_dict()["trials"][number][1]):
                for value in spoiled.values():
                    if isinstance(value, list):
                        value.append("spoiled")
                spoiled["spoiled"] = True
            assert json.dumps(search.state_dict()) == before
        assert json.dumps(first) == kept

    def test_misuse_is_refused(self) -> None:
        search = self.make(self.small)
        config = search.ask("one")
        assert config is not None
        with pytest.raises(SearchError, match="asked for once"):
            search.ask("one")
        for value, status in [(float("nan"), "finished"), (float("inf"), "running"), (0.5, "failed"), (0.5, "odd")]:
            with pytest.raises(SearchError, match="trial one, step 1"):
                search.tell(Observation("one", config, 1, value, status))  # type: ignore[arg-type]
        assert search.trials["one"].values == {}
        state = search.state_dict()
        with pytest.raises(SearchError, match="same seed, 1, got 0"):
            self.make(self.small, 1).load_state_dict(state)
        with pytest.raises(SearchError, match="same search"):
            self.make(self.small).load_state_dict(state | {"search": "Another"})

    def test_hundreds_of_pending_trials_are_no_burden(self) -> None:
        rng = np.random.default_rng(0)
        search = self.make(self.space)
        for number in range(220):
            config = self.space.sample(rng)
            search.asked(f"{number:06}", config)
            if number < 20:
                search.tell(Observation(f"{number:06}", config, 1, float(rng.random()), "finished"))
        search.warm_up()
        began = time.perf_counter()
        found = search.ask("next")
        assert time.perf_counter() - began < self.seconds
        assert found is not None or self.ends

    def _replayed(self, source: Search, seed: int) -> Search:
        """A new search that is told all that a state holds, each trial's news at a time."""
        state = source.state_dict()
        fresh = self.make(source.space, seed)
        asked = set(state["asked"])
        for trial_id, config, _, _ in state["trials"]:
            if trial_id in asked:
                fresh.asked(trial_id, config)
            else:
                fresh.tell(Observation(trial_id, config, 0, None, "pending"))
        for trial_id, config, status, values in state["trials"]:
            for step, value in values:
                fresh.tell(Observation(trial_id, config, step, value, "running"))
            fresh.tell(Observation(trial_id, config, 0, None, status))
        return fresh

    def _ends_rightly(self, story: Story) -> None:
        """A search has nothing more to propose only when nothing is left."""
        if story.over and not self.ends:
            space, known = story.search.space, {config_key(trial.config) for trial in story.search.trials.values()}
            assert space.enumerable, "a space that cannot be looked through is never exhausted"
            assert all(config_key(config) in known for config in space.grid(1))

    def _lively(self, search: Search, trials: int | None = None, workers: int = 3) -> Story:
        """So many trials, of which some are under way at any time, and that end in every way."""
        story = Story(search)
        kinds = ("finish", "stop", "finish", "pause", "fail")
        for number in range(self.trials if trials is None else trials):
            story.asks(1)
            if number >= workers - 1:
                value = float(np.random.default_rng(number).normal())
                story.play([("report", 0, value + 1), (kinds[number % 5], 0, value)])  # type: ignore[list-item]
        return story
