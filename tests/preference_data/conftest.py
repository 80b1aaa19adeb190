"""What tests of the data's files share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
