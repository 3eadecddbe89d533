"""The Gaussian process, what it is fitted to, and the search that it guides."""

from __future__ import annotations

import numpy as np
import pytest

from raytuner.search import BayesianOptions, BayesianSearch, Observation, RandomOptions, RandomSearch, Search
from raytuner.search.base import Trial
from raytuner.search.encoding import Encoder
from raytuner.search.fidelity import FidelityProcess, at_rungs
from raytuner.search.gaussian import GaussianProcess
from raytuner.space import Choice, Config, Float, Int, Space

SPACE = Space(
    {
        "x": Float(low=0.0, high=1.0),
        "n": Int(low=1, high=1000, log=True),
        "kind": Choice(values=["a", "b", "c"]),
        "size": Choice(values=[1, 2, 4], ordered=True),
        "y": Float(low=0.0, high=1.0, when={"kind": ["a", "b"]}),
        "z": Float(low=0.0, high=1.0, when="y > 0.5"),
    }
)


def sample(seed: int, rows: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four dimensions, of which the second is nominal and the last does not matter."""
    rng = np.random.default_rng(seed)
    x = rng.random((rows, 4))
    x[:, 1] = rng.integers(3, size=rows) / 2
    return x, np.sin(4 * x[:, 0]) + (x[:, 1] == 0.5) + x[:, 2] ** 2, np.array([False, True, False, False])


def test_the_gradient_is_that_of_the_loss() -> None:
    x, y, nominal = sample(0)
    process = GaussianProcess(x, y, nominal, fitted=100)
    at = process.parameters + np.array([0.5, -0.3, 0.2, -1.0, 0.4])
    _, gradient = process._loss(at)
    for index, step in enumerate(np.eye(5) * 1e-5):
        numeric = (process._loss(at + step)[0] - process._loss(at - step)[0]) / 2e-5
        assert gradient[index] == pytest.approx(numeric, rel=1e-4, abs=1e-4)


def test_the_process_learns_what_matters_and_knows_what_it_does_not_know() -> None:
    x, y, nominal = sample(0, 60)
    process = GaussianProcess(x, y, nominal, fitted=100)
    unseen, truth, _ = sample(1, 200)
    mean, deviation = process.predict(unseen)
    assert np.corrcoef(mean, truth)[0, 1] > 0.97
    assert (np.abs(mean - truth) < 4 * np.hypot(deviation, process.noise)).mean() > 0.9
    assert process.parameters[3] > process.parameters[0]  # the last dimension's length scale is longer
    far = GaussianProcess(x[x[:, 0] < 0.3], y[x[:, 0] < 0.3], nominal, fitted=100)
    right = np.array([[1.0, 0.5, 0.5, 0.5]])
    assert far.predict(right)[1] > 3 * process.predict(right)[1]


def test_an_expected_point_moves_no_mean_and_takes_doubt_away() -> None:
    x, y, nominal = sample(0)
    process = GaussianProcess(x, y, nominal, fitted=100)
    there = sample(2, 5)[0]
    more = process.with_points(there)
    assert more.predict(there)[0] == pytest.approx(process.predict(there)[0], abs=1e-6)
    assert (more.predict(there)[1] < process.predict(there)[1]).all()


def test_rows_stand_where_their_configurations_do() -> None:
    encoder = Encoder(SPACE)
    rng = np.random.default_rng(0)
    settled = encoder.settled(rng.random((300, len(SPACE.names))))
    configs = [SPACE.from_unit(row) for row in settled]
    assert encoder.rows(configs) == pytest.approx(settled)
    assert encoder.settled(settled.copy()) == pytest.approx(settled)
    active = encoder.active(settled)
    for config, mask in zip(configs, active, strict=True):
        assert {name for name, here in zip(SPACE.names, mask, strict=True) if here} == set(config)
    assert encoder.nominal.tolist() == [name == "kind" for name in SPACE.names]


def test_parameters_that_are_fitted_to_some_points_predict_from_all() -> None:
    x, y, nominal = sample(0, 200)
    process = GaussianProcess(x, y, nominal, fitted=50)
    assert process.predict(x)[0] == pytest.approx(y, abs=0.1)


def trial(status: str, **values: float) -> Trial:
    return Trial({}, status, {int(step[1:]): value for step, value in values.items()})  # type: ignore[arg-type]


def test_rungs_are_where_trials_were_seen_on_their_way() -> None:
    nan = float("nan")
    early = [trial("stopped", s1=0.5)] * 3
    later = [trial("stopped", s1=0.4, s3=0.3), trial("running", s1=0.4, s3=0.2), trial("paused", s1=0.4, s3=0.1)]
    ends = [trial("finished", s1=0.3, s3=0.2, s9=0.1)] * 3
    by_itself = trial("finished", s1=0.3, s2=0.25)  # it has no more to come
    young, odd = trial("running", s1=0.6), trial("stopped", s2=0.7)
    found = at_rungs([*early, *later, *ends, by_itself, young, odd])
    expected = [[0.5, nan, nan]] * 3 + [[0.4, 0.3, nan], [0.4, 0.2, nan], [0.4, 0.1, nan]] + [[0.3, 0.2, 0.1]] * 3
    np.testing.assert_array_equal(found, [*expected, [0.3, 0.25, 0.25], [0.6, nan, nan], [0.7, nan, nan]])
    # The end is a rung when enough have reached it, and the only one where hardly anybody is seen on the way.
    np.testing.assert_array_equal(at_rungs([*early, *later, *ends[:2]])[-1], [0.3, 0.2])
    np.testing.assert_array_equal(at_rungs([*ends[:2], by_itself]), [[0.3, 0.1]] * 2 + [[0.3, 0.25]])
    np.testing.assert_array_equal(at_rungs([trial("finished", s5=0.2), trial("finished", s7=0.1)]), [[0.2], [0.1]])
    np.testing.assert_array_equal(at_rungs([trial("running", s5=0.2)]), [[0.2]])


def rungs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Trials whose first value grows with the first coordinate; those with a great second one end better."""
    x = np.random.default_rng(seed).random((60, 2))
    y = np.stack([x[:, 0], x[:, 0] - x[:, 1]], axis=1)
    y[x[:, 0] > 0.5, 1] = np.nan  # stopped early
    return x, y


def test_those_that_went_on_say_what_is_to_come_for_their_neighbours() -> None:
    x, y = rungs(0)
    process = FidelityProcess(x, y, np.array([False, False]), 100)
    unseen = np.array([[0.2, 0.1], [0.2, 0.9], [0.6, 0.9]])
    means, deviations = process.predict(unseen)
    assert means[0] == pytest.approx(unseen[:, 0], abs=0.05)
    assert means[1] == pytest.approx(unseen[:, 0] - unseen[:, 1], abs=0.15)
    assert (deviations[1] > deviations[0]).all()
    assert process.noise.shape == process.spread.shape == (2,)


def test_a_point_under_way_takes_the_doubt_away_from_where_it_was_not_seen_yet() -> None:
    x, y = rungs(0)
    process = FidelityProcess(x, y, np.array([False, False]), 100)
    there = np.array([[0.95, 0.5]])
    means, deviations = process.predict(there)
    for reached in (0, 1):
        more_means, less = process.with_points(there, np.array([reached])).predict(there)
        assert more_means == pytest.approx(means, abs=1e-6)
        assert less[1] < deviations[1]
        assert (less[0] < deviations[0]) == (reached == 0)


def solve(search: Search, trials: int = 40) -> float:
    """The best value of a smooth function of a mixed space."""
    best = np.inf
    for number in range(trials):
        config = search.ask(str(number))
        assert config is not None
        value = (config["x"] - 0.3) ** 2 + (np.log10(config["n"]) - 2.0) ** 2 / 9 + 0.1 * (config["kind"] != "b")
        value += 0.05 * abs(config["size"] - 2) + 0.2 * (config.get("y", 0.0) - 0.8) ** 2
        value += 0.1 * (config.get("z", 0.5) - 0.5) ** 2
        search.tell(Observation(str(number), config, step=1, value=float(value), status="finished"))
        best = min(best, float(value))
    return best


def test_it_finds_what_random_search_does_not() -> None:
    found = [solve(BayesianSearch(SPACE, seed=seed, options=BayesianOptions())) for seed in range(3)]
    drawn = [solve(RandomSearch(SPACE, seed=seed, options=RandomOptions())) for seed in range(3)]
    assert np.median(found) < 0.1 * np.median(drawn)


def tell(search: Search, number: int, value: float | None, status: str = "finished", step: int = 1) -> Config:
    trial_id = f"{number:06d}"
    config = search.ask(trial_id)
    assert config is not None
    search.tell(Observation(trial_id, config, step=step, value=value, status=status))  # type: ignore[arg-type]
    return config


def test_it_keeps_away_from_where_trials_fail() -> None:
    space = Space({"x": Float(low=0.0, high=1.0), "y": Float(low=0.0, high=1.0)})
    search = BayesianSearch(space, seed=0, options=BayesianOptions())
    failed = 0
    for number in range(40):
        config = search.ask(str(number))
        assert config is not None
        bad = config["x"] > 0.5  # and just there, values would have been best
        status, value = ("failed", None) if bad else ("finished", 1.0 - config["x"] + config["y"])
        search.tell(Observation(str(number), config, step=1, value=value, status=status))  # type: ignore[arg-type]
        failed += bad and number >= 20
    assert failed <= 4


def test_many_workers_do_not_crowd_one_point() -> None:
    space = Space({"x": Float(low=0.0, high=1.0), "y": Float(low=0.0, high=1.0)})
    search = BayesianSearch(space, seed=0, options=BayesianOptions())
    for number in range(12):
        config = search.ask(str(number))
        assert config is not None
        value = (config["x"] - 0.3) ** 2 + (config["y"] - 0.6) ** 2
        search.tell(Observation(str(number), config, step=1, value=value, status="finished"))
    asked = [search.ask(f"p{number}") for number in range(16)]
    places = np.array([[c["x"], c["y"]] for c in asked if c is not None])
    assert len(places) == 16
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + np.eye(16)
    assert apart.min() > 0.0005
    assert np.ptp(places, axis=0).min() > 0.03


def test_a_long_history_is_thinned_and_answered() -> None:
    space = Space({"x": Float(low=0.0, high=1.0), "kind": Choice(values=["a", "b"])})
    search = BayesianSearch(space, seed=0, options=BayesianOptions())
    rng = np.random.default_rng(0)
    for number in range(1000):
        config = space.sample(rng)
        value = abs(config["x"] - 0.7) + (config["kind"] == "a")
        search.tell(Observation(str(number), config, step=1, value=value, status="finished"))
    config = search.ask("next")
    assert config is not None
    assert config["kind"] == "b"
    assert abs(config["x"] - 0.7) < 0.05


def test_trials_of_another_space_teach_nothing() -> None:
    space = Space({"x": Float(low=0.0, high=1.0)})
    one, other = (BayesianSearch(space, seed=0, options=BayesianOptions(startup=2)) for _ in range(2))
    one.tell(Observation("foreign", {"x": 7.0}, step=1, value=-5.0, status="finished"))
    answers = [[tell(search, n, float(n % 3)) for n in range(6)] for search in (one, other)]
    assert answers[0] == answers[1]


def test_it_does_not_ask_for_what_would_be_stopped_at_the_first_rung() -> None:
    """Nothing is known of the end where ``x`` is large, but everybody there is stopped after the first step."""
    space = Space({"x": Float(low=0.0, high=1.0), "y": Float(low=0.0, high=1.0)})
    search = BayesianSearch(space, seed=0, options=BayesianOptions())
    stopped = 0
    for number in range(40):
        name = f"{number:06d}"
        config = search.ask(name)
        assert config is not None
        bad = config["x"] > 0.3
        search.tell(Observation(name, config, step=1, value=config["x"], status="stopped" if bad else "running"))
        if not bad:
            value = config["x"] + (config["y"] - 0.5) ** 2
            search.tell(Observation(name, config, step=9, value=value, status="finished"))
        stopped += bad and number >= 15
    assert stopped <= 8
