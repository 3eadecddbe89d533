"""Training functions for the integration tests: small, deterministic, and badly behaved on demand."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from raytuner import Trial


def quadratic(trial: Trial) -> float:
    return (trial.config["x"] - 2.0) ** 2


def curve(trial: Trial) -> None:
    """A learning curve that a bad x never makes good; it keeps a state, so that it can be paused."""
    weights = np.zeros(3)
    for step in trial.steps(weights=weights):
        weights += 1.0
        assert weights[0] == step, "a resumed trial must go on from its checkpoint"
        time.sleep(trial.config.get("seconds", 0.0))
        trial.report(loss=(trial.config["x"] - 2.0) ** 2 + 1.0 / step)


def held_curve(trial: Trial) -> None:
    """The same, whose steps don't end while a file is there."""
    weights = np.zeros(3)
    for step in trial.steps(weights=weights):
        weights += 1.0
        assert weights[0] == step, "a resumed trial must go on from its checkpoint"
        time.sleep(trial.config["seconds"])
        while Path(trial.config["held_by"]).exists():
            time.sleep(0.01)
        trial.report(loss=(trial.config["x"] - 2.0) ** 2 + 1.0 / step)


def weighty(trial: Trial) -> None:
    """The same with a state of a megabyte, and something printed in every step."""
    weights = np.zeros(2**17)
    for step in trial.steps(weights=weights):
        weights += 1.0
        assert weights[-1] == step, "a resumed trial must go on from its checkpoint"
        print("step", step, "x" * 5000)
        time.sleep(trial.config["seconds"])
        trial.report(loss=(trial.config["x"] - 2.0) ** 2 + 1.0 / step)


def curve_test(trial: Trial) -> dict[str, float]:
    weights = np.zeros(3)
    trial.restore(weights=weights)
    return {"test_loss": float(weights[0])}


def held_test(trial: Trial) -> dict[str, float]:
    """The same, which says which process it is, and does not end while a file is there."""
    hold = Path(trial.config["held_by"])
    with hold.with_suffix(".pids").open("a") as pids:
        print(os.getpid(), file=pids, flush=True)
    while hold.exists():
        time.sleep(0.01)
    return curve_test(trial)


def endless(trial: Trial) -> None:
    print("begun", flush=True)
    for _ in trial.steps():
        time.sleep(600)
        trial.report(loss=0.0)


def with_helper(trial: Trial) -> None:
    """Starts a process of its own, says which, and does not end."""
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(f"helper {helper.pid}", flush=True)
    time.sleep(600)


def bad(trial: Trial) -> None:
    match trial.config["way"]:
        case "raise":
            raise ValueError("no such luck")
        case "exit":
            os._exit(7)
        case "segfault":
            ctypes.string_at(0)
        case "nan":
            trial.report(loss=float("nan"))
        case "missing":
            trial.report(accuracy=1.0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "good":
            trial.report(loss=1.0)


def ray_function(config: dict) -> None:
    """A plain Ray Tune function with its own checkpoints."""
    import tempfile
    from pathlib import Path

    from ray import tune

    start = 0
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            start = int(Path(folder, "step").read_text())
    for step in range(start + 1, 100):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "step").write_text(str(step))
            tune.report(
                {"loss": (config["x"] - 2.0) ** 2 + 1.0 / step, "at": step},
                checkpoint=tune.Checkpoint.from_directory(folder),
            )


def uses_ray(trial: Trial) -> None:
    """Needs Ray itself: only possible in the actor."""
    import ray

    @ray.remote(num_cpus=0)
    def square(x: float) -> float:
        return x * x

    trial.report(loss=ray.get(square.remote(trial.config["x"] - 2.0)))


def learner(trial: Trial) -> None:
    """What is learnt adds up over the steps: a state that is copied brings all that its trial has learnt."""
    learnt = np.zeros(1)
    steps = np.zeros(1)
    for step in trial.steps(learnt=learnt, steps=steps):
        learnt += trial.config["rate"]
        steps += 1
        assert steps[0] == step, "the step comes along with the state"
        time.sleep(trial.config["pause"])
        trial.report(learnt=float(learnt[0]))


def where(trial: Trial) -> None:
    """Leaves the devices that it sees."""
    time.sleep(trial.config.get("seconds", 0.0))
    (trial.dir / "devices.txt").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    trial.report(loss=float(trial.config["width"]))
