"""Experiment to plan: what can only be decided with the machine, the folders and the code at hand."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from raytuner.definition import CodeInfo, Experiment, Resources, find_experiment_code, holds_password, import_root
from raytuner.errors import DefinitionError, PlanError, Problem
from raytuner.plan.cost import Slots, expected_steps, find_slots, most_configurations, rungs_of, startup_trials
from raytuner.plan.machine import Machine, this_machine
from raytuner.plan.needs import Needs, needs_of, varies
from raytuner.plan.paths import absolute, experiment_place, storage_problems, tracking_uri
from raytuner.plan.plan import Plan, derived_seed
from raytuner.schedulers import SCHEDULERS, PbtOptions, Scheduler
from raytuner.space import Space

__all__ = ["code_root", "compile_plan"]

MPS = "nvidia-cuda-mps-control"
"""The program of CUDA's multi-process service."""
LOOKS = 1000
"""Random configurations that are looked at for what trials take, where it hangs on them."""


def compile_plan(
    experiment: Experiment,
    file: Path | None = None,
    import_root: Path | None = None,
    cwd: Path | None = None,
    machine: Machine | None = None,
) -> Plan:
    """The plan of an experiment. Imports nothing of the user's, and writes nothing.

    Args:
        experiment: the definition.
        file: the file that it came from; its import root is the default.
        import_root: the folder that the user's code is imported from; without one and without a file, that of the
            script in which ``train`` was defined, else that of ``cwd``.
        cwd: the folder against which relative paths are resolved; the current one by default.
        machine: what there is to run on; this machine by default.

    Raises DefinitionError when code that it names certainly is not there, PlanError when it cannot be carried out here.
    """
    cwd = (cwd or Path.cwd()).resolve()
    root = import_root.resolve() if import_root else code_root(experiment, file, cwd)
    experiment = _below_root(absolute(experiment, cwd), root)
    code = find_experiment_code(experiment, root)
    if missing := [problem for info in code.values() for problem in info.problems]:
        raise DefinitionError(missing)
    space = Space(experiment.space, experiment.constraints)
    machine = machine or this_machine(ask_driver=experiment.resources.gpu != 0)
    configurations = most_configurations(experiment, space)
    scheduler_seed = derived_seed(experiment.seed, "scheduler")
    scheduler = _known_scheduler(experiment, scheduler_seed)
    most = scheduler.most_trials if scheduler is not None else None
    trials = _smaller(_smaller(experiment.budget.trials, configurations), most)
    needs = _needs(experiment, space)
    slots, problems = find_slots(needs, experiment.resources, machine, trials)
    problems += _worker_problems(experiment, code["train"], max(n.workers for n in needs))
    if problems := storage_problems(experiment.storage) + problems:
        raise PlanError("\n".join(map(str, problems)))
    rungs = rungs_of(scheduler, trials)
    max_steps = experiment.objective.max_steps
    return Plan(
        experiment=experiment,
        file=file.resolve() if file else None,
        import_root=root,
        storage=experiment_place(experiment),
        tracking_uri=tracking_uri(experiment),
        space=space,
        search_seed=derived_seed(experiment.seed, "search"),
        scheduler_seed=scheduler_seed,
        machine=machine,
        needs=needs,
        slots=slots.count,
        slots_limited_by=slots.limited_by,
        trials=trials,
        rungs=rungs,
        steps_upper=trials * max_steps if trials is not None and max_steps is not None else None,
        steps_expected=expected_steps(rungs, trials),
        code=code,
        warnings=tuple(_warnings(experiment, space, machine, slots, configurations, code)),
    )


def code_root(experiment: Experiment, file: Path | None, cwd: Path) -> Path:
    """The folder that the user's code is imported from, by the file of the definition, else by its script, or cwd."""
    if file is not None:
        return import_root(file)
    script = Path(experiment.train.partition(":")[0])
    # A folder's own root is asked for through a file that would be in it.
    return import_root(script if script.is_absolute() else cwd / "experiment.yaml")


def _below_root(experiment: Experiment, root: Path) -> Experiment:
    """Names files below the import root relatively, so that a snapshot of the root holds them under the same name."""

    def relative(target: str) -> str:
        source, colon, name = target.partition(":")
        path = Path(source)
        if source.endswith(".py") and path.is_absolute() and path.is_relative_to(root):
            return f"{path.relative_to(root).as_posix()}{colon}{name}"
        return target

    test = relative(experiment.test) if experiment.test else None
    return experiment.model_copy(update={"train": relative(experiment.train), "test": test})


def _needs(experiment: Experiment, space: Space) -> tuple[Needs, ...]:
    """What trials take, the smallest first: once each, where configurations differ in it; as far as a look shows."""
    resources = experiment.resources
    if not varies(resources):
        return (needs_of(resources, {}),)
    rng = np.random.default_rng(experiment.seed)
    configs = [space.sample(rng) for _ in range(LOOKS)] + ([experiment.defaults] if experiment.defaults else [])
    return tuple(sorted({needs_of(resources, config) for config in configs}, key=lambda n: (n.gpu, n.cpu, n.workers)))


