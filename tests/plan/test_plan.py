"""Plans: what an experiment comes to on a machine."""

from __future__ import annotations

import json
import os
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from raytuner.definition import Experiment, load, to_yaml
from raytuner.engine.mps import PROGRAM
from raytuner.errors import DefinitionError, PlanError
from raytuner.plan import MPS, Machine, Node, Plan, compile

BIG = Machine(cpus=64, gpus=8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "objectives.py").write_text("def train(trial): ...\ndef test(trial): ...\ndef plain(config): ...\n")
    return tmp_path


def plan(root: Path, machine: Machine = BIG, **changed: Any) -> Plan:
    given: dict[str, Any] = {
        "name": "digits",
        "train": "objectives:train",
        "objective": {"metric": "loss", "mode": "min", "max_steps": 27},
        "space": {"lr": {"type": "float", "low": 1e-4, "high": 0.1}, "depth": {"type": "int", "low": 1, "high": 4}},
        "search": "random",
        "budget": {"trials": 9},
    }
    return compile(Experiment(**(given | changed)), import_root=root, cwd=root, machine=machine)


class TestGenerations:
    SEARCH: ClassVar = {"type": "genetic", "mode": "generational", "population": 5, "generations": 3}

    def test_end_the_experiment(self, root: Path) -> None:
        found = plan(root, search=self.SEARCH, scheduler="asha", budget={"trials": 30})
        assert (found.trials, found.rungs[0]) == (15, (1, 15.0))
        assert "budget.trials is 30, but there are only 15 configurations to try" in found.warnings
        assert plan(root, search=self.SEARCH, budget={"trials": 9}).trials == 9

    def test_are_a_budget_of_their_own(self, root: Path) -> None:
        assert plan(root, search=self.SEARCH, budget={}).trials == 15
        with pytest.raises(DefinitionError, match="a budget is needed"):
            plan(root, search={"type": "genetic", "mode": "generational"}, budget={})

    def test_that_never_come_are_warned_of(self, root: Path) -> None:
        forever = {"type": "genetic", "mode": "generational"}
        (warning,) = plan(root, Machine(8, 0), search=forever, budget={"trials": 30}).warnings
        assert "of 30 trials none learns from another, since the first 100 fill the space" in warning
        assert plan(root, Machine(8, 0), search=forever, budget={"trials": 101}).warnings == ()
        assert plan(root, Machine(8, 0), search=self.SEARCH, budget={"trials": 15}).warnings == ()
        few = {"depth": {"type": "int", "low": 1, "high": 4}}
        everything = plan(root, Machine(8, 0), search=forever, space=few, budget={"trials": 4})
        assert everything.warnings == (), "nothing is left to learn"


def test_accelerators_and_labels_are_not_known_to_be_here(root: Path) -> None:
    resources = {"accelerator": "H100", "labels": {"zone": "a"}}
    accelerator, labels = plan(root, Machine(4, 0), resources=resources).warnings
    assert accelerator.startswith("resources.accelerator is H100, and this machine has no GPU; `raytuner run` refuses")
    assert labels.startswith("resources.labels: a Ray that is started here has no zone=a; ")
    assert "known when Ray looks" in plan(root, resources={"accelerator": "H100", "gpu": 1}).warnings[0]
    nodes = (Node(4, 0, frozenset({"H100"}), {"zone": "a"}),)
    assert plan(root, Machine(4, 0, nodes), resources=resources).warnings == ()


@pytest.mark.parametrize("gpu", [0.25, "auto", "0.5 if depth > 1 else 1"])
def test_in_the_actor_nothing_limits_memory(root: Path, gpu: Any) -> None:
    (warning,) = plan(root, isolation="actor", resources={"gpu": gpu}).warnings
    assert f"resources.gpu is {gpu}, but with isolation: actor nothing holds a trial to its share" in warning
    assert plan(root, isolation="actor", resources={"gpu": 1}).warnings == ()
    assert plan(root, resources={"gpu": gpu}).warnings == ()


