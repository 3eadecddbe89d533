"""A Ray Trainable class, as its author wrote it for Ray Tune."""

from __future__ import annotations

from ray import tune


class Climber(tune.Trainable):
    def setup(self, config: dict) -> None:
        self.height = 0.0

    def step(self) -> dict[str, float]:
        self.height += 1.0
        return {"loss": (self.config["x"] - 2.0) ** 2 + 1.0 / self.height, "height": self.height}

    def save_checkpoint(self, folder: str) -> dict[str, float]:
        return {"height": self.height}

    def load_checkpoint(self, state: dict[str, float]) -> None:
        self.height = state["height"]
