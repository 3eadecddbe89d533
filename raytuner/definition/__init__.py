"""What a person writes: the experiment, its sections, loading, and the JSON Schema."""

from raytuner.definition.addresses import holds_password, without_password
from raytuner.definition.amounts import AMOUNT_RULES, AUTO
from raytuner.definition.code import PACKAGE_MARK, CodeInfo, find_code, import_from, import_root
from raytuner.definition.experiment import Experiment
from raytuner.definition.imports import Imports, find_imports
from raytuner.definition.loading import find_experiment_code, load, read_config, to_plain, to_yaml
from raytuner.definition.quantities import format_duration, format_size, parse_duration, parse_size
from raytuner.definition.schema import schema
from raytuner.definition.sections import Budget, Checkpoints, Cluster, Objective, Replay, Resources, Tracking

__all__ = [
    "AMOUNT_RULES",
    "AUTO",
    "PACKAGE_MARK",
    "Budget",
    "Checkpoints",
    "Cluster",
    "CodeInfo",
    "Experiment",
    "Imports",
    "Objective",
    "Replay",
    "Resources",
    "Tracking",
    "find_code",
    "find_experiment_code",
    "find_imports",
    "format_duration",
    "format_size",
    "holds_password",
    "import_from",
    "import_root",
    "load",
    "parse_duration",
    "parse_size",
    "read_config",
    "schema",
    "to_plain",
    "to_yaml",
    "without_password",
]