def test_a_population_that_never_decides(root: Path) -> None:
    scheduler = {"type": "pbt", "mutate": ["lr"], "population": 8, "perturbation_interval": 4, "burn_in": 100}
    (warning,) = plan(root, Machine(8, 0), scheduler=scheduler, budget={}).warnings
    assert warning.startswith("scheduler.burn_in is 100, and the last decision is at step 24")
    assert plan(root, Machine(8, 0), scheduler={**scheduler, "burn_in": 24}, budget={}).warnings == ()


def test_mps_that_is_not_here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resources = {"gpu": 0.5, "mps": True}
    assert MPS == PROGRAM, "one word in two rooms"
    monkeypatch.setenv("PATH", str(root))
    assert "this machine has no nvidia-cuda-mps-control" in plan(root, resources=resources).warnings[0]
    (root / "nvidia-cuda-mps-control").touch(mode=0o755)
    assert plan(root, resources=resources).warnings == ()


class TestSlots:
    @pytest.mark.parametrize(
        ("resources", "machine", "slots", "limit"),
        [
            ({}, Machine(4, 0), 4, "the CPUs"),
            ({"cpu": 3}, Machine(8, 0), 2, "the CPUs"),
            ({"cpu": 0.1}, Machine(1, 0), 9, "the number of trials"),
            ({"cpu": 0.3}, Machine(1, 0), 3, "the CPUs"),
            ({"gpu": 1}, Machine(64, 2), 2, "the GPUs"),
            ({"gpu": 2}, Machine(64, 5), 2, "the GPUs"),
            ({"gpu": 0.5}, Machine(64, 2), 4, "the GPUs"),
            ({"gpu": 0.4}, Machine(64, 3), 6, "the GPUs"),
            ({"gpu": 0.1}, Machine(8, 1), 8, "the CPUs"),
            ({"concurrent_trials": 2}, Machine(64, 0), 2, "concurrent_trials"),
        ],
    )
    def test_follow_the_resources(
        self, root: Path, resources: dict[str, float], machine: Machine, slots: int, limit: str
    ) -> None:
        found = plan(root, machine, resources=resources)
        assert (found.slots, found.slots_limited_by) == (slots, limit)

    @pytest.mark.parametrize(
        ("resources", "machine", "words"),
        [
            ({"cpu": 4}, Machine(2, 0), r"resources\.cpu: .*there are 2 CPUs for it, got 4 CPU; ask for less"),
            ({"gpu": 1}, Machine(2, 0), r"resources\.gpu: .*there are 0 GPUs"),
            ({"gpu": 4}, Machine(2, 2), r"resources\.gpu: .*there are 2 GPUs"),
            ({"gpu": 0.5}, Machine(2, 0), r"resources\.gpu"),
        ],
    )
    def test_there_must_be_one(self, root: Path, resources: dict[str, float], machine: Machine, words: str) -> None:
        with pytest.raises(PlanError, match=words):
            plan(root, machine, resources=resources)

    def test_every_reason_is_told(self, root: Path) -> None:
        with pytest.raises(PlanError, match=r"(?s)storage.*resources\.cpu.*resources\.gpu"):
            plan(root, Machine(1, 0), resources={"cpu": 2, "gpu": 1}, storage="ftp://host/x")


