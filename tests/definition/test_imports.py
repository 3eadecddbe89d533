"""What the user's code imports, told by reading it."""

from __future__ import annotations

from pathlib import Path

from raytuner.definition import find_imports


def test_what_is_imported_and_when(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/__init__.py").write_text("")
    (tmp_path / "lib/extra.py").write_text("import einops\n")
    train = tmp_path / "train.py"
    train.write_text(
        "from lib import extra\n"
        "try:\n    import guarded\nexcept ImportError:\n    pass\n"
        "class Model:\n    def load(self):\n        import timm\n"
        "def train(trial):\n"
        "    import einops\n"
        "    import nosuchpkg\n"
        "    try:\n        import apex\n    except ImportError:\n        pass\n"
    )
    found = find_imports([train], tmp_path)
    assert found.modules == {"einops": "lib/extra.py:1"}
    assert found.later == {"timm": "train.py:8", "nosuchpkg": "train.py:11"}
    assert found.files == {tmp_path / "lib/__init__.py": "train.py:1", tmp_path / "lib/extra.py": "train.py:1"}
