"""How much each parameter says."""

from __future__ import annotations

import numpy as np
import pytest

from raytuner.search.relevance import relevance


def ordered_by(values: np.ndarray, genes: np.ndarray) -> np.ndarray:
    return genes[np.argsort(values, kind="stable")]


def test_the_parameter_that_decides_weighs_most_also_where_the_best_is_in_the_middle() -> None:
    rng = np.random.default_rng(0)
    genes = rng.random((200, 4))
    weights = relevance(ordered_by((genes[:, 1] - 0.5) ** 2, genes), rng)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[1] > 4 * np.delete(weights, 1).max()


def test_the_coefficient_is_chatterjees() -> None:
    """Of five ranks in the order of the parameter, (0, 4, 1, 3, 2): 1 - 3 * (4 + 3 + 2 + 1) / 24, below 0: none."""
    genes = np.empty((5, 2))
    genes[[0, 4, 1, 3, 2], 0] = np.linspace(0, 1, 5)
    genes[:, 1] = np.linspace(0, 1, 5)  # 1 - 3 * 4 / 24
    weights = relevance(genes, np.random.default_rng(0))
    least = np.sqrt(0.4 / 5)
    assert weights[1] / weights[0] == pytest.approx((0.5 + least) / least)


def test_a_choice_that_says_nothing_is_not_relevant_because_of_its_order() -> None:
    """Equal values are in random order: those of the record are from best to worst."""
    genes = np.column_stack(
        [np.repeat([0.25, 0.75], 100)[np.random.default_rng(1).permutation(200)], np.full(200, 0.5)]
    )
    weights = relevance(genes, np.random.default_rng(0))
    assert 0.2 < weights[0] / weights[1] < 5.0


def test_that_a_parameter_is_active_is_a_value() -> None:
    genes = np.random.default_rng(0).random((100, 2))
    genes[50:, 0] = np.nan  # those without it are the worse half
    weights = relevance(genes, np.random.default_rng(0))
    assert weights[0] > 4 * weights[1]
