"""Where the driver runs."""

from raytuner.launch.local import drive, plan_of, resume, run

__all__ = ["drive", "plan_of", "resume", "run"]
