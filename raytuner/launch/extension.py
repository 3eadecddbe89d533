"""More for an experiment to do: trials, time, steps, another space, search or scheduler; with all that it has done."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raytuner.definition import Budget, Experiment, load, read_config, to_plain, to_yaml
from raytuner.errors import DefinitionError, LaunchError, PlanError, Problem
from raytuner.journal import ExperimentState, Extended, Folder, Lock, TrialState, replay
from raytuner.launch.control import request_trial
from raytuner.launch.files import settle
from raytuner.launch.local import machine, plan_of, storage_and_name
from raytuner.plan import Plan
from raytuner.plan import compile as compile_plan
from raytuner.space import Config, Space

__all__ = ["Extension", "enqueue_live", "plan_extension"]

ANEW = ("search", "scheduler", "space", "constraints", "objective.max_steps")
"""What search and scheduler cannot see change under way: they begin anew."""
KEPT = {
    "objective.metric": "the values of the earlier trials could not be compared with new ones",
    "objective.mode": "the values of the earlier trials could not be compared with new ones",
    "objective.select": "the values of the earlier trials could not be compared with new ones",
    "seed": "the earlier trials could not go on as they began",
}
"""What cannot change, and why."""


@dataclass(frozen=True)
class Extension:
    """What is to be done from here on."""

    plan: Plan
    event: Extended
    enqueue: tuple[Config, ...]
    """Configurations of the user's, to be tried first."""
    notes: tuple[str, ...]
    """What to tell the user."""


