"""The journal, carried into MLflow by a process of its own. Only here is MLflow imported, and only when needed."""

from raytuner.tracking.address import resolve_uri
from raytuner.tracking.progress import behind
from raytuner.tracking.reach import reach
from raytuner.tracking.tracker import Tracker, start_tracker, sync
from raytuner.tracking.ui import ui_address, ui_command

__all__ = ["Tracker", "behind", "reach", "resolve_uri", "start_tracker", "sync", "ui_address", "ui_command"]
