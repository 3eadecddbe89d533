"""What runs inside a trial: the Trial object, its checkpoints, and the process around it."""

from raytuner.training.checkpoint import load_checkpoint
from raytuner.training.keeper import CheckpointPolicy
from raytuner.training.trial import Trial, TrialSpec

__all__ = ["CheckpointPolicy", "Trial", "TrialSpec", "load_checkpoint"]
