"""Genetic search: whom it descends from, how children differ, and that it gets somewhere."""

from __future__ import annotations

import re
from statistics import median
from typing import Any

import numpy as np
import pytest

from raytuner.schedulers import NoneOptions, build_scheduler
from raytuner.search import (
    GeneticOptions,
    GeneticSearch,
    Observation,
    RandomOptions,
    Search,
    SobolOptions,
    build_search,
)
from raytuner.simulation import MADE, Budget, Cluster, simulate_run
from raytuner.space import Choice, Config, Float, Int, Space, config_key
from raytuner.testing import SearchContract

CUBE = Space({name: Float(low=0, high=1) for name in "abcdef"})
BRANCHES = Space(
    {
        "optimizer": Choice(values=["sgd", "adam"]),
        "lr": Float(low=1e-5, high=1, log=True),
        "momentum": Float(low=0, high=0.99, when={"optimizer": "sgd"}),
        "nesterov": Choice(values=[True, False], when="momentum > 0.5"),
        "beta": Float(low=0.5, high=0.999, when={"optimizer": "adam"}),
    }
)


ASEXUAL: dict[str, Any] = {"crossover": 0.0, "mutation": 0.01, "candidates": 1}
"""Children that differ from their parent in one parameter, and of which none is chosen for its looks."""


def genetic(space: Space, seed: int = 0, **options: Any) -> Search:
    return build_search(GeneticOptions(**options), space, seed)


def finish(search: Search, trial_id: str, config: Config, value: float | None) -> None:
    status: Any = "failed" if value is None else "finished"
    search.tell(Observation(trial_id, config, 1, value, status))


def known(search: Search, count: int, value: Any = lambda config: config["a"]) -> None:
    """Tells of so many trials that somebody else has finished."""
    for number in range(count):
        config = search.space.sample(np.random.default_rng([77, number]))
        finish(search, f"known {number}", config, value(config))


def ask(search: Search, trial_id: str) -> Config:
    config = search.ask(trial_id)
    assert config is not None
    return config


def changed(child: Config, parent: Config) -> set[str]:
    return {name for name in child if child[name] != parent.get(name)}


def parents(search: Search, child: Config) -> list[str]:
    """The trials that a child without crossover and with one change can descend from."""
    others = {name: trial.config for name, trial in search.trials.items() if trial.config != child}
    return [name for name, config in others.items() if len(changed(child, config)) == 1]


class TestGenerations(SearchContract):
    search = GeneticSearch
    options = GeneticOptions(mode="generational", population=4)


@pytest.mark.parametrize("name", list(MADE))
def test_beats_random_search(name: str) -> None:
    table = MADE[name]()
    regret = {}
    for options in (GeneticOptions(), RandomOptions()):
        runs = [
            simulate_run(
                table,
                build_search(options, table.space, seed),
                build_scheduler(NoneOptions(), table.steps, seed),
                Cluster(),
                Budget(trials=60),
                seed=seed,
            )
            for seed in range(9)
        ]
        regret[options.type] = median(run.regret for run in runs)
    assert regret["genetic"] < 0.6 * regret["random"]


def test_the_start_fills_the_space_and_ends_with_enough_results() -> None:
    search = genetic(CUBE, startup=8)
    sobol = build_search(SobolOptions(), CUBE, 0)
    # Nothing is known yet, however many are under way.
    for number in range(30):
        assert search.ask(f"{number}") == sobol.ask(f"{number}")
    for number in range(8):
        finish(search, f"{number}", search.trials[f"{number}"].config, number)
    assert search.ask("child") != sobol.ask("child")


def test_the_defaults_are_parents_like_others() -> None:
    first = dict.fromkeys("abcdef", 0.5)
    search = build_search(GeneticOptions(startup=5, **ASEXUAL, tournament=100), CUBE, 0, [first])
    assert search.ask("first") == first
    finish(search, "first", first, -1.0)
    known(search, 20)
    assert all("first" in parents(search, ask(search, f"{number}")) for number in range(10))


def test_children_differ_among_themselves_while_none_has_ended() -> None:
    search = genetic(CUBE)
    known(search, 30)
    children = [ask(search, f"{number}") for number in range(64)]
    assert len({config_key(child) for child in children}) == 64


def test_who_the_parents_are_is_said_of_trials_only_and_what_is_none_of_theirs() -> None:
    """Also of a child whose parents are children that were never tried."""
    search = genetic(CUBE, tournament=2)
    known(search, 40)
    generations = set()
    for number in range(30):
        child = ask(search, f"{number}")
        line = re.fullmatch(r"a child of (.+?)(?:, with another (.+))?", search.why)
        assert line is not None
        named = re.split(r", | and ", line[1])
        configs = [search.trials[name].config for name in named]
        own = {name for name in CUBE.names if all(config[name] != child[name] for config in configs)}
        assert own == set((line[2] or "").split(", ")) - {""}
        generations.add(len(named))
    assert max(generations) > 2


