"""CMA-ES: a normal distribution that moves towards, and takes the shape of, what is good.

Hansen and Ostermeier: Completely derandomized self-adaptation in evolution strategies, Evolutionary Computation 2001.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from raytuner.components import Options
from raytuner.search.optuna import OptunaSearch, not_installed
from raytuner.space import Choice, Space

__all__ = ["CmaEsOptions", "CmaEsSearch"]


class CmaEsOptions(Options):
    """The evolution strategy with covariance matrix adaptation. Needs ``pip install "raytuner[optuna]"``."""

    type: Literal["cmaes"] = "cmaes"
    """The kind of search."""
    population: int | None = Field(None, ge=5, le=10_000)
    """Trials a generation; ``4 + floor(3 * log(parameters))``, if left out."""
    sigma: float | None = Field(None, gt=0, le=1)
    """The first standard deviation, as a share of each parameter's range; 1/6, if left out."""


class CmaEsSearch(OptunaSearch):
    """Optuna's ``CmaEsSampler``, the package ``cmaes``, for spaces of numbers and ordered choices.

    A generation is so many trials with a result, in the order of their numbers, whichever generation they were
    proposed in: so no result is lost when many trials run at once. A trial that was cut short counts with its last
    value.
    """

    Options: ClassVar[type[BaseModel]] = CmaEsOptions

    @classmethod
    def supports(cls, space: Space, options: BaseModel | None = None) -> list[str]:
        several = {name: one for name, one in space.parameters.items() if one.axis.size != 1}
        unordered = [name for name, one in several.items() if isinstance(one, Choice) and not one.ordered]
        conditional = [name for name, one in space.parameters.items() if one.when is not None]
        reasons = not_installed("optuna", "cmaes")
        if unordered:
            reasons.append(f"cmaes has no place for values without an order ({', '.join(unordered)})")
        if conditional:
            reasons.append(f"cmaes has no place for parameters that exist at times ({', '.join(conditional)})")
        if len(several) < 2:
            reasons.append("cmaes needs two parameters or more")
        return reasons

    def _chosen(self) -> tuple[str, dict[str, Any]]:
        assert isinstance(self.options, CmaEsOptions)
        return "CmaEsSampler", {"popsize": self.options.population, "sigma0": self.options.sigma}
