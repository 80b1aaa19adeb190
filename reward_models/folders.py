"""Where the files of a reward model lie. Importing this loads nothing."""

from __future__ import annotations

from collections.abc import Iterable
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


def find_base(named: str, runs: Iterable[Path]) -> str | None:
    """Where the base that an adapter names is now: a folder, or an id on the hub; None if it is a
    folder that is gone.

    Its path is relative to where the run was started, so a base of the run itself, `base` or
    STEP/model, is looked for in the folders `runs`, too.
    """
    if Path(named).is_dir():
        return named
    for run in runs:
        for last in (1, 2):
            own = run.joinpath(*Path(named).parts[-last:])
            if (own / "config.json").is_file():
                return str(own)
    return None if Path(named).is_absolute() or named.count("/") > 1 else named


def base_under(weights: Path, named: str) -> str:
    """Where the base of the adapter in the folder `weights` is now: beside it, where an export has
    it, or as `find_base`. Raises FileNotFoundError if it is gone."""
    step = weights.absolute().parent
    if step.parent.name == "members":  # STEP/members/1/adapter
        step = step.parent.parent
    own = step / "base"
    if not Path(named).is_dir() and (own / "config.json").is_file():
        return str(own)
    found = find_base(named, [step.parent])
    if found is None:
        raise FileNotFoundError(
            f"{named}, the base under {weights}, is not there; say with base where it is."
        )
    return found
