"""What the commands of `align` share: options of all of them, and checks before anything loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from align.config import ConfigError

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def check_folder(folder: Path) -> None:
    """Raises ConfigError before anything heavy is imported."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder.")
