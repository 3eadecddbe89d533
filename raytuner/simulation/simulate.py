"""Play an experiment's search and scheduler through on tables of real trainings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raytuner.definition import Experiment, import_from
from raytuner.definition import load as load_definition
from raytuner.errors import PlanError, Problem, SearchError
from raytuner.plan import code_root, derived_seed
from raytuner.schedulers import Scheduler, build_scheduler
from raytuner.search import build_search
from raytuner.simulation.cluster import Budget, Cluster, Run, simulate_run
from raytuner.simulation.coverage import uncovered
from raytuner.simulation.made import MADE
from raytuner.simulation.picture import counted, draw
from raytuner.simulation.tables import Table, has_table, read_table
from raytuner.space import Space

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MARKS", "Simulation", "load_table", "simulate"]

TABLES = "RAYTUNER_TABLES"
"""The variable that names a folder of tables, in which a NAME is looked up."""

MARKS = (0.1, 0.25, 0.5, 1.0)
"""The shares of a budget at which the regret is told."""


@dataclass(frozen=True)
class Simulation:
    """Runs of one experiment on one table, a seed each."""

    table: str
    search: str
    scheduler: str
    cluster: Cluster
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()
    search_options: Mapping[str, Any] = field(default_factory=dict)
    """What the definition gives the search beside its type."""
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)

    def regrets(self, axis: str = "steps", marks: Sequence[float] = MARKS) -> NDArray[np.float64]:
        """(marks, runs): each run's regret at shares of what the runs spent at the median: steps, trials or seconds."""
        spent = float(np.median([getattr(run, axis) for run in self.runs]))
        look: dict[str, Callable[[Run, float], float]] = {
            "steps": Run.regret_at_steps,
            "trials": Run.regret_at_trials,
            "seconds": Run.regret_at_time,
        }
        return np.array([[look[axis](run, max(mark * spent, 1e-9)) for run in self.runs] for mark in marks])

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON-able data; a regret is null before the first value."""
        runs = self.runs

        def middle(name: str) -> float:
            return float(np.median([getattr(run, name) for run in runs]))

        def told(axis: str) -> list[dict[str, Any]]:
            quartiles = [np.percentile(row, [25, 50, 75]) if _finite(row) else None for row in self.regrets(axis)]
            return [
                {
                    "share": mark,
                    axis: round(mark * middle(axis), 3),
                    "regret": None if three is None else round(float(three[1]), 6),
                    "quartiles": None if three is None else [round(float(three[0]), 6), round(float(three[2]), 6)],
                }
                for mark, three in zip(MARKS, quartiles, strict=True)
            ]

        statuses: dict[str, float] = {}
        for run in runs:
            for status, number in run.statuses.items():
                statuses[status] = statuses.get(status, 0) + number / len(runs)
        return {
            "schema": "raytuner.simulate/1",
            "table": self.table,
            "search": self.search,
            "search_options": dict(self.search_options),
            "scheduler": self.scheduler,
            "scheduler_options": dict(self.scheduler_options),
            "workers": self.cluster.workers,
            "stragglers": self.cluster.stragglers,
            "failures": self.cluster.failures,
            "seeds": [run.seed for run in runs],
            "notes": list(self.notes),
            "median": {
                "regret": _or_none(middle("regret")),
                "trials": middle("trials"),
                "steps": middle("steps"),
                "seconds": round(middle("seconds"), 3),
                "utilisation": round(middle("utilisation"), 4),
                "lost_workers": middle("lost"),
                "search_ms_a_trial": round(
                    float(np.median([1000 * run.search_seconds / max(run.trials, 1) for run in runs])), 3
                ),
            },
            "mean_trials_by_status": {status: round(number, 2) for status, number in sorted(statuses.items())},
            "by_trials": told("trials"),
            "by_steps": told("steps"),
            "by_seconds": told("seconds"),
        }

    @property
    def title(self) -> str:
        """What was simulated, in words."""
        parts = ((self.search, self.search_options), (self.scheduler, self.scheduler_options))
        given = [", ".join(f"{key}={value}" for key, value in options.items()) for _, options in parts]
        told = [f"{name} ({more})" if more else name for (name, _), more in zip(parts, given, strict=True)]
        return f"{' and '.join(told)} on {self.table}"

    def describe(self) -> list[str]:
        """The results for a person, as lines of plain text."""
        data = self.to_dict()
        middle = data["median"]
        head = f"{self.title}: {counted(data['workers'], 'worker')}, {counted(len(self.runs), 'seed')}; medians"
        lines = [
            *(f"note: {note}" for note in self.notes),
            head,
            "",
            "regret (0: the best known, 1: a median random configuration), with quartiles, after a share of the budget",
            f"{'':>9}" + "".join(f"{mark:>26.0%}" for mark in MARKS),
        ]
        for axis in ("trials", "steps", "seconds"):
            cells = []
            for told in data[f"by_{axis}"]:
                low, high = told["quartiles"] or (None, None)
                cells.append("-" if low is None else f"{told['regret']:.4f} ({low:.4f}-{high:.4f})")
            lines.append(f"{axis:>9}" + "".join(f"{cell:>26}" for cell in cells))
        statuses = ", ".join(f"{number:g} {status}" for status, number in data["mean_trials_by_status"].items())
        lines += [
            "",
            f"{counted(middle['trials'], 'trial')} ({statuses}), {counted(middle['steps'], 'step')} in "
            f"{_clock(middle['seconds'])} of virtual time",
            f"workers in use {middle['utilisation']:.1%}; {middle['lost_workers']:g} lost; "
            f"the search takes {middle['search_ms_a_trial']:.2f} ms a trial",
        ]
        return lines

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a picture of the regret against trials, steps and virtual time: median, and quartiles shaded.

        Raises PlanError when there can be no picture at ``path``.
        """
        draw(self, path)


