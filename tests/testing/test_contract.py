"""The contract tells searches that keep their promises from those that do not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytuner.components import Options
from raytuner.search import Observation, Search
from raytuner.space import Choice, Config, Space
from raytuner.testing import MIXED, SMALL, SearchContract, Story, spaces


class Plain(Search):
    """Keeps every promise."""

    Options = Options

    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        return self._draw(rng)


class Repeating(Plain):
    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        return self.space.sample(np.random.default_rng(number // 2))


class Boundless(Plain):
    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        return self.space.from_unit(rng.random(len(self.space.names)))


class Unseeded(Plain):
    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        return self._draw(np.random.default_rng())


class SeedBlind(Plain):
    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        return self._draw(np.random.default_rng(number))


class Forgetful(Plain):
    """Counts what it was told, and saves no count."""

    told = 0

    def _learn(self, observation: Observation) -> None:
        self.told += 1

    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        return self._draw(np.random.default_rng([number, self.told]))


class OrderBound(Forgetful):
    """Saves its count, which a replay does not come to."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"told": self.told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.told = state["told"]


class Quitting(Plain):
    def _propose(self, rng: np.random.Generator, number: int) -> Config | None:
        return self._draw(rng) if number < 4 else None


class Sharing(Plain):
    def ask(self, trial_id: str) -> Config | None:
        return super().ask(trial_id) and self.trials[trial_id].config


class Vain(Plain):
    """Has better ideas than what is to come first."""

    def ask(self, trial_id: str) -> Config | None:
        self.first = []
        return super().ask(trial_id)


class Credulous(Plain):
    def _check(self, observation: Observation) -> None:
        pass


def contract(found: type[Search]) -> SearchContract:
    kept = type("Contract", (SearchContract,), {"search": found, "options": Options(), "examples": 5})
    return kept()


Test = Callable[[SearchContract], None]


def any_story(one: SearchContract) -> None:
    one.test_whatever_happens_proposals_are_valid_and_new_and_go_on_the_same()


class TestPlain(SearchContract):
    search = Plain
    options = Options()
    examples = 5


@pytest.mark.parametrize(
    ("found", "test", "message"),
    [
        (Repeating, any_story, "was proposed or told before"),
        (Boundless, SearchContract.test_the_same_seed_and_calls_give_the_same_proposals, "must hold"),
        (Forgetful, any_story, "a loaded search must propose|a replayed search must propose"),
        (OrderBound, any_story, "a replayed search must propose"),
        (Quitting, any_story, None),
        (Quitting, SearchContract.test_a_finite_space_is_exhausted_without_duplicates, None),
        (Unseeded, SearchContract.test_the_same_seed_and_calls_give_the_same_proposals, None),
        (SeedBlind, SearchContract.test_another_seed_is_another_search, None),
        (Forgetful, lambda one: one.test_a_state_replaces_all_that_was_known(0.6), None),
        (Sharing, SearchContract.test_a_search_keeps_its_configurations_to_itself, None),
        (Vain, SearchContract.test_what_is_first_is_proposed_first, None),
        (Repeating, SearchContract.test_what_somebody_else_tries_is_not_proposed, None),
    ],
)
def test_a_broken_promise_is_found(
    found: type[Search], test: Callable[[SearchContract], None], message: str | None
) -> None:
    with pytest.raises(AssertionError, match=message):
        test(contract(found))


def test_a_search_that_takes_anything_is_found() -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        contract(Credulous).test_misuse_is_refused()


def test_a_slow_search_is_found() -> None:
    slow = contract(Plain)
    type(slow).seconds = 0.0
    with pytest.raises(AssertionError):
        slow.test_hundreds_of_pending_trials_are_no_burden()


def kinds(space: Space) -> set[str]:
    """What there is in a space."""
    parameters = space.parameters.values()
    found = {type(one).__name__ for one in parameters} | ({"constraints"} if space.constraints else set())
    told = ("log", "step", "when", "ordered", "prior")
    found |= {name for one in parameters for name in told if getattr(one, name, None)}
    return found | {"unordered" for one in parameters if isinstance(one, Choice) and not one.ordered}


def test_spaces_have_everything_and_leave_out_what_is_not_wanted() -> None:
    seen: dict[bool, set[str]] = {True: set(), False: set()}

    @settings(max_examples=100, derandomize=True, database=None)
    @given(st.booleans(), st.data())
    def look(everything: bool, data: st.DataObject) -> None:
        seen[everything] |= kinds(data.draw(spaces(unordered=everything, conditions=everything, priors=everything)))

    look()
    numbers, choices = {"Float", "Int", "log", "step"}, {"Choice", "ordered", "unordered"}
    assert seen[True] == {*numbers, *choices, "when", "prior", "constraints"} == kinds(MIXED)
    assert seen[False] == seen[True] - {"unordered", "when", "prior"}


def test_a_story_checks_what_is_proposed() -> None:
    story = Story(Plain(SMALL, seed=0, options=Options()))
    assert len(story.asks(20)) == 8
    assert story.over


def test_the_package_does_without_pytest_until_it_is_asked_for() -> None:
    script = (
        "import sys; sys.modules['pytest'] = None; import raytuner;"
        "assert 'raytuner.testing' not in sys.modules and 'hypothesis' not in sys.modules\n"
        "try:\n    import raytuner.testing\n"
        "except ImportError as error:\n    assert 'pip install pytest hypothesis' in str(error), error\n"
        "else:\n    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_the_example_of_the_documentation_keeps_the_contract(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/plugins.md").read_text()
    search, contract = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/__init__.py").touch()
    (tmp_path / "my_package/halton.py").write_text(search)
    (tmp_path / "test_halton.py").write_text(contract)
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout, "all that a search promises"
