"""Where the driver runs."""

from raytuner.launch.local import drive, machine, plan_of, resume, run

__all__ = ["drive", "machine", "plan_of", "resume", "run"]
