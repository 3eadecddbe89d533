"""Trials and parameters in Optuna's terms: what its samplers read and write, without the cost of its storages.

Imported when a search first needs it, since it imports optuna.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, NoReturn

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, Trial, TrialState

from raytuner.space import Choice, Float, Int

__all__ = ["Coordinate", "Record", "frozen_trial"]

STUDY = 0
"""The id of the only study."""


def frozen_trial(number: int, state: TrialState, **known: Any) -> FrozenTrial:
    """A trial of Optuna's, without the times that no sampler looks at."""
    nothing: dict[str, Any] = dict.fromkeys(("value", "datetime_start", "datetime_complete"))
    empty: dict[str, Any] = {
        name: {} for name in ("params", "distributions", "user_attrs", "system_attrs", "intermediate_values")
    }
    return FrozenTrial(number=number, trial_id=number, state=state, **(nothing | empty | known))


class Coordinate:
    """A parameter in Optuna's terms: a number, or the place of a value among the values.

    Values on steps are numbers of steps; in the logarithm, where Optuna has no steps, they are what they are, and the
    nearest value to a suggestion is taken. Optuna has no priors: with one, any value is its place in [0, 1], even that
    of a choice without an order.
    """

    def __init__(self, parameter: Float | Int | Choice) -> None:
        self._axis: Any = parameter.axis
        self._log = not isinstance(parameter, Choice) and parameter.log
        self.distribution: BaseDistribution
        size = self._axis.size
        self._by_place = parameter.prior is not None and size != 1
        if self._by_place:
            self.distribution = FloatDistribution(0.0, 1.0)
        elif isinstance(parameter, Choice) and not parameter.ordered:
            self.distribution = CategoricalDistribution(range(len(parameter.values)))
        elif isinstance(parameter, Choice) or (size is not None and not self._log):
            assert size is not None
            self.distribution = IntDistribution(0, size - 1)
        else:
            assert not isinstance(parameter, Choice)
            low, high = float(parameter.low), float(parameter.high)
            if size is not None:  # each value's cell, as the parameter's prior has it
                half = (parameter.step or 1) / 2
                low, high = low * low / (low + half), high + half
            self.distribution = FloatDistribution(low, high, log=self._log)

    def number(self, value: Any) -> int | float:
        """A value as Optuna is told of it."""
        if self._by_place:
            return float(self._axis.to_unit(value))
        if isinstance(self.distribution, FloatDistribution):
            return float(value)
        return int(self._axis.index(value))

    def suggest(self, trial: Trial, name: str) -> Any:
        """A value that the trial's sampler suggests."""
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            return self._axis.value(trial.suggest_categorical(name, kind.choices))
        if isinstance(kind, IntDistribution):
            return self._axis.value(trial.suggest_int(name, kind.low, kind.high))
        assert isinstance(kind, FloatDistribution)
        value = trial.suggest_float(name, kind.low, kind.high, log=kind.log)
        if self._by_place:
            return self._axis.from_unit(value)
        return self._axis.value(self._axis.index(value)) if self._axis.size is not None else value


class Record(BaseStorage):
    """The storage of one study that minimises. A trial's number is its id and its place in ``trials``.

    Unlike Optuna's own, it gives out its trials without copying them (samplers don't change them), and forgets:
    ``cut`` takes trials back, with all that a sampler has left in the study since.
    """

    def __init__(self) -> None:
        self.trials: list[FrozenTrial] = []
        self._attributes: dict[str, Any] = {}
        self._before: list[dict[str, Any]] = []

    def append(self, trial: FrozenTrial) -> None:
        """Enter a trial whose number is the next one."""
        self._before.append(dict(self._attributes))
        self.trials.append(trial)

    def cut(self, number: int) -> None:
        """Forget the trials from this number on, and what the study's attributes have become since."""
        if number < len(self.trials):
            self._attributes = self._before[number]
            del self._before[number:], self.trials[number:]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        number = len(self.trials)
        self.append(frozen_trial(number, TrialState.RUNNING))
        return number

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        trial = self.trials[trial_id]
        trial.params[param_name] = distribution.to_external_repr(param_value_internal)
        trial.distributions[param_name] = distribution

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.trials[trial_id].system_attrs[key] = value

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self.trials[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [trial for trial in self.trials if states is None or trial.state in states]

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._attributes[key] = value

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._attributes

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return [StudyDirection.MINIMIZE]

    def get_study_id_from_name(self, study_name: str) -> int:
        return STUDY

    def get_study_name_from_id(self, study_id: int) -> str:
        return "raytuner"

    def get_all_studies(self) -> list[FrozenStudy]:
        return self._refuse()

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self._refuse()

    def delete_study(self, study_id: int) -> None:
        self._refuse()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._refuse()

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        return self._refuse()

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._refuse()

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotImplementedError("a sampler has no need of this")
