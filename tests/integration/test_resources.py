"""What trials take of the GPUs: as much as their configurations say, as they were seen to need, as nodes have."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, events_of

from raytuner.engine import runner
from raytuner.engine.nodes import Growth
from raytuner.errors import JournalError, PlanError
from raytuner.journal import Folder, Retried, TrialEnded, TrialStarted
from raytuner.launch.control import request_stop

pytestmark = pytest.mark.usefixtures("ray")

GPUS = 6


def most_at_once(starts: list[TrialStarted], ends: list[TrialEnded]) -> float:
    """The most GPUs that were taken at any time."""
    changes = [(e.at, e.gpu) for e in starts]
    gone = {(e.trial, e.attempt): e.gpu for e in starts}
    changes += [(e.at, -gone[e.trial, e.attempt]) for e in ends]
    taken = most = 0.0
    for _, change in sorted(changes):
        taken += change
        most = max(most, taken)
    return most


def test_trials_take_what_their_configurations_say(run: Run, tmp_path: Path) -> None:
    state, folder = run(
        train="objectives:where",
        space={"width": {"type": "choice", "values": [128, 256, 512, 1024]}, "seconds": [0.2, 0.21, 0.22, 0.23]},
        search="grid",
        resources={"cpu": 0.1, "gpu": "0.5 if width <= 256 else width // 512 * 2"},
    )
    assert [t.status for t in state.trials.values()] == ["finished"] * 16
    wanted = {128: 0.5, 256: 0.5, 512: 2.0, 1024: 4.0}
    for trial in state.trials.values():
        assert trial.gpu == wanted[trial.config["width"]]
        seen = (folder.trial(trial.id) / "devices.txt").read_text().split(",")
        assert seen == trial.gpus
        assert len(seen) == max(1, trial.gpu)
    most = most_at_once(events_of(folder, TrialStarted), events_of(folder, TrialEnded))
    assert 4.0 <= most <= GPUS


def test_auto_packs_trials_by_what_the_first_were_seen_to_take(run: Run) -> None:
    state, folder = run(
        train="torch_objectives:hungry",
        space={"size": {"type": "choice", "values": [3]}, "seconds": {"type": "float", "low": 0.05, "high": 0.06}},
        objective={"metric": "loss", "mode": "min", "max_steps": 3},
        resources={"cpu": 0.05, "gpu": "auto", "concurrent_trials": 3},
        budget={"trials": 9},
    )
    assert [t.status for t in state.trials.values()] == ["finished"] * 9
    shares = [t.gpu for t in state.trials.values()]
    assert shares[:3] == [1.0] * 3, "nothing is known yet"
    assert shares[-1] == 0.2, "five of 3 GB, with a margin, and CUDA's own part"
    assert len({e.gpu for e in events_of(folder, TrialStarted)}) == 2


def test_a_trial_that_runs_out_of_memory_is_given_more(run: Run) -> None:
    state, folder = run(
        train="torch_objectives:hungry",
        space={"size": {"type": "choice", "values": [3, 11]}},
        search="grid",
        objective={"metric": "loss", "mode": "min", "max_steps": 3},
        resources={"cpu": 0.1, "gpu": 0.25},
    )
    assert {t.config["size"]: (t.status, t.gpu) for t in state.trials.values()} == {
        3: ("finished", 0.25),
        11: ("finished", 0.5),
    }
    (retried,) = events_of(folder, Retried)
    assert (retried.step, retried.gpu) == (1, 0.5)
    assert state.steps == 6, "it goes on from its checkpoint"


def test_only_nodes_that_suit_are_asked(run: Run, ray: Any) -> None:
    (node,) = ray.nodes()
    label, value = next(iter(node["Labels"].items()))
    space = {"width": {"type": "choice", "values": [1, 2, 3]}}
    state, _ = run(
        train="objectives:where", space=space, search="grid", resources={"cpu": 0.5, "labels": {label: value}}
    )
    assert [t.status for t in state.trials.values()] == ["finished"] * 3
    with pytest.raises(PlanError, match=r"resources.labels: some node must have it.*got zone=moon"):
        run(train="objectives:where", space=space, search="grid", name="two", resources={"labels": {"zone": "moon"}})
    with pytest.raises(PlanError, match=r"resources.accelerator: .*got H100; write another"):
        run(train="objectives:where", space=space, search="grid", name="two", resources={"accelerator": "H100"})


def test_a_stop_does_not_wait_for_a_node_that_never_comes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "autoscaler", lambda: Growth((({"CPU": 1.0, "GPU": 100.0}, {}, 1),)))
    folder = Folder(tmp_path / "results/test")
    answers: list[str] = []

    def stop() -> None:
        while not answers:
            time.sleep(1.0)
            with suppress(JournalError):  # not before the driver is at work
                answers.append(request_stop(folder, None))

    asking = threading.Thread(target=stop)
    asking.start()
    state, _ = run(train="objectives:curve", budget={"trials": 3}, resources={"gpu": 50})
    asking.join()
    assert state.status == "interrupted"
    assert all(trial.attempt == 0 or trial.reason.startswith("interrupted") for trial in state.trials.values())
    assert not events_of(folder, TrialStarted)


def test_slots_do_not_wait_for_devices_that_others_hold(run: Run, ray: Any) -> None:
    """Of six GPUs another job has four: the two slots that there can be lose no time over those that there cannot."""

    @ray.remote(num_cpus=0, num_gpus=4)
    class Others:
        def there(self) -> bool:
            return True

    others = Others.remote()
    assert ray.get(others.there.remote())
    try:
        state, folder = run(
            train="objectives:curve",
            space={"x": {"type": "float", "low": 0.0, "high": 1.0}, "seconds": {"type": "choice", "values": [0.3]}},
            objective={"metric": "loss", "mode": "min", "max_steps": 1},
            resources={"cpu": 0.1, "gpu": 1},
            budget={"trials": 12},
        )
    finally:
        ray.kill(others)
    assert [t.status for t in state.trials.values()] == ["finished"] * 12
    starts = sorted(event.at for event in events_of(folder, TrialStarted))
    assert max(after - before for before, after in pairwise(starts)) < 10, "a slot that waits does so for 15 s"
