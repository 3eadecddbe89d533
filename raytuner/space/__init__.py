"""Parameters, conditions and constraints; configurations and the unit cube; what makes two configurations the same."""

from raytuner.space.conditions import unknown_name
from raytuner.space.expression import Expression
from raytuner.space.keys import config_key
from raytuner.space.parameters import Choice, ChoicePrior, Condition, Float, Int, Parameter, broken_rule
from raytuner.space.space import Config, Space

__all__ = [
    "Choice",
    "ChoicePrior",
    "Condition",
    "Config",
    "Expression",
    "Float",
    "Int",
    "Parameter",
    "Space",
    "broken_rule",
    "config_key",
    "unknown_name",
]