class TestCost:
    def test_without_a_scheduler_every_trial_trains_to_its_end(self, root: Path) -> None:
        found = plan(root)
        assert found.rungs == ((27, 9.0),)
        assert (found.steps_upper, found.steps_expected) == (243, 243.0)

    def test_with_asha_between_halving_and_everything(self, root: Path) -> None:
        found = plan(root, scheduler="asha", budget={"trials": 81})
        assert [step for step, _ in found.rungs] == [1, 3, 9, 27]
        reached = [reaching for _, reaching in found.rungs]
        assert reached[0] == 81
        assert all(a is not None and b is not None and a >= b for a, b in pairwise(reached))
        assert found.steps_upper == 81 * 27
        # Successive halving with all trials at hand would train 81 + 27 * 2 + 9 * 6 + 3 * 18 steps.
        assert found.steps_expected is not None
        assert 243 <= found.steps_expected < 81 * 27 / 2

    def test_the_expected_steps_are_those_between_rungs(self, root: Path) -> None:
        found = plan(root, scheduler="asha")
        total, last = 0.0, 0
        for step, reaching in found.rungs:
            total += (reaching or 0) * (step - last)
            last = step
        assert found.steps_expected == pytest.approx(total)

    def test_a_time_budget_alone_has_no_bound(self, root: Path) -> None:
        found = plan(root, scheduler="asha", budget={"time": "30m"})
        assert (found.trials, found.steps_upper, found.steps_expected) == (None, None, None)
        assert found.rungs == ((1, None), (3, None), (9, None), (27, None))
        assert found.to_dict()["time"] == 1800
        assert found.slots == 64

    def test_without_a_last_step_there_is_no_bound(self, root: Path) -> None:
        found = plan(root, objective={"metric": "loss", "mode": "min"})
        assert (found.trials, found.steps_upper, found.steps_expected) == (9, None, None)

    @pytest.mark.parametrize(
        ("changed", "trials"),
        [
            ({"search": "grid", "budget": {}}, 20),
            ({"search": {"type": "grid", "points": 3}, "budget": {}}, 12),
            ({"search": "grid", "budget": {}, "constraints": ["depth > 2"]}, 10),
            ({"search": "grid", "budget": {}, "defaults": {"lr": 0.1, "depth": 1}}, 20),
            ({"search": "grid", "budget": {}, "defaults": {"lr": 0.01, "depth": 1}}, 21),
            ({"search": "grid"}, 9),
            ({"space": {"a": [1, 2], "b": [3, 4]}, "budget": {"time": 5}}, 4),
            ({"space": {"a": [1, 2], "b": [3, 4]}, "constraints": ["a + b > 4"]}, 3),
            ({"space": {"a": {"type": "int", "low": 1, "high": 1_000_000}}, "budget": {"time": 5}}, 1_000_000),
        ],
    )
    def test_a_finite_search_ends(self, root: Path, changed: dict[str, Any], trials: int) -> None:
        assert plan(root, **changed).trials == trials


