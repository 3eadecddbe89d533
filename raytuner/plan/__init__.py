"""What will be done: an experiment compiled for a machine, with its seeds, slots and cost."""

from raytuner.plan.compiling import compile_plan as compile
from raytuner.plan.cost import room
from raytuner.plan.machine import Machine, Node, this_machine
from raytuner.plan.plan import Plan, derived_seed

__all__ = ["Machine", "Node", "Plan", "compile", "derived_seed", "room", "this_machine"]
