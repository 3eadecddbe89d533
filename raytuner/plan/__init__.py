"""What will be done: an experiment compiled for a machine, with its seeds, slots and cost."""

from raytuner.plan.compiling import MPS, code_root
from raytuner.plan.compiling import compile_plan as compile
from raytuner.plan.cost import no_room
from raytuner.plan.machine import Machine, Node, this_machine
from raytuner.plan.needs import Needs, all_fit, needs_of, room, slots_for, smallest, varies
from raytuner.plan.paths import storage_problems
from raytuner.plan.plan import Plan, derived_seed

__all__ = [
    "MPS",
    "Machine",
    "Needs",
    "Node",
    "Plan",
    "all_fit",
    "code_root",
    "compile",
    "derived_seed",
    "needs_of",
    "no_room",
    "room",
    "slots_for",
    "smallest",
    "storage_problems",
    "this_machine",
    "varies",
]
