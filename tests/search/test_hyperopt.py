"""TPE through hyperopt: it learns, from whom it learns, and what it is not led astray by."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raytuner.search import HyperOptOptions, HyperOptSearch, Observation, RandomOptions, Search, build_search
from raytuner.search.hyperopt import OTHERS
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
        "import test_hyperopt as t; s = t.tpe(t.TREE, seed=5); t.drive(s, 16, t.tree)\n"
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


SQUARE = Space({"x": Float(low=0, high=1), "y": Float(low=0, high=1)})


def distance(config: Config) -> float:
    return sum((value - 0.3) ** 2 for value in config.values())


def told_many(search: HyperOptSearch, trials: int, status: Any = "finished", name: str = "known") -> None:
    """Random configurations, with their distance where they have finished."""
    for number in range(trials):
        config = search.space.sample(np.random.default_rng([number, len(name)]))
        value = distance(config) if status == "finished" else None
        search.tell(Observation(f"{name} {number}", config, 1, value, status))


def shown(search: HyperOptSearch) -> tuple[list[dict[str, Any]], float]:
    return search._documents(*search._ranking())


def test_a_few_hundred_of_many_trials_are_shown() -> None:
    search = tpe(SQUARE)
    told_many(search, 2000)
    told_many(search, 1000, "pending", "pending")
    documents, gamma = shown(search)
    ranks = sorted(rank for document in documents if (rank := document["result"]["loss"]) is not None)
    good = 14  # of 3000, 0.25 * sqrt(3000)
    assert len(ranks) == good + OTHERS
    assert len(documents) == good + 2 * OTHERS
    assert np.ceil(gamma * np.sqrt(len(documents))) == good
    assert ranks[:good] == list(range(good))
    # The newest of the others, and the older ones evenly: the best and the worst of them, and no wide gap.
    rank = {name: index for index, name in enumerate(search._ranking()[0])}
    newest = {rank[f"known {number}"] for number in range(1900, 2000)}.difference(range(good))
    assert newest.issubset(ranks)
    older = [rank for rank in ranks[good:] if rank not in newest]
    assert older[0] < good + 5
    assert older[-1] > 1995
    assert max(np.diff(older)) < 2 * 2000 / 100


def test_all_of_few_trials_are_shown_in_the_order_of_the_record_but_for_failures() -> None:
    search = tpe(SQUARE)
    told_many(search, 3, "failed", "failed")
    told_many(search, 12)
    told_many(search, 2, "pending", "pending")
    documents, _ = shown(search)
    places = [[document["misc"]["vals"][name][0] for name in ("x", "y")] for document in documents]
    record = [[trial.config["x"], trial.config["y"]] for trial in search.trials.values()]
    assert places == [*record[3:], *record[:3]]
    assert [document["tid"] for document in documents] == list(range(17))


def test_who_went_further_is_better_and_values_of_different_steps_are_not_compared() -> None:
    search = tpe(Space({"x": Float(low=0, high=1)}))
    for name, values, status in (
        ("A", {1: 0.9, 3: 0.8, 9: 0.7}, "finished"),
        ("B", {1: 0.8, 3: 0.5}, "stopped"),
        ("C", {1: 0.7, 3: 0.4}, "running"),
        ("D", {1: 0.2}, "stopped"),
        ("E", {1: 0.1}, "paused"),
        ("F", {1: 0.01, 3: 0.01}, "failed"),
        ("G", {}, "pending"),
    ):
        config = {"x": ord(name) / 100}
        for step, value in values.items():
            search.tell(Observation(name, config, step, value, "running"))
        last = None if status == "failed" else values.get(max(values, default=0))
        search.tell(Observation(name, config, max(values, default=0), last, status))  # type: ignore[arg-type]
    assert search._ranking() == (["A", "C", "B", "E", "D", "F"], 5)


def test_many_trials_under_way_do_not_crowd() -> None:
    # Where this was written the mean distance to the nearest was 0.88 of that of random draws.
    def nearest(points: NDArray[np.float64]) -> float:
        between = np.linalg.norm(points[:, None] - points[None], axis=2)
        np.fill_diagonal(between, np.inf)
        return float(between.min(axis=1).mean())

    ratios = []
    for seed in range(3):
        search = tpe(SQUARE, seed)
        told_many(search, 30)
        asked = np.array([search.space.to_unit(search.ask(str(number)) or {}) for number in range(64)])
        ratios.append(nearest(asked) / nearest(np.random.default_rng(seed).random(asked.shape)))
    assert np.mean(ratios) > 0.6


@pytest.mark.parametrize(("goal", "most"), [(0.3, 0.2), (0.45, 0.35)])
def test_few_fail_where_half_of_the_space_does(goal: float, most: float) -> None:
    # By chance, half would fail. With the goal beside the border good configurations have failing neighbours, and a
    # quarter failed where this was written.
    space = Space({"x0": Float(low=0, high=1), "x1": Float(low=0, high=1)})
    late = []
    for seed in range(3):
        search = tpe(space, seed)
        for number in range(80):
            config = search.ask(str(number))
            assert config is not None
            fails = config["x0"] > 0.5
            value = None if fails else sum(abs(x - goal) for x in config.values())
            search.tell(Observation(str(number), config, 1, value, "failed" if fails else "finished"))
            late += [fails] if number >= 20 else []
    assert np.mean(late) <= most


def test_a_choice_is_drawn_by_its_prior_and_learnt_all_the_same() -> None:
    values = list("abcdefgh")
    space = Space({"kind": Choice(values=values, prior="c"), "x": Float(low=0, high=1)})
    search = tpe(space, startup=1)
    search.tell(Observation("first", {"kind": "a", "x": 0.5}, 1, 1.0, "finished"))
    drawn = [(search.ask(str(number)) or {})["kind"] for number in range(40)]
    assert drawn.count("c") >= 8  # 4 in 11 by the prior, while each of the others has 1
    for number, kind in enumerate(drawn):
        search.tell(Observation(str(number), {}, 1, float(kind != "f") + number / 100, "finished"))
    for number in range(30):
        config = search.ask(f"late {number}") or {}
        search.tell(Observation(f"late {number}", config, 1, float(config["kind"] != "f") + config["x"], "finished"))
    late = [trial.config["kind"] for trial in search.trials.values()][-15:]
    assert late.count("f") >= 5
