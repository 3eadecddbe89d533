"""Where the driver runs."""

from raytuner.launch.again import plan_again
from raytuner.launch.local import drive, machine, plan_of, resume, run

__all__ = ["drive", "machine", "plan_again", "plan_of", "resume", "run"]
