"""Where the driver runs."""

from raytuner.launch.again import plan_again
from raytuner.launch.local import drive, extend, machine, plan_of, resume, run, send_record

__all__ = ["drive", "extend", "machine", "plan_again", "plan_of", "resume", "run", "send_record"]
