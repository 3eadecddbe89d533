"""Contract tests that a search must pass, ours or a plug-in's. Needs pytest and hypothesis."""

try:
    import hypothesis  # noqa: F401
    import pytest
except ImportError as error:
    raise ImportError(
        f"raytuner.testing needs pytest and hypothesis ({error}); pip install pytest hypothesis"
    ) from error

pytest.register_assert_rewrite("raytuner.testing.contract", "raytuner.testing.story")

from raytuner.testing.contract import SearchContract  # noqa: E402, after the rewriting is asked for
from raytuner.testing.spaces import MIXED, SMALL, spaces  # noqa: E402
from raytuner.testing.story import Story  # noqa: E402

__all__ = ["MIXED", "SMALL", "SearchContract", "Story", "spaces"]