def test_failures_and_trials_under_way_are_no_parents() -> None:
    search = genetic(CUBE, **ASEXUAL, tournament=1)
    known(search, 15)
    for number in range(30):
        config = CUBE.sample(np.random.default_rng(number))
        end: Any = "failed" if number % 2 else "pending"
        search.tell(Observation(f"bad {number}", config, 0, None, end))
    for number in range(30):
        found = [name for name in parents(search, ask(search, f"{number}")) if name in search.trials]
        assert any(name.startswith("known") for name in found)


def test_nothing_is_learnt_from_failures_alone() -> None:
    search = genetic(CUBE, startup=3)
    sobol = build_search(SobolOptions(), CUBE, 0)
    for number in range(12):
        config = ask(search, f"{number}")
        assert config == sobol.ask(f"{number}")
        finish(search, f"{number}", config, None)


def test_trials_stopped_early_are_compared_at_a_shared_step() -> None:
    search = genetic(CUBE, startup=5, **ASEXUAL, tournament=100)
    for number in range(5):
        config = CUBE.sample(np.random.default_rng(number))
        search.tell(Observation(f"{number}", config, 3, 0.9 - number / 100, "running"))
        search.tell(Observation(f"{number}", config, 9, 0.2 + number / 100, "finished"))
    stopped = CUBE.sample(np.random.default_rng(99))
    search.tell(Observation("stopped", stopped, 3, 0.1, "stopped"))
    # At step 3 the stopped one is the best by far, but five have been seen at step 9.
    assert parents(search, ask(search, "child")) == ["0"]


def test_a_trial_of_another_space_is_no_parent() -> None:
    search = genetic(CUBE, startup=2)
    sobol = build_search(SobolOptions(), CUBE, 0)
    for number in range(5):
        finish(search, f"foreign {number}", {"z": number}, 0.0)
    assert search.ask("1") == sobol.ask("1")


@pytest.mark.parametrize("elitism", [0, 1])
def test_the_best_stays_a_parent_for_ever_with_elitism(elitism: int) -> None:
    search = genetic(CUBE, population=10, elitism=elitism, **ASEXUAL, tournament=100)
    finish(search, "old and best", dict.fromkeys("abcdef", 0.25), -1.0)
    known(search, 40)
    found = ["old and best" in parents(search, ask(search, f"{number}")) for number in range(10)]
    assert found == [bool(elitism)] * 10


def test_only_the_youngest_are_parents() -> None:
    search = genetic(CUBE, population=10, elitism=0, **ASEXUAL, tournament=1)
    known(search, 40)
    found = {name for number in range(80) for name in parents(search, ask(search, f"{number}"))}
    assert {int(name.split()[1]) for name in found if name.startswith("known")} == set(range(30, 40))


def test_a_larger_tournament_prefers_better_parents() -> None:
    places = {}
    for tournament in (1, 4, 100):
        search = genetic(CUBE, population=40, elitism=0, **ASEXUAL, tournament=tournament)
        known(search, 40)
        order = sorted(search.trials, key=lambda name: search.trials[name].config["a"])
        found = [parents(search, ask(search, f"{number}")) for number in range(40)]
        places[tournament] = float(np.mean([order.index(name) for names in found for name in names if name in order]))
    assert places[100] < 0.5
    # The least of four of 40 is 7.4 on average, any is 19.5, with deviations of 1.0 and 1.8 for 40 draws.
    assert 3 < places[4] < 12 < places[1]


@pytest.mark.parametrize(("crossover", "mixed"), [(0.0, 0), (1.0, 8)])
def test_crossover_takes_from_two_parents(crossover: float, mixed: int) -> None:
    search = genetic(CUBE, crossover=crossover, mutation=0.01, candidates=1, population=2, tournament=1, elitism=0)
    known(search, 20)
    last = [search.trials[f"known {number}"].config for number in (18, 19)]
    count = 0
    # Half of the children have the same parent twice. Of 6 coins of the others, 2 to 4 show heads with chance 0.78:
    # 16 of 40 on average, with a deviation of 3.1.
    for number in range(40):
        child = ask(search, f"{number}")
        count += all(len(changed(child, parent)) > 1 for parent in last)
    assert count >= mixed if mixed else not count


def test_mutation_sets_how_much_changes() -> None:
    shares = {}
    for mutation in (0.1, 0.5, 1.0):
        search = genetic(CUBE, crossover=0.0, mutation=mutation, tournament=100)
        known(search, 30)
        best = min((trial.config for trial in search.trials.values()), key=lambda config: config["a"])
        shares[mutation] = np.mean([len(changed(ask(search, f"{number}"), best)) / 6 for number in range(60)])
    assert shares[1.0] == 1.0
    assert 0.4 < shares[0.5] < 0.62
    assert 1 / 6 <= shares[0.1] < 0.3


