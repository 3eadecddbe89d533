"""Grid search: everything once."""

from __future__ import annotations

import pytest

from raytuner.errors import SearchError
from raytuner.search import GridOptions, GridSearch, build_search
from raytuner.space import Choice, Config, Float, Int, Space

SPACE = Space(
    {
        "a": Choice(values=["x", "y"]),
        "b": Int(low=1, high=3, when={"a": "x"}),
        "lr": Float(low=1, high=100, log=True),
    }
)


def all_of(search: GridSearch) -> list[Config]:
    configs: list[Config] = []
    while (config := search.ask(f"{len(configs)}")) is not None:
        configs.append(config)
    return configs


def grid(space: Space, points: int, first: list[Config] | None = None) -> GridSearch:
    search = build_search(GridOptions(points=points), space, 0, first or [])
    assert isinstance(search, GridSearch)
    return search


@pytest.mark.parametrize("points", [1, 2, 5])
def test_a_grid_is_as_large_as_counted(points: int) -> None:
    assert len(all_of(grid(SPACE, points))) == SPACE.grid_size(points) == (3 + 1) * points


def test_the_parameter_written_last_varies_fastest() -> None:
    configs = all_of(grid(SPACE, 2))
    assert configs[:3] == [
        {"a": "x", "b": 1, "lr": 1.0},
        {"a": "x", "b": 1, "lr": 100.0},
        {"a": "x", "b": 2, "lr": 1.0},
    ]
    assert configs[-1] == {"a": "y", "lr": 100.0}


def test_what_came_first_is_not_repeated() -> None:
    first = [{"a": "y", "lr": 1.0}, {"a": "y", "lr": 7.0}]
    configs = all_of(grid(SPACE, 2, first))
    assert configs[:2] == first
    assert len(configs) == 8 + 1  # one of the two is on the grid


def test_too_large_a_grid_is_refused() -> None:
    wide = Space({f"x{i}": Float(low=0, high=1) for i in range(9)})
    assert GridSearch.supports(wide, GridOptions(points=4)) == []  # 4 ** 9 = 262,144
    (reason,) = GridSearch.supports(wide)  # 5 ** 9
    assert "1,953,125" in reason
    with pytest.raises(SearchError, match="1,953,125"):
        build_search(GridOptions(), wide, 0)
    endless = Space({"n": Int(low=1, high=10**6), "m": Int(low=1, high=2, when="n > 3")})
    assert "more than can be counted" in GridSearch.supports(endless)[0]
