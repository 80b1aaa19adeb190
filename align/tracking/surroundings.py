"""What a run was made with: the command, versions, processes, device, and the state of the code."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from align.artifacts import versions


def surroundings() -> dict[str, Any]:
    """{"command", "versions", "world_size", "device", "git"} of this process, as plain JSON."""
    return {
        "command": without_home(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "versions": versions(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "device": _device(),
        "git": git_state(Path.cwd()),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """{"commit", "dirty"} of the repository around `folder`; None where there is none, or no git.

    `dirty` says whether a file that git follows differs from the commit.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changed)}


def without_home(value: Any) -> Any:
    """`value` (plain JSON) with the user's home folder written as ~ wherever a path begins."""
    if isinstance(value, str):
        home = str(Path.home())
        return value if len(home) < 2 else value.replace(f"{home}/", "~/")
    if isinstance(value, dict):
        return {key: without_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_home(inner) for inner in value]
    return value


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