def test_the_mutation_rate_follows_success() -> None:
    changes = {}
    for trend in (-1, 1):
        search = genetic(CUBE, crossover=0.0, candidates=1, tournament=100)
        for number in range(30):
            config = CUBE.sample(np.random.default_rng(number))
            finish(search, f"known {number}", config, float(trend * number))
        best = search.trials["known 29" if trend < 0 else "known 0"].config
        changes[trend] = np.mean([len(changed(ask(search, f"{number}"), best)) for number in range(60)])
    # Half of the six parameters after nothing but successes; one, and with luck another, after none.
    assert changes[-1] > 2.5
    assert 1.0 <= changes[1] < 2.0


def test_children_keep_away_from_where_trials_fail() -> None:
    # a < 0.5 fails, and the best values lie right beside it. Random draws would fail half of the time.
    failed = {}
    for candidates in (1, 20):
        count = 0
        for seed in range(30):
            search = genetic(CUBE, seed=seed, candidates=candidates)
            for number in range(50):
                config = ask(search, f"{number}")
                value = None if config["a"] < 0.5 else abs(config["a"] - 0.55) + abs(config["b"] - 0.5)
                count += value is None and number >= 20
                finish(search, f"{number}", config, value)
        failed[candidates] = count / (30 * 30)
    assert failed[20] < 0.2
    assert failed[20] < failed[1]


def test_generations_are_kept_apart_and_wait_for_nobody() -> None:
    search = genetic(CUBE, mode="generational", population=10, elitism=0, **ASEXUAL, tournament=2)
    sobol = build_search(SobolOptions(), CUBE, 0)
    configs = {}
    for number in range(10):
        configs[number] = ask(search, f"{number}")
        assert configs[number] == sobol.ask(f"{number}")
    for number in range(10):
        finish(search, f"{number}", configs[number], configs[number]["a"])
    for number in range(10, 20):
        configs[number] = ask(search, f"{number}")
        finish(search, f"{number}", configs[number], configs[number]["a"] - 10)
        # However good, an elder of the same generation is no parent.
        assert any(int(name) < 10 for name in parents(search, configs[number]))
    # The next generation descends from the one before; half of it is still under way, and nobody waits for it.
    for number in range(20, 30):
        configs[number] = ask(search, f"{number}")
        assert any(10 <= int(name) < 20 for name in parents(search, configs[number]))
    for number in range(20, 25):
        finish(search, f"{number}", configs[number], configs[number]["a"] - 20)
    assert search.ask("30") is not None


def test_generations_end_the_search() -> None:
    search = genetic(CUBE, mode="generational", population=4, generations=3)
    for number in range(12):
        finish(search, f"{number}", ask(search, f"{number}"), 0.0)
    assert search.ask("12") is None


def test_a_finite_space_is_exhausted() -> None:
    space = Space({"a": Int(low=1, high=5), "b": Choice(values=["x", "y"]), "c": Int(low=1, high=4, when={"b": "y"})})
    search = genetic(space, startup=3)
    count = 0
    while (config := search.ask(f"{count}")) is not None:
        finish(search, f"{count}", config, float(config["a"]))
        count += 1
    assert count == 5 * (1 + 4)


def test_a_hard_constraint_is_repaired_not_redrawn() -> None:
    # One twentieth of the square is valid, and the best of it is in the corner.
    space = Space({"x": Float(low=0, high=1), "y": Float(low=0, high=1)}, ["abs(x - y) < 0.025"])
    search = genetic(space, seed=1)
    values = []
    for number in range(60):
        config = ask(search, f"{number}")
        assert space.problems(config) == []
        values.append(config["x"])
        finish(search, f"{number}", config, config["x"])
    assert median(values[40:]) < 0.1


def test_branches_are_inherited() -> None:
    search = genetic(BRANCHES, mutation=0.01, startup=4, population=20)
    for number in range(20):
        config = BRANCHES.sample(np.random.default_rng(number))
        finish(search, f"known {number}", config, float("beta" not in config))
    born = [ask(search, f"{number}") for number in range(30)]
    assert all(BRANCHES.problems(config) == [] for config in born)
    assert sum(config["optimizer"] == "adam" for config in born) > 20


@pytest.mark.parametrize(
    "options",
    [
        {"population": 1},
        {"tournament": 0},
        {"crossover": 1.1},
        {"mutation": 0.0},
        {"elitism": -1},
        {"mode": "odd"},
        {"generations": 3},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        GeneticOptions(**options)
