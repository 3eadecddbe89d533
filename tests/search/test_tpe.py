"""TPE through hyperopt: it learns, from whom it learns, and what it is not led astray by."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pytest

from raytuner.search import HyperOptOptions, HyperOptSearch, Observation, RandomOptions, Search, build_search
from raytuner.space import Choice, Config, Float, Int, Space, config_key

TREE = Space(
    {
        "kind": Choice(values=["a", "b", "c"]),
        "x": Float(low=0, high=1),
        "lr": Float(low=1e-5, high=1, log=True),
        "n": Int(low=1, high=8, when={"kind": "b"}),
    }
)


def tree(config: Config) -> float:
    """At best 0, at kind b, n 3, x 0.3, lr 1e-2."""
    return (
        (config["x"] - 0.3) ** 2
        + (np.log10(config["lr"]) + 2) ** 2 / 16
        + (abs(config["n"] - 3) / 8 if config["kind"] == "b" else 0.5)
    )


def tpe(space: Space, seed: int = 0, **options: Any) -> HyperOptSearch:
    search = build_search(HyperOptOptions(**options), space, seed)
    assert isinstance(search, HyperOptSearch)
    return search


def drive(search: Search, trials: int, function: Callable[[Config], float | None]) -> list[float | None]:
    """Asks, evaluates and tells, one by one; None is a failure."""
    values = []
    for number in range(trials):
        config = search.ask(f"{number:06}")
        assert config is not None
        values.append(function(config))
        status: Any = "failed" if values[-1] is None else "finished"
        search.tell(Observation(f"{number:06}", config, 1, values[-1], status))
    return values


def test_beats_random_search() -> None:
    # 50 trials, the median of the best values over 11 seeds. Over 60 other seeds the medians were 0.018 and 0.131;
    # drawn from those 60 at random, 11 and 11 of them miss the line below 2 times in 1000.
    best = {}
    for options in (HyperOptOptions(), RandomOptions()):
        best[options.type] = median(
            min(value for value in drive(build_search(options, TREE, seed), 50, tree) if value is not None)
            for seed in range(11)
        )
    assert best["hyperopt"] < 0.75 * best["random"]


def test_learns_conditions() -> None:
    search = tpe(TREE, seed=1)
    drive(search, 60, tree)
    late = [trial.config for trial in list(search.trials.values())[-20:]]
    assert sum(config["kind"] == "b" for config in late) >= 12  # 7 of 20 by chance, with a deviation of 2
    assert all(("n" in config) == (config["kind"] == "b") for config in late)


def test_a_failing_region_does_not_attract() -> None:
    # x < 0.5 fails, and the best values lie right beside it. Drawing at random, half of the 40 trials after the start
    # would fail; when failures are forgotten, nearly all do.
    def half(config: Config) -> float | None:
        return None if config["x"] < 0.5 else abs(config["x"] - 0.55) + abs(config["y"] - 0.5)

    space = Space({"x": Float(low=0, high=1), "y": Float(low=0, high=1)})
    failures = [sum(value is None for value in drive(tpe(space, seed), 50, half)[10:]) for seed in range(4)]
    assert sum(failures) < 0.5 * 4 * 40
    assert max(failures) < 28  # 20 by chance, plus 2.5 deviations of sqrt(40 / 4)


def test_nothing_is_learnt_from_failures_alone() -> None:
    search = tpe(TREE, startup=3)
    drive(search, 15, lambda config: None)
    # Every proposal is still a draw from the prior.
    assert search.ask("next") == TREE.sample(np.random.default_rng([0, 15]))


def test_the_start_is_drawn_and_needs_no_hyperopt() -> None:
    code = (
        "import sys\n"
        "from raytuner.search import HyperOptOptions, Observation, build_search\n"
        "from raytuner.space import Float, Space\n"
        "search = build_search(HyperOptOptions(startup=3), Space({'x': Float(low=0, high=1)}), 0)\n"
        "for n in range(5):\n"
        "    config = search.ask(str(n))\n"
        "    if n < 2: search.tell(Observation(str(n), config, 1, config['x'], 'finished'))\n"
        "print('hyperopt' in sys.modules)\n"
        "search.tell(Observation('2', {}, 0, None, 'failed'))\n"
        "search.ask('last')\n"
        "print('hyperopt' in sys.modules)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.split() == ["False", "True"]


def test_another_process_proposes_the_same() -> None:
    # Nothing may depend on the order of a set or on addresses.
    search = tpe(TREE, seed=5)
    drive(search, 16, tree)
    keys = [config_key(trial.config) for trial in search.trials.values()]
    folder = os.path.dirname(__file__)
    code = (
        "import test_tpe as t; s = t.tpe(t.TREE, seed=5); t.drive(s, 16, t.tree)\n"
        "print(*(t.config_key(trial.config) for trial in s.trials.values()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True, env=environment
    )
    assert output.stdout.split() == keys


def ranked(search: HyperOptSearch) -> tuple[list[str], int]:
    return search._ranking()


def told(search: Search, trial_id: str, values: dict[int, float], status: Any, x: float | None = None) -> None:
    config = {"x": x if x is not None else (hash(trial_id) % 997) / 997}
    for step, value in values.items():
        search.tell(Observation(trial_id, config, step, value, "running"))
    last = max(values, default=0)
    value = values.get(last) if status != "failed" else None
    search.tell(Observation(trial_id, config, last, value, status))


def test_values_are_compared_at_a_step_that_many_share() -> None:
    search = tpe(Space({"x": Float(low=0, high=1)}), startup=3)
    told(search, "A", {1: 0.9, 3: 0.8, 9: 0.1}, "finished")
    told(search, "B", {1: 0.8, 3: 0.5}, "stopped")
    # Only two so far: the step that both have reached is 3.
    assert ranked(search) == (["B", "A"], 2)
    told(search, "C", {1: 0.7, 3: 0.6}, "running")
    told(search, "D", {1: 0.2}, "running")
    told(search, "E", {1: 0.95}, "stopped")
    told(search, "F", {1: 0.01, 3: 0.01}, "failed")
    # A, B, C share step 3. D is too young to tell, E was stopped before, F is last, whatever it reported.
    assert ranked(search) == (["B", "C", "A", "D", "E", "F"], 3)
    told(search, "G", {1: 0.5, 3: 0.4, 9: 0.3}, "finished")
    told(search, "H", {1: 0.5, 3: 0.4, 9: 0.2}, "running")
    # Now A, G, H share step 9, and B's better value at 3 no longer counts against them.
    assert ranked(search) == (["A", "H", "G", "B", "C", "D", "E", "F"], 3)


def test_a_finished_trial_has_reached_every_step() -> None:
    search = tpe(Space({"x": Float(low=0, high=1)}), startup=2)
    told(search, "A", {5: 0.3}, "finished")
    told(search, "B", {9: 0.2}, "finished")
    told(search, "C", {7: 0.1}, "finished")
    told(search, "D", {}, "pending")
    told(search, "E", {}, "stopped")
    assert ranked(search) == (["C", "B", "A"], 3)


def test_trials_under_way_push_others_apart() -> None:
    # 12 known values with the best at 0.5; then 20 asks without an answer. If nobody knew of those under way, they
    # would be 20 draws from one model, close around 0.5.
    space = Space({"x": Float(low=0, high=1)})
    spread = {}
    for known in (True, False):
        widths = []
        for seed in range(3):
            search = tpe(space, seed)
            for number in range(12):
                x = (number + 0.5) / 12
                search.tell(Observation(f"known {number}", {"x": x}, 1, abs(x - 0.5), "finished"))
            asked = []
            for number in range(20):
                config = search.ask(f"{number}")
                assert config is not None
                asked.append(config["x"])
                if not known:
                    search.trials.pop(f"{number}")
            widths.append(float(np.std(asked)))
        spread[known] = median(widths)
    assert spread[True] > spread[False]


def test_a_hard_constraint_is_kept_and_paid_for_with_draws() -> None:
    # One twentieth of the square is valid.
    space = Space({"x": Float(low=0, high=1), "y": Float(low=0, high=1)}, ["abs(x - y) < 0.025"])
    search = tpe(space)
    drive(search, 25, lambda config: config["x"])
    assert all(space.problems(trial.config) == [] for trial in search.trials.values())


def test_a_trial_of_another_space_teaches_nothing() -> None:
    search = tpe(TREE, startup=5)
    for number in range(8):
        search.tell(Observation(f"foreign {number}", {"z": number}, 1, 0.0, "finished"))
    assert search.ask("1") == TREE.sample(np.random.default_rng([0, 0]))
    for number in range(8):
        config = TREE.sample(np.random.default_rng(number))
        search.tell(Observation(f"own {number}", config, 1, tree(config), "finished"))
    config = search.ask("2")
    assert config is not None
    assert TREE.problems(config) == []


def test_constants_and_whole_numbers_of_any_size() -> None:
    space = Space({"only": Choice(values=["one"]), "n": Int(low=0, high=2**53)})
    search = tpe(space, startup=2)
    values = drive(search, 8, lambda config: float(config["n"]))
    assert len(set(values)) == 8


@pytest.mark.parametrize("options", [{"startup": 0}, {"candidates": 0}, {"gamma": 0}, {"gama": 1}])
def test_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        HyperOptOptions(**options)


def test_an_ask_stays_cheap() -> None:
    # 12 parameters, 100 trials: about 17 ms of CPU where this was written; five times that means something is wrong.
    space = Space({f"x{i}": Float(low=0, high=1) for i in range(12)})
    search = tpe(space)
    for number in range(100):
        config = space.sample(np.random.default_rng(number))
        search.tell(Observation(f"{number}", config, 1, float(sum(config.values())), "finished"))
    search.ask("warm")
    start = time.process_time()
    for number in range(5):
        search.ask(f"more {number}")
    assert (time.process_time() - start) / 5 < 0.085
