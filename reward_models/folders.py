"""Where the files of a reward model lie. Importing this loads nothing."""

from __future__ import annotations

from pathlib import Path

SCORING_FILE = "scoring.json"
PARTS = ("adapter", "model")
"""Folders of a step with weights: an adapter on the base, or whole."""


def weights_folder(path: Path) -> Path:
    """The `adapter/` or `model/` of a reward model's folder, or the folder itself."""
    return next((path / part for part in PARTS if (path / part).is_dir()), path)


def member_folders(path: Path) -> list[Path]:
    """The folder of each reward model below `members/`, in order; empty for a single model."""
    found = [place for place in path.glob("members/*") if place.name.isdecimal()]
    return sorted(found, key=lambda place: int(place.name))
