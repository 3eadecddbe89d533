"""The experiment: what a person defines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from raytuner.components import OutsideOptions
from raytuner.definition.checks import Parts, cross_problems
from raytuner.definition.collect import all_problems
from raytuner.definition.components import Entry, SchedulerOptions, SearchOptions
from raytuner.definition.document import Document, read_yaml
from raytuner.definition.messages import show
from raytuner.definition.names import Code, EnvName, EnvValue, ExperimentName, Storage, TagName, Text
from raytuner.definition.quantities import Duration
from raytuner.definition.sections import Budget, Checkpoints, Cluster, Count, Objective, Replay, Resources, Tracking
from raytuner.errors import DefinitionError, Problem
from raytuner.space import broken_rule

__all__ = ["Experiment", "check"]


def _off(value: Any) -> Any:
    """``none`` switches tracking off."""
    if isinstance(value, str) and value != "none":
        raise broken_rule("a mapping or none is needed", remedy="write tracking: none to switch it off")
    return None if value == "none" else value


def _address(value: Any) -> Any:
    """``cluster: http://head:8265`` is short for a section with this address."""
    return {"address": value} if isinstance(value, str) else value


class Experiment(BaseModel):
    """A search for good hyper-parameters: what to train, what may vary, how to look, and how long.

    The same model is written as YAML (see ``load``) and in Python, where ``train`` and ``test`` may be functions and
    sections may be dicts::

        Experiment(
            name="parabola",
            train=train,
            objective={"metric": "loss", "mode": "min"},
            space={"x": Float(low=-1.0, high=1.0)},
            budget={"trials": 20},
        )

    Raises DefinitionError with every problem found.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ExperimentName
    """The experiment's name, and its folder's in the storage."""
    description: Text = ""
    """What it is about, for people."""
    tags: dict[TagName, Text] = Field(default_factory=dict)
    """Texts by which runs are found again in the tracker."""
    train: Code
    """The function or class to tune: package.module:function, or path/file.py:function from the import root."""
    test: Code | None = None
    """A function that is run once, on the best checkpoint, at the end; the search never sees what it returns."""
    objective: Objective
    """What is optimised."""
    space: dict[str, Entry]
    """What may vary: a parameter by its name. A bare list is a choice."""
    constraints: list[Text] = Field(default_factory=list)
    """Expressions over parameters that every configuration must fulfil, such as width * depth <= 1024."""
    defaults: dict[str, Any] = Field(default_factory=dict)
    """A full configuration that is tried first: the baseline to beat."""
    search: SearchOptions = Field(default={"type": "auto"}, validate_default=True)
    """How configurations are proposed."""
    scheduler: SchedulerOptions = Field(default={"type": "none"}, validate_default=True)
    """How running trials are judged, and stopped early."""
    budget: Budget = Field(default_factory=Budget)
    """When the experiment ends; only a search that ends by itself may have none: grid, or genetic with generations."""
    resources: Resources = Field(default_factory=Resources)
    """What one trial gets."""
    checkpoints: Checkpoints = Field(default_factory=Checkpoints)
    """Which checkpoints are written and kept."""
    isolation: Literal["process", "actor"] = "process"
    """Where a trial runs: in a fresh process, or in the Ray actor itself for code that needs Ray."""
    step_timeout: Duration | None = None
    """The longest that one step may take; the trial fails after it."""
    give_up_after: Count | None = 10
    """Stop when the first so many trials all fail in the same way; null for never."""
    env: dict[EnvName, EnvValue] = Field(default_factory=dict)
    """Environment variables of the trials."""
    storage: Storage = "results/"
    """The folder that holds the experiment's folder, or an address in an object store (s3://bucket/folder)."""
    tracking: Annotated[Tracking | None, BeforeValidator(_off, json_schema_input_type=Tracking | Literal["none"])] = (
        Field(default_factory=Tracking)
    )
    """Where runs are tracked; none for nowhere."""
    cluster: Annotated[Cluster, BeforeValidator(_address, json_schema_input_type=Cluster | str)] = Field(
        default_factory=Cluster
    )
    """The Ray cluster for ``raytuner launch``: its address, or a section."""
    replay: Replay | None = None
    """The trial that is trained again, with its configuration as the defaults; ``raytuner replay`` writes it."""
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
    """The seed of everything random."""

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise DefinitionError(all_problems(type(self), error, data)) from None

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        problems = cross_problems(
            Parts(
                space=self.space,
                constraints=dict(enumerate(self.constraints)),
                defaults=self.defaults,
                objective=self.objective,
                search=self.search,
                scheduler=self.scheduler,
                budget=self.budget,
                resources=self.resources,
                checkpoints=self.checkpoints,
                has_test=self.test is not None,
            )
        )
        if problems:
            # No ValueError, so that pydantic lets it through as it is.
            raise DefinitionError(problems)
        return self

    @property
    def has_plug_in(self) -> bool:
        """Whether the search or the scheduler is a class of somebody else's module, which must be imported."""
        return any(isinstance(part, OutsideOptions) for part in (self.search, self.scheduler))

    @classmethod
    def from_yaml(cls, text: str, source: str = "<text>") -> Experiment:
        """The experiment of a YAML text. Raises DefinitionError with every problem, each with its line.

        source: where the text is from, for messages.
        """
        document = read_yaml(text, source)
        experiment, problems = check(document)
        if experiment is None or problems or document.problems:
            raise DefinitionError(document.locate(problems))
        return experiment


def check(document: Document) -> tuple[Experiment | None, list[Problem]]:
    """The experiment of a document, or None and what is wrong with it, without places."""
    data = document.data
    if not isinstance(data, dict):
        given = "an empty file" if data is None else show(data)
        remedy = "begin with name:, train:, objective: and space:"
        return None, [Problem("", "a mapping of keys is needed", given, remedy)]
    problems = []
    if "tracking" in data and data["tracking"] is None:
        # In Python None is how tracking is off; in a file it is a section that somebody has emptied.
        remedy = "write tracking: none to switch it off, or remove the key"
        problems.append(Problem("tracking", "a mapping or none is needed", "null", remedy))
    try:
        return Experiment(**data), problems
    except DefinitionError as error:
        return None, problems + list(error.problems)
