"""What the commands of `align` share: options of all of them, and checks before anything loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from align.config import ConfigError

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it is there.")]


def check_new(option: str, output: Path, force: bool) -> None:
    """Raises ConfigError for an output that is a folder, or is there and may not be replaced."""
    if output.is_dir():
        raise ConfigError(f"{option}: {output} is a folder; name a file.")
    if output.exists() and not force:
        raise ConfigError(f"{option}: {output} is there already; --force replaces it.")


def check_folder(folder: Path) -> None:
    """Raises ConfigError before anything heavy is imported."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, not a folder.")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder.")


def find_device(name: str | None) -> str:
    """The device to compute on. Raises ConfigError for one that is unknown or not here."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name} is no device; write cpu, cuda or cuda:0.") from None
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["it is not there"])[0].rstrip(".")
        raise ConfigError(f"--device {name} cannot be used here: {reason}.") from error
    return name