def simulate(
    experiment: Experiment | str | os.PathLike[str],
    table: Table | str | os.PathLike[str],
    *,
    workers: int | None = None,
    seeds: int = 10,
    stragglers: float = 0.0,
    failures: float = 0.0,
    overrides: tuple[str, ...] = (),
    watch: Callable[[int], object] | None = None,
) -> Simulation:
    """Run an experiment's search and scheduler against a table, on a virtual cluster, once a seed.

    The definition gives search, scheduler, budget (its time is virtual time), seed, and ``objective.max_steps``, which
    is lowered to the table's. Its space and defaults are used when they lie in the table's space, else the table's.

    workers: as many as ``resources.concurrent_trials`` by default, or 8. stragglers, failures: see ``Cluster``.
    watch: called when a run begins, with its number, counted from 1.
    Raises DefinitionError, SearchError (no such table, or a component that cannot work on it), PlanError.
    """
    file = None if isinstance(experiment, Experiment) else Path(experiment)
    if not isinstance(experiment, Experiment):
        experiment = load_definition(Path(experiment), list(overrides))
    if experiment.has_plug_in:
        import_from(code_root(experiment, file, Path.cwd()))
    if not isinstance(table, Table):
        table = load_table(table)
    if workers is None:
        workers = experiment.resources.concurrent_trials or 8
    for name, value, right in (
        ("workers", workers, workers >= 1),
        ("seeds", seeds, seeds >= 1),
        ("stragglers", stragglers, 0 <= stragglers <= 10),
        ("failures", failures, 0 <= failures < 1),
    ):
        if not right:
            limits = {"stragglers": "from 0 to 10", "failures": "from 0 to below 1"}.get(name, "at least 1")
            raise PlanError(str(Problem(name, f"must be {limits}", repr(value))))
    wanted = experiment.budget
    if wanted.gpu_hours is not None and wanted.trials is None and wanted.time is None:
        rule, remedy = "the simulator counts trials and time", "add --set budget.trials=100"
        raise PlanError(str(Problem("budget", rule, f"gpu_hours {wanted.gpu_hours:g} alone", remedy)))
    space, notes = _space(experiment, table)
    max_steps = min(experiment.objective.max_steps or table.steps, table.steps)
    if max_steps != (experiment.objective.max_steps or max_steps):
        notes.append(f"the table's trainings have {counted(table.steps, 'step')}: objective.max_steps is {max_steps}")
    first = [experiment.defaults] if experiment.defaults and not space.problems(experiment.defaults) else []
    cluster = Cluster(workers, stragglers, failures)
    budget = Budget(trials=experiment.budget.trials, seconds=experiment.budget.time)
    runs = []
    for offset in range(seeds):
        if watch is not None:
            watch(offset + 1)
        seed = experiment.seed + offset
        search = build_search(experiment.search, space, derived_seed(seed, "search"), first)
        scheduler = _scheduler(experiment, max_steps, seed)
        runs.append(
            simulate_run(
                table,
                search,
                scheduler,
                cluster,
                budget,
                seed=seed,
                select=experiment.objective.select,
                max_steps=max_steps,
            )
        )
    parts = (experiment.search, experiment.scheduler)
    search_name, scheduler_name = (getattr(part, "type", "") for part in parts)
    given = tuple(part.model_dump(mode="json", exclude_unset=True, exclude={"type"}) for part in parts)
    return Simulation(table.name, search_name, scheduler_name, cluster, tuple(runs), tuple(notes), *given)


def _scheduler(experiment: Experiment, max_steps: int, seed: int) -> Scheduler:
    try:
        return build_scheduler(experiment.scheduler, max_steps, derived_seed(seed, "scheduler"))
    except SearchError as error:
        if max_steps == experiment.objective.max_steps:
            raise
        rule = str(error).partition(";")[0]
        why = f"the table's trainings have {counted(max_steps, 'step')}"
        raise SearchError(f"{rule}: {why}, whatever objective.max_steps says; add --set scheduler=none") from error


def load_table(name: str | os.PathLike[str]) -> Table:
    """A made-up table (``made/curves``, ...), one of the folder that RAYTUNER_TABLES names, else one at FOLDER/NAME.

    Raises SearchError when there is no such table.
    """
    name = os.fspath(name)
    if name in MADE:
        return MADE[name]()
    home = os.environ.get(TABLES)
    path = Path(name)
    named = home and name and not (path.is_absolute() or path.parts[:1] == (".",) or ".." in path.parts)
    if home and named and (has_table(Path(home) / name) or not has_table(path)):
        return read_table(Path(home) / name)
    if not name or not any((folder / "index.json").is_file() for folder in (path, *path.parents)):
        rule = f"a table is one of {', '.join(MADE)}, FOLDER/NAME, or NAME in the folder that {TABLES} names"
        raise SearchError(str(Problem("table", rule, repr(name), "check the path")))
    return read_table(name)


def _space(experiment: Experiment, table: Table) -> tuple[Space, list[str]]:
    """The experiment's space if the table can answer for it, else the table's."""
    own = Space(experiment.space, experiment.constraints)
    lacking = uncovered(table.space, own)
    if not lacking:
        return own, []
    note = f"the table cannot answer for the experiment's space ({lacking}): its own is searched"
    dropped = ["the constraints"] if own.constraints else []
    dropped += ["the defaults"] if experiment.defaults and table.space.problems(experiment.defaults) else []
    without = f", without {' and '.join(dropped)}" if dropped else ""
    return table.space, [f"{note} ({', '.join(table.space.names)}){without}"]


def _finite(row: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(row).all())


def _or_none(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None


def _clock(seconds: float) -> str:
    hours, minutes = divmod(round(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
