"""Code that was written for Ray Tune runs unchanged, without a Ray being started."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host_tools import Outcome, begin, follow, make_host, run, serving, trial_spec

from raytuner.engine.control import Stop
from raytuner.engine.host import ProcessHost, StopRequest
from raytuner.engine.serverclient import ServerSpec
from raytuner.engine.threadhost import ThreadHost

FUNCTIONS = """
import json, os, tempfile, time
from pathlib import Path
from ray import tune


def train(config):
    way = config["way"]
    if way == "loop":
        start = 0
        checkpoint = tune.get_checkpoint()
        if checkpoint:
            with checkpoint.as_directory() as folder:
                start = json.loads((Path(folder) / "state.json").read_text())["step"]
        for step in range(start + 1, 100):
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "state.json").write_text(json.dumps({"step": step}))
                tune.report(
                    {"loss": 1.0 / step, "at": step, "note": "text", "nested": {"acc": 0.5}, "flag": True},
                    checkpoint=tune.Checkpoint.from_directory(folder),
                )
            time.sleep(config.get("seconds", 0))
    elif way == "context":
        context = tune.get_context()
        assert tune.get_checkpoint() is None
        known = {
            "trial_id": context.get_trial_id(),
            "trial_name": context.get_trial_name(),
            "trial_dir": context.get_trial_dir(),
            "experiment": context.get_experiment_name(),
            "resources": context.get_trial_resources(),
        }
        (Path(context.get_trial_dir()) / "context.json").write_text(json.dumps(known))
        tune.report({"loss": 1.0})
    elif way == "number":
        return 0.25
    elif way == "dict":
        return {"loss": 0.25, "extra": 1}
    elif way == "final dict":
        tune.report({"loss": 0.5})
        return {"loss": 0.25}
    elif way == "garbage":
        return "0.25"
    elif way == "nothing":
        return None
    elif way == "no objective":
        tune.report({"acc": 1.0})
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerSpec]:
    folder = tmp_path_factory.mktemp("code")
    with serving(folder, FUNCTIONS, adapter="raytuner.engine.raycode:adapt_function") as spec:
        yield spec


@pytest.fixture
def host(server: ServerSpec) -> Iterator[ProcessHost]:
    made, _ = make_host(server)
    yield made
    made.close()


def metrics(outcome: Outcome) -> list[dict[str, Any]]:
    return [message["metrics"] for message in outcome.of("report")]


def test_reports_are_steps_up_to_the_last(host: ProcessHost, tmp_path: Path) -> None:
    outcome = run(host, trial_spec(tmp_path, "loop"))
    assert outcome.end == {"status": "finished", "reason": "all 5 steps done", "step": 5, "error": None}
    assert outcome.steps == [1, 2, 3, 4, 5]
    assert metrics(outcome)[1] == {"loss": 0.5, "at": 2.0, "nested/acc": 0.5}, "numbers only, and none of Ray's own"


def test_its_checkpoints_are_ours(host: ProcessHost, tmp_path: Path) -> None:
    spec = trial_spec(tmp_path, "loop", decides=(3,), max_steps=6)
    host.begin(spec)
    batch = host.collect()
    assert batch.decide == 3
    host.end()
    written = [message["path"] for message in batch.messages if message["m"] == "checkpoint"]
    assert json.loads(Path(written[-1], "files", "state.json").read_text()) == {"step": 3}
    again = run(host, trial_spec(tmp_path, "loop", max_steps=6, attempt=2, checkpoints=(written[-1],)))
    assert again.of("started")[0]["step"] == 3
    assert [m["at"] for m in metrics(again)] == again.steps == [4, 5, 6]
    assert not list(Path(spec.dir).glob(".files-*"))


def test_a_stop_finds_its_checkpoint(host: ProcessHost, tmp_path: Path) -> None:
    outcome = begin(host, trial_spec(tmp_path, "loop", seconds=0.1, max_steps=90))
    host._stop.set(Stop("enough"))
    follow(host, outcome)
    assert outcome.end["status"] == "stopped"
    assert outcome.of("checkpoint")[-1]["step"] == outcome.end["step"]


def test_it_knows_where_it_is(host: ProcessHost, tmp_path: Path) -> None:
    spec = trial_spec(tmp_path / "my-experiment", "context")
    outcome = run(host, spec)
    assert outcome.end["status"] == "finished", outcome.end
    assert json.loads((outcome.dir / "context.json").read_text()) == {
        "trial_id": spec.trial,
        "trial_name": spec.trial,
        "trial_dir": spec.dir,
        "experiment": "my-experiment",
        "resources": None,
    }


