"""Random search: draws and Sobol points."""

from __future__ import annotations

import numpy as np
import pytest

from raytuner.search import Observation, RandomOptions, Search, SobolOptions, build_search
from raytuner.space import Choice, Float, Int, Space

CUBE = Space({"x": Float(low=0, high=1), "y": Float(low=0, high=1)})


def sobol(space: Space, seed: int = 0) -> Search:
    return build_search(SobolOptions(), space, seed)


def test_an_ask_draws_from_its_own_stream() -> None:
    search = build_search(RandomOptions(), CUBE, 11)
    for number in range(5):
        assert search.ask(f"{number}") == CUBE.sample(np.random.default_rng([11, number]))


def test_an_ask_does_not_depend_on_what_was_told() -> None:
    for options in (RandomOptions(), SobolOptions()):
        told, silent = (build_search(options, CUBE, 0) for _ in range(2))
        for number in range(70):
            config = told.ask(f"{number}")
            assert config is not None
            assert config == silent.ask(f"{number}")
            told.tell(Observation(f"{number}", config, 1, config["x"], "finished"))


def test_sobol_points_fill_every_cell() -> None:
    # The first 64 points of a scrambled (0, 2)-sequence in base 2 leave no cell of an 8 x 8 board empty.
    search = sobol(CUBE)
    points = [search.ask(f"{number}") or {} for number in range(64)]
    assert {(int(point["x"] * 8), int(point["y"] * 8)) for point in points} == {
        (i, j) for i in range(8) for j in range(8)
    }


def test_sobol_proposal_k_is_point_k_after_any_restart() -> None:
    whole = sobol(CUBE)
    points = [whole.ask(f"{number}") for number in range(140)]
    for cut in (1, 63, 64, 65, 130):
        restarted = sobol(CUBE)
        for number, point in enumerate(points[:cut]):
            restarted.asked(f"{number}", point or {})
        assert [restarted.ask(f"{number}") for number in range(cut, 140)] == points[cut:]


def test_sobol_moves_on_to_the_next_valid_point() -> None:
    half = Space(CUBE.parameters, ["x < 0.5"])
    whole = sobol(CUBE)
    expected = [point for number in range(200) if (point := whole.ask(f"{number}")) and point["x"] < 0.5]
    search = sobol(half)
    assert [search.ask(f"{number}") for number in range(len(expected))] == expected


@pytest.mark.parametrize("options", [RandomOptions(), SobolOptions()])
def test_choices_are_equally_likely(options: RandomOptions | SobolOptions) -> None:
    space = Space({"a": Choice(values=["x", "y", "z"]), "b": Int(low=1, high=1000)})
    search = build_search(options, space, 0)
    counts = {"x": 0, "y": 0, "z": 0}
    for number in range(300):
        counts[(search.ask(f"{number}") or {})["a"]] += 1
    # 100 each, with a standard deviation of 8.2 for independent draws: 4 of them.
    assert all(abs(count - 100) < 33 for count in counts.values())


def test_a_needle_is_found_and_then_nothing() -> None:
    space = Space({"a": Int(low=1, high=100), "b": Int(low=1, high=100)}, ["a * b == 97"])
    for options in (RandomOptions(), SobolOptions()):
        search = build_search(options, space, 0)
        found = [search.ask(f"{number}") for number in range(3)]
        assert sorted(config["a"] for config in found if config) == [1, 97]
        assert found[2] is None
