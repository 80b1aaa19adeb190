"""The command of `align` that sets up where a run is watched: dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from align.cli_options import Debug, check_folder
from align.console import say


def dashboard(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    entity: Annotated[
        str | None, typer.Option(help="Team or user; the configuration's, or the key's own.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Project; the configuration's.")] = None,
    print_: Annotated[
        bool, typer.Option("--print", help="Print the specification as JSON and save nothing.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Save a Weights & Biases workspace with the panels that matter for a run."""
    check_folder(run_dir)
    from align.tracking.dashboard import print_dashboard, save_dashboard

    if print_:
        print(print_dashboard(run_dir, entity, project))
    else:
        say(f"Dashboard: {save_dashboard(run_dir, entity, project)}")