class TestPaths:
    def test_relative_ones_are_those_of_the_caller(self, root: Path) -> None:
        found = plan(root, storage="out/runs/", tracking={"mlflow": "sqlite:///out/mlflow.db"})
        assert found.storage == f"{root}/out/runs/digits"
        assert found.tracking_uri == f"sqlite:///{root}/out/mlflow.db"
        assert found.experiment.storage == f"{root}/out/runs"

    def test_by_default_runs_go_into_the_storage(self, root: Path) -> None:
        assert plan(root).tracking_uri == f"sqlite:///{root}/results/mlflow.db"

    @pytest.mark.parametrize(
        "uri", ["sqlite:////abs/mlflow.db", "http://host:5000", "postgresql://u@h/db", "databricks"]
    )
    def test_absolute_ones_are_kept(self, root: Path, uri: str) -> None:
        assert plan(root, tracking={"mlflow": uri}).tracking_uri == uri
        assert plan(root, storage=f"{root}/x").storage == f"{root}/x/digits"

    def test_the_home_folder_and_dots(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(root))
        assert plan(root, storage="~/runs").storage == f"{root}/runs/digits"
        assert plan(root, storage="a/../b").storage == f"{root}/b/digits"

    def test_tracking_may_be_off(self, root: Path) -> None:
        assert plan(root, tracking="none").tracking_uri is None
        assert plan(root, tracking=None).to_dict()["tracking_uri"] is None

    def test_an_object_store_is_worked_on_in_a_folder_of_this_machine(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAYTUNER_CACHE", str(root / "cache"))
        found = plan(root, storage="s3://bucket/x/?region=eu-west-1")
        assert found.storage == "s3://bucket/x/digits?region=eu-west-1"
        assert found.tracking_uri == f"sqlite:///{root}/cache/s3/bucket/x/mlflow.db"
        assert found.experiment.tracking is not None
        assert found.experiment.tracking.mlflow is None, "another machine has another folder"
        assert plan(root, storage=f"file://{root}/x").storage == f"{root}/x/digits"

    @pytest.mark.parametrize("storage", ["ftp://host/x", "s3://", "http://host/bucket"])
    def test_an_address_must_be_one_of_an_object_store(self, root: Path, storage: str) -> None:
        with pytest.raises(PlanError, match=r"storage: it must be a folder, or an address that begins with s3://.*s3"):
            plan(root, storage=storage)

    def test_an_address_must_not_tell_a_secret(self, root: Path) -> None:
        with pytest.raises(PlanError, match="must not hold credentials") as error:
            plan(root, storage="s3://key:secret@bucket/x")
        assert "secret" not in str(error.value)

    def test_a_file_is_no_storage(self, root: Path) -> None:
        (root / "results").touch()
        with pytest.raises(PlanError, match="storage: it must be a folder"):
            plan(root)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_the_storage_must_be_writable(self, root: Path) -> None:
        (root / "results").mkdir(mode=0o500)
        with pytest.raises(PlanError, match="writable"):
            plan(root)

    def test_nothing_is_written(self, root: Path) -> None:
        before = sorted(root.rglob("*"))
        plan(root)
        assert sorted(root.rglob("*")) == before


class TestCode:
    def test_is_looked_for(self, root: Path) -> None:
        with pytest.raises(DefinitionError, match="did you mean 'train'"):
            plan(root, train="objectives:trian")
        found = plan(root, train="objectives:plain", test="objectives:test")
        assert {where: info.kind for where, info in found.code.items()} == {"train": "ray_function", "test": "trial"}

    def test_in_a_file_below_the_root_is_named_relatively(self, root: Path) -> None:
        assert plan(root, train=f"{root}/objectives.py:train").experiment.train == "objectives.py:train"

    def test_of_a_script_brings_its_own_root(self, root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        experiment = plan(root).experiment.model_copy(update={"train": f"{root}/objectives.py:train"})
        found = compile(experiment, cwd=elsewhere, machine=BIG)
        assert (found.import_root, found.experiment.train) == (root, "objectives.py:train")

    def test_the_root_of_a_file_comes_before_that_of_the_caller(self, root: Path) -> None:
        (root / "experiments").mkdir()
        file = root / "experiments" / "digits.yaml"
        file.write_text(to_yaml(plan(root).experiment))
        found = compile(load(file), file, cwd=Path("/"), machine=BIG)
        assert (found.import_root, found.file) == (root, file)

    def test_out_of_tree_components_are_found_but_not_imported(self, root: Path) -> None:
        (root / "halton.py").write_text("raise SystemExit\nclass Halton: ...\nclass Halving: ...\n")
        found = plan(root, search={"type": "halton:Halton", "base": 3}, scheduler="halton:Halving")
        assert set(found.code) == {"train", "search.type", "scheduler.type"}
        assert found.rungs == ()
        assert found.steps_expected is None
        assert any("checked when the run starts" in warning for warning in found.warnings)
        with pytest.raises(DefinitionError, match=r"search\.type"):
            plan(root, search="halton:Holton")


class TestBuilding:
    def test_the_defaults_come_first(self, root: Path) -> None:
        defaults = {"lr": 0.01, "depth": 2}
        assert plan(root, defaults=defaults).build_search().ask("000001") == defaults

    def test_seeds_are_stable_and_differ(self, root: Path) -> None:
        one, two, other = plan(root), plan(root), plan(root, seed=1)
        assert one == two == pickle.loads(pickle.dumps(one))
        seeds = [one.search_seed, one.scheduler_seed, one.trial_seed("000001"), one.trial_seed("000002")]
        assert seeds == [two.search_seed, two.scheduler_seed, two.trial_seed("000001"), two.trial_seed("000002")]
        # Pinned: resuming with another version must not change what trials draw.
        assert seeds == [286253025, 153801122, 88491437, 970442574]
        others = [other.search_seed, other.scheduler_seed, other.trial_seed("000001"), other.trial_seed("000002")]
        assert len({*seeds, *others}) == 8
        assert all(0 <= seed < 2**31 for seed in seeds + others)

    def test_fresh_searches_propose_the_same(self, root: Path) -> None:
        found = plan(root)
        assert found.build_search().ask("000001") == found.build_search().ask("000001")
        assert found.build_scheduler().decision_steps() == ()
        assert plan(root, scheduler="asha").build_scheduler().decision_steps() == (1, 3, 9)

    def test_a_plan_is_rebuilt_from_the_saved_definition(self, root: Path) -> None:
        first = plan(root, scheduler="asha", storage="out", defaults={"lr": 0.01, "depth": 2})
        saved = root / "out" / "digits" / "experiment.yaml"
        saved.parent.mkdir(parents=True)
        saved.write_text(to_yaml(first.experiment))
        experiment = load(saved, import_root=Path(first.to_dict()["import_root"]))
        assert compile(experiment, import_root=root, cwd=Path("/"), machine=BIG) == first


class TestTelling:
    def test_as_data(self, root: Path) -> None:
        data = plan(root, scheduler="asha", checkpoints={"disk": "1GB", "keep": 2}).to_dict()
        assert json.loads(json.dumps(data)) == data
        assert data["schema"] == "raytuner.plan/1"
        assert data["checkpoints"] == {"per_trial": 3, "total": 27, "trials": None, "disk": 10**9}
        assert data["space"] == {"parameters": 2, "constraints": 0, "size": None}
        assert data["rungs"][0] == {"step": 1, "expected_trials": 9.0}
        assert (
            Experiment(**data["experiment"])
            == plan(root, scheduler="asha", checkpoints={"disk": "1GB", "keep": 2}).experiment
        )

    def test_as_text(self, root: Path) -> None:
        lines = plan(
            root,
            Machine(4, 0),
            scheduler="asha",
            budget={"trials": 9, "time": "30m"},
            train="objectives:plain",
            test="objectives:test",
            defaults={"lr": 0.01, "depth": 2},
            checkpoints={"disk": "10GB"},
        ).describe()
        text = "\n".join(lines)
        for words in (
            "train       objectives:plain (a plain Ray Tune function)",
            "objective   min loss, the best of a trial's steps, at most 27 steps a trial",
            "space       2 parameters, continuous",
            "scheduler   asha (form stop, grace_steps 1, reduction_factor 3, min_agreement 0.5)",
            "rungs       step 1: 9 trials; step 3:",
            "budget      9 trials or 30m, whichever comes first",
            "steps       at most 243, about ",
            "slots       4 of 1 CPU each, limited by the CPUs (here: 4 CPUs, 0 GPUs)",
            "checkpoints at most 2 a trial: 18 × the size of one, 10 GB together",
            f"results     {root}/results/digits",
            f"runs        sqlite:///{root}/results/mlflow.db",
        ):
            assert words in text, text
        assert all("\n" not in line for line in lines)

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"space": {"a": [1, 2]}}, "only 2 configurations"),
            ({"resources": {"concurrent_trials": 99}, "budget": {"trials": 99}}, "the CPUs have room for 64"),
            ({"constraints": ["lr * depth < 0.000101"]}, "none of 1000 random configurations"),
            ({}, "8 GPUs, and trials use none"),
        ],
    )
    def test_surprises_are_warned_of(self, root: Path, changed: dict[str, Any], words: str) -> None:
        found = plan(root, **changed)
        assert any(words in warning for warning in found.warnings), found.warnings
        assert any(line.startswith("warning") and words in line for line in found.describe())

    def test_without_surprises_there_is_no_warning(self, root: Path) -> None:
        assert plan(root, Machine(4, 0)).warnings == ()


PBT = {"type": "pbt", "mutate": ["lr"], "population": 8, "perturbation_interval": 2}


def test_a_population_is_the_budget() -> None:
    def experiment(**fields: Any) -> Experiment:
        common: dict[str, Any] = {
            "name": "pbt",
            "train": "user:train",
            "objective": {"metric": "loss", "mode": "min", "max_steps": 10},
            "space": {"lr": {"type": "float", "low": 0.0, "high": 1.0}},
            "scheduler": PBT,
        }
        return Experiment(**{**common, **fields})

    assert experiment().budget.trials is None
    assert experiment(budget={"trials": 8}).budget.trials == 8
    with pytest.raises(DefinitionError, match=r"which is 8, got 50; leave it out, or set scheduler\.population to 50"):
        experiment(budget={"trials": 50})
    with pytest.raises(DefinitionError, match=r"scheduler\.mutate: must name parameters of the space, got 'rate'"):
        experiment(scheduler={**PBT, "mutate": ["rate"]})
    with pytest.raises(DefinitionError, match="did you mean 'quantile'") as caught:
        experiment(scheduler={**PBT, "quantil": 0.3})
    assert len(caught.value.problems) == 1, "nothing is said of the budget, which the population may be"