@pytest.mark.parametrize(
    ("way", "reported"),
    [
        ("number", [{"loss": 0.25}]),
        ("dict", [{"loss": 0.25, "extra": 1.0}]),
        ("final dict", [{"loss": 0.5}, {"loss": 0.25}]),
    ],
)
def test_what_it_may_return(host: ProcessHost, tmp_path: Path, way: str, reported: list[dict[str, float]]) -> None:
    outcome = run(host, trial_spec(tmp_path, way))
    assert outcome.end["status"] == "finished"
    assert metrics(outcome) == reported


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("garbage", "may return nothing, a number or a dict, got str"),
        ("nothing", "returned without a report"),
        ("no objective", r"step 1 reported ['acc']; the objective 'loss' is missing"),
    ],
)
def test_what_it_must_not_do(host: ProcessHost, tmp_path: Path, way: str, message: str) -> None:
    outcome = run(host, trial_spec(tmp_path, way))
    assert outcome.end["status"] == "failed"
    assert message in outcome.end["reason"]


# -- classes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make_class() -> Any:
    tune = pytest.importorskip("ray.tune")

    class Counter(tune.Trainable):  # type: ignore[misc, name-defined]
        """Saves a file, or a dict when told to."""

        stopped: list[int] = []  # noqa: RUF012

        def setup(self, config: dict[str, Any]) -> None:
            self.count = 0
            self.as_dict = config["way"] == "dict"
            self.alive = True

        def step(self) -> dict[str, Any]:
            self.count += 1
            assert self.training_iteration == self.count - 1, "Ray's own counters come back too"
            done = self.count == self.config.get("done")
            return {"loss": 1.0 / self.count, "done": done, "note": "text"}

        def save_checkpoint(self, folder: str) -> dict[str, Any] | None:
            assert self.alive, "what was cleaned up must not be saved"
            if self.as_dict:
                return {"count": self.count}
            Path(folder, "deep").mkdir()
            Path(folder, "deep", "count").write_text(str(self.count))
            return None

        def load_checkpoint(self, saved: Any) -> None:
            self.count = saved["count"] if self.as_dict else int(Path(saved, "deep", "count").read_text())

        def cleanup(self) -> None:
            self.alive = False
            self.stopped.append(self.count)

    return Counter


@pytest.fixture
def class_host(make_class: Any) -> Iterator[ThreadHost]:
    from raytuner.engine.raycode import adapt_class

    make_class.stopped.clear()
    host = ThreadHost(adapt_class(make_class), stop=StopRequest())
    yield host
    host.close()


@pytest.mark.parametrize("way", ["file", "dict"])
def test_a_class_is_saved_and_goes_on(class_host: ThreadHost, make_class: Any, tmp_path: Path, way: str) -> None:
    class_host.begin(trial_spec(tmp_path, way, decides=(2,), pauses=True))
    batch = class_host.collect()
    assert batch.decide == 2
    class_host.end()
    (path,) = (m["path"] for m in batch.messages if m["m"] == "checkpoint" and m["step"] == 2)
    outcome = run(class_host, trial_spec(tmp_path, way, attempt=2, checkpoints=(path,)))
    assert outcome.end["status"] == "finished", outcome.end
    assert [m["loss"] for m in metrics(outcome)] == [1 / 3, 1 / 4, 1 / 5]
    assert metrics(outcome)[0].keys() == {"loss"}
    assert make_class.stopped == [2, 5]


def test_a_class_may_be_done_early(class_host: ThreadHost, make_class: Any, tmp_path: Path) -> None:
    outcome = run(class_host, trial_spec(tmp_path, "file", done=3, policy={"best": False, "every_time": None}))
    assert (outcome.end["status"], outcome.end["step"]) == ("finished", 3)
    assert [(m["step"], m["reason"]) for m in outcome.of("checkpoint")] == [(3, "last")]
    assert make_class.stopped == [3]


def test_a_class_without_max_steps_ends_by_itself(class_host: ThreadHost, tmp_path: Path) -> None:
    outcome = run(class_host, trial_spec(tmp_path, "file", done=4, max_steps=None))
    assert (outcome.end["status"], outcome.steps) == ("finished", [1, 2, 3, 4])