def _worker_problems(experiment: Experiment, train: CodeInfo, workers: int) -> list[Problem]:
    """Several processes can train a trial where each is one of ours."""
    inside = "isolation: process" if experiment.isolation == "actor" else None
    ours = "a function of a trial, train(trial)" if train.kind in ("ray_function", "ray_class") else None
    if workers == 1 or (inside or ours) is None:
        return []
    rule = f"several workers need {inside or ours}"
    return [Problem("resources.workers", rule, f"{workers}", "leave workers out, or change that")]


def _smaller(first: int | None, second: int | None) -> int | None:
    numbers = [number for number in (first, second) if number is not None]
    return min(numbers) if numbers else None


def _known_scheduler(experiment: Experiment, seed: int) -> Scheduler | None:
    """The scheduler if it is one of ours; others would have to be imported."""
    found = SCHEDULERS.get(str(getattr(experiment.scheduler, "type", "")))
    return found(experiment.scheduler, max_steps=experiment.objective.max_steps, seed=seed) if found else None


def _warnings(
    experiment: Experiment,
    space: Space,
    machine: Machine,
    slots: Slots,
    configurations: int | None,
    code: Mapping[str, CodeInfo],
) -> list[str]:
    warnings = [warning for info in code.values() for warning in info.warnings]
    warnings += [
        f"{where}: its options belong to other code, and are checked when the run starts"
        for where in ("search", "scheduler")
        if f"{where}.type" in code
    ]
    if holds_password(tracking_uri(experiment) or ""):
        warnings.append(
            "tracking.mlflow: it holds a password, which is written down with the results; set PGPASSWORD or "
            "MLFLOW_TRACKING_PASSWORD instead, or have a ~/.pgpass"
        )
    trials, wanted = experiment.budget.trials, experiment.resources.concurrent_trials
    if trials is not None and configurations is not None and trials > configurations:
        warnings.append(f"budget.trials is {trials}, but there are only {configurations} configurations to try")
    startup, most = startup_trials(experiment), _smaller(trials, configurations)
    if most is not None and most <= startup and (space.size is None or most < space.size):
        warnings.append(
            f"search: of {most} trials none learns from another, since the first {startup} fill the space; "
            "give it more trials, or a smaller population or startup"
        )
    if wanted is not None and wanted > slots.count and slots.limited_by in ("the CPUs", "the GPUs"):
        warnings.append(f"resources.concurrent_trials is {wanted}, but {slots.limited_by} have room for {slots.count}")
    if space.constraints and space.satisfiable(np.random.default_rng(experiment.seed)) is None:
        warnings.append("constraints: none of 1000 random configurations satisfies them; they may be too tight")
    if machine.gpus and experiment.resources.gpu == 0:
        warnings.append(f"this machine has {machine.gpus} GPUs, and trials use none; set resources.gpu to use them")
    warnings += _no_decision(experiment)
    warnings += _not_here(experiment.resources, machine)
    return warnings + _unlimited(experiment, code["train"])


def _unlimited(experiment: Experiment, train: CodeInfo) -> list[str]:
    """Shares of a GPU's memory that nothing holds trials to."""
    inside = "isolation: actor" if experiment.isolation == "actor" else "a Trainable class"
    in_actor = experiment.isolation == "actor" or train.kind == "ray_class"
    gpu = experiment.resources.gpu
    if not in_actor or (not isinstance(gpu, str) and (gpu == 0 or gpu >= 1)):
        return []
    return [
        f"resources.gpu is {gpu}, but with {inside} nothing holds a trial to its share of a GPU's memory, nor measures "
        "what it takes; that needs a process of its own"
    ]


def _no_decision(experiment: Experiment) -> list[str]:
    """A population of which nobody ever copies anybody."""
    scheduler, most = experiment.scheduler, experiment.objective.max_steps
    if not isinstance(scheduler, PbtOptions) or most is None:
        return []
    last = (most - 1) // scheduler.perturbation_interval * scheduler.perturbation_interval
    if scheduler.burn_in <= last:
        return []
    return [
        f"scheduler.burn_in is {scheduler.burn_in}, and the last decision is at step {last}: nobody would ever copy "
        "anybody"
    ]


def _not_here(resources: Resources, machine: Machine) -> list[str]:
    """What this machine, outside a cluster, may not have."""
    if machine.nodes:
        return []
    remedy = "`raytuner run` refuses it where it is not; connect to a cluster with RAY_ADDRESS, or launch it on one"
    warnings = []
    if resources.mps and shutil.which(MPS) is None:
        warnings.append(f"resources.mps: this machine has no {MPS}; here, trials that share a GPU would take turns")
    if resources.accelerator:
        known = "which GPUs this machine has is known when Ray looks" if machine.gpus else "this machine has no GPU"
        warnings.append(f"resources.accelerator is {resources.accelerator}, and {known}; {remedy}")
    if resources.labels:
        labels = ", ".join(f"{name}={value}" for name, value in resources.labels.items())
        warnings.append(f"resources.labels: a Ray that is started here has no {labels}; {remedy}")
    return warnings