def enqueue_live(folder: Folder, files: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Hand configurations to the driver at work; what to tell of each. Raises DefinitionError for a bad one."""
    space = plan_of(folder).space
    configs = [_own_config(file, space) for file in files]
    return [request_trial(folder, config) for config in configs]


def plan_extension(
    folder: Folder,
    file: str | os.PathLike[str] | None = None,
    *,
    overrides: Sequence[str] = (),
    trials: str | None = None,
    time: str | None = None,
    fill: Sequence[str] = (),
    retry_failed: bool = False,
    enqueue: Sequence[str | os.PathLike[str]] = (),
) -> Extension:
    """What an extension of the experiment in ``folder`` comes to. Writes nothing but what one before has left to do.

    Args:
        file: another definition; the experiment's own, if left out.
        overrides: ``key.path=value``, on top of it.
        trials, time: the whole budget from here on, or with a ``+`` what comes on top of it.
        fill: ``name=value``: what the trials so far were trained with, of a parameter that they don't have.
        retry_failed: whether failed trials start again.
        enqueue: files with configurations of one's own to try.

    Raises DefinitionError and PlanError for what cannot be done, LaunchError while a driver is at work.
    """
    if Lock(folder).held_by_other():
        raise LaunchError(
            f"{folder.where}: a driver is at work on this experiment, which takes no more than --enqueue meanwhile; "
            "stop it first with `raytuner stop`"
        )
    with Lock(folder):
        settle(folder)
    before, state = plan_of(folder), replay(folder, history=False)
    after = _next_plan(folder, file, before, [*overrides, *_budget(before.experiment, trials, time)])
    changed = _changes(to_plain(before.experiment), to_plain(after.experiment))
    anew = any(path == name or path.startswith(f"{name}.") for path in changed for name in ANEW)
    problems = _problems(before, after, state, changed, anew=anew)
    configs, missing = _configs(state, before.space, after.space, _filled(fill, state, after))
    if problems or missing:
        raise PlanError("\n".join(map(str, problems + missing)))
    retried = [trial.id for trial in state.trials.values() if retry_failed and trial.status == "failed"]
    reopened, notes = _reopened(state, before, after, configs)
    cut_off = _cut_off_by_budget(state)
    notes += [f"trials that the budget had cut off, and that go on: {len(cut_off)}"] if cut_off else []
    own = tuple(_own_config(path, after.space) for path in enqueue)
    sentences = [f"{path}: {old} → {new}" for path, (old, new) in changed.items()]
    if not (changed or retried or own):
        what = "no trial has failed" if retry_failed else "nothing is new"
        raise PlanError(
            f"{folder.where}: an extension needs something more to do, and {what}; see `raytuner extend -h`"
        )
    if retried:
        sentences.append(
            f"{len(retried)} failed trial{'s' * (len(retried) > 1)} start{'s' * (len(retried) == 1)} again"
        )
    event = Extended(
        definition=to_plain(after.experiment),
        changes=sentences,
        anew=anew,
        configs=configs,
        reopened=[*reopened, *cut_off],
        retried=retried,
    )
    return Extension(after, event, own, tuple(sentences + notes))


def _next_plan(folder: Folder, file: str | os.PathLike[str] | None, before: Plan, overrides: list[str]) -> Plan:
    source = Path(file) if file is not None else folder.definition
    text = to_yaml(before.experiment) if file is None else None
    root = None if file is not None else before.import_root
    here = storage_and_name(folder)
    experiment = load(source, overrides, import_root=root, text=text).model_copy(update=here)
    return compile_plan(experiment, file=source if file else before.file, import_root=root, machine=machine())


def _budget(experiment: Experiment, trials: str | None, time: str | None) -> list[str]:
    """The overrides that ``--trials`` and ``--time`` come to."""
    from raytuner.definition import parse_duration

    budget = experiment.budget
    found = []
    if trials is not None:
        if _is_more(trials) and budget.trials is None:
            raise _nothing_to_add_to("--trials", trials, "trials")
        found.append(f"budget.trials={(budget.trials or 0) + int(trials[1:]) if _is_more(trials) else trials}")
    if time is not None:
        more = time.startswith("+")
        if more and budget.time is None:
            raise _nothing_to_add_to("--time", time, "time")
        found.append(f"budget.time={(budget.time or 0.0) + parse_duration(time[1:]) if more else time}")
    return found


def _nothing_to_add_to(option: str, given: str, what: str) -> PlanError:
    rule, remedy = f"the budget has no limit of {what} to add to", f"give a whole budget, as {option} {given[1:]}"
    return PlanError(str(Problem(option, rule, given, remedy)))


def _is_more(text: str) -> bool:
    return text.startswith("+") and text[1:].isdigit()


def _changes(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs between two definitions: (before, after) by key path."""
    if isinstance(old, dict) and isinstance(new, dict) and path.count(".") < 1:
        keys = dict.fromkeys([*old, *new])
        return {
            where: change
            for key in keys
            for where, change in _changes(old.get(key), new.get(key), f"{path}.{key}" if path else key).items()
        }
    return {} if old == new else {path: (old, new)}


def _problems(
    before: Plan, after: Plan, state: ExperimentState, changed: Mapping[str, tuple[Any, Any]], *, anew: bool
) -> list[Problem]:
    problems = [
        Problem(path, f"cannot change in an extension: {why}", f"{old} → {new}", "begin another experiment")
        for path, (old, new) in changed.items()
        for name, why in KEPT.items()
        if path == name
    ]
    common = before.space.parameters.keys() & after.space.parameters.keys()
    old, new = before.experiment, after.experiment
    if old.defaults and any(old.defaults.get(name) != new.defaults.get(name) for name in common):
        rule = "the defaults are the baseline that all trials were compared with"
        problems.append(Problem("defaults", rule, str(new.defaults), "try other values with --enqueue"))
    schedulers = {str(getattr(one.scheduler, "type", "")) for one in (old, new)}
    if anew and schedulers & {"pbt", "schedule"}:
        what = ", ".join(path for path in changed if path.startswith(ANEW))
        rule = "trials that have changed on their way, as PBT's do, can go on only as they were"
        problems.append(Problem(what, rule, f"scheduler {' → '.join(sorted(schedulers))}", "begin another experiment"))
    most = new.objective.max_steps
    furthest = max(state.trials.values(), key=lambda trial: trial.step, default=None)
    if most is not None and furthest is not None and furthest.step > most:
        rule = "must be no less than what trials have done already"
        got = f"{most}, and trial {furthest.id} has done {furthest.step}"
        problems.append(Problem("objective.max_steps", rule, got, "begin another experiment for shorter trials"))
    asked = sum(trial.source != "user" for trial in state.trials.values())
    if new.budget.trials is not None and new.budget.trials < asked:
        rule = "must be no less than the trials that there are"
        beyond = f", or --trials +N for N beyond {old.budget.trials}" if old.budget.trials is not None else ""
        remedy = f"give more{beyond}"
        problems.append(Problem("budget.trials", rule, f"{new.budget.trials} with {asked} trials", remedy))
    return problems + _used_up(new.budget, state)


def _used_up(budget: Budget, state: ExperimentState) -> list[Problem]:
    """What of the budget has no room left for anything."""
    rule = "must be more than what is used up already"
    problems = []
    if budget.time is not None and budget.time <= state.time_used:
        got = f"{budget.time:g}s with {state.time_used:.1f}s used"
        problems.append(Problem("budget.time", rule, got, "give more with --time"))
    if budget.gpu_hours is not None and budget.gpu_hours <= state.gpu_hours:
        got = f"{budget.gpu_hours:g} with {state.gpu_hours:.2f} used"
        problems.append(Problem("budget.gpu_hours", rule, got, "give more with --set budget.gpu_hours=N"))
    return problems


def _filled(fill: Sequence[str], state: ExperimentState, after: Plan) -> dict[str, Any]:
    """The values for what earlier trials don't have: as given, else the defaults'."""
    import yaml

    values: dict[str, Any] = dict(after.experiment.defaults)
    for text in fill:
        name, equals, value = text.partition("=")
        if not equals or name not in after.space.parameters:
            rule, remedy = "must be name=value of a parameter", f"one of {', '.join(after.space.names)}"
            raise PlanError(str(Problem("--fill", rule, text, remedy)))
        if state.trials and all(name in trial.config for trial in state.trials.values()):
            rule, remedy = "the trials so far have a value of this parameter", "leave it out"
            raise PlanError(str(Problem("--fill", rule, text, remedy)))
        values[name] = yaml.safe_load(value)
    return values


def _configs(
    state: ExperimentState, old: Space, new: Space, fill: Mapping[str, Any]
) -> tuple[dict[str, Config], list[Problem]]:
    """The trials whose configurations have other parameters from here on; and what is not known of them."""
    configs: dict[str, Config] = {}
    missing: dict[str, Problem] = {}
    for trial in state.trials.values():
        config: Config = {}
        for name in new.names:
            if name not in new.active(config):
                continue
            if name in trial.config:
                config[name] = trial.config[name]
                continue
            rule = "the trials so far have no such parameter: what were they trained with?"
            if name not in fill:
                missing[name] = Problem(f"space.{name}", rule, "", f"say it with --fill {name}=VALUE")
                break
            config[name] = fill[name]
            problem = new.parameters[name].problem(fill[name], name)
            if problem is not None:
                missing[name] = Problem(f"--fill {name}", problem.rule, problem.got, problem.remedy)
        if config != trial.config:
            configs[trial.id] = config
    return configs, list(missing.values())


def _reopened(
    state: ExperimentState, before: Plan, after: Plan, configs: Mapping[str, Config]
) -> tuple[list[str], list[str]]:
    """Trials that had done all their steps, and may do more; and what to say about it."""
    old, new = before.experiment.objective.max_steps, after.experiment.objective.max_steps
    if old is None or new is None or new <= old:
        return [], []

    def may(trial: TrialState) -> bool:
        newest = trial.last_checkpoint
        config = configs.get(trial.id, trial.config)
        return newest is not None and newest.step == trial.step and not after.space.problems(config)

    done = [trial for trial in state.trials.values() if trial.status == "finished" and trial.step == old]
    able = [trial.id for trial in done if may(trial)]
    note = f"{len(able)} of {len(done)} trials that had done all {old} steps may go on"
    if len(able) < len(done):
        note += "; the others lie outside of the space now, or kept no checkpoint of their last step"
    return able, [note] if done else []


def _cut_off_by_budget(state: ExperimentState) -> list[str]:
    """Trials that time or GPU-hours had cut off; there is more of them now, or the extension is refused."""
    return [t.id for t in state.trials.values() if t.over_budget]


def _own_config(file: str | os.PathLike[str], space: Space) -> Config:
    config = read_config(Path(file))
    problems = [replace(problem, file=str(file)) for problem in space.problems(config)]
    if problems:
        raise DefinitionError(problems)
    return config
