"""The search that chooses."""

from __future__ import annotations

from typing import Any

import pytest

from raytuner.search import AutoOptions, AutoSearch, BayesianSearch, GeneticSearch, Observation
from raytuner.space import Float, Space

SPACE = Space({"x": Float(low=0.0, high=1.0), "y": Float(low=0.0, high=1.0)})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who proposed, in the order of asking."""
    names: list[str] = []
    for member in (BayesianSearch, GeneticSearch):

        def propose(self: Any, rng: Any, number: int, name: str = member.__name__) -> Any:
            names.append(name)
            return self._draw(rng)  # who proposes is asked here, not what

        monkeypatch.setattr(member, "_propose", propose)
    return names


def tell_many(search: AutoSearch, number: int) -> None:
    for index in range(number):
        config = {"x": index / number, "y": (index * 7 % number) / number}
        value = abs(config["x"] - 0.7) + abs(config["y"] - 0.2)
        search.tell(Observation(f"told{index}", config, step=1, value=value, status="finished"))


def test_a_process_while_trials_are_few_then_mostly_evolution(asked: list[str]) -> None:
    search = AutoSearch(SPACE, seed=0, options=AutoOptions())
    tell_many(search, 1950)
    for number in range(150):
        config = search.ask(str(number))
        assert config is not None
        search.tell(Observation(str(number), config, step=1, value=config["x"], status="finished"))
    assert set(asked[:50]) == {"BayesianSearch"}
    assert asked[50:].count("BayesianSearch") == 10


@pytest.mark.parametrize("told", [False, True])
def test_a_crowd_under_way_is_met_by_evolution(asked: list[str], told: bool) -> None:
    search = AutoSearch(SPACE, seed=0, options=AutoOptions())
    for number in range(400):
        config = search.ask(str(number))
        assert config is not None
        if told:  # as a scheduler's decision to go on is
            search.tell(Observation(str(number), config, step=1, value=config["x"], status="running"))
    assert set(asked[:300]) == {"BayesianSearch"}
    assert asked[300:].count("BayesianSearch") == 10


def test_both_learn_from_all_trials() -> None:
    """Evolution, when its turn comes, has parents that it did not propose; also after loading."""
    search = AutoSearch(SPACE, seed=0, options=AutoOptions())
    tell_many(search, 2000)
    other = AutoSearch(SPACE, seed=0, options=AutoOptions())
    assert other.ask("lost") is not None  # forgotten by loading
    other.load_state_dict(search.state_dict())
    for one in (search, other):
        children = [one.ask(f"new{number}") for number in range(20)]
        good = [c for c in children if c is not None and abs(c["x"] - 0.7) + abs(c["y"] - 0.2) < 0.4]
        assert len(good) >= 15
    assert search.state_dict()["asked"] == other.state_dict()["asked"]
    assert list(search.trials.items()) == list(other.trials.items())


def test_it_says_what_it_will_do() -> None:
    few = AutoSearch.choice(50, slots=2, size=None, rungs=1)
    assert few == "bayesian, which learns most from each trial"
    assert "a model for each of 4 rungs" in AutoSearch.choice(50, slots=2, size=60, rungs=4)
    assert "after 2000 trials mostly genetic" in AutoSearch.choice(None, slots=2, size=None, rungs=1)
    assert "beyond 300 trials at once mostly genetic" in AutoSearch.choice(5000, slots=1000, size=None, rungs=4)
    assert "genetic" not in AutoSearch.choice(300, slots=1000, size=None, rungs=4)
    assert "all of the 12 configurations" in AutoSearch.choice(None, slots=2, size=12, rungs=1)
    assert "all of the 12 configurations" in AutoSearch.choice(12, slots=2, size=12, rungs=1)
    assert "configurations" not in AutoSearch.choice(11, slots=2, size=12, rungs=1)
    many = AutoSearch.choice(None, slots=2, size=10**6, rungs=1)
    assert "after 2000 trials mostly genetic" in many
    assert "all of the 1000000 configurations" in many
