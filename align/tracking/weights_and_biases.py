"""A step's numbers in Weights & Biases: the only importer of wandb."""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from align.config import ConfigError, Wandb
from align.tracking.plain import plain


class WandbTracker:
    """A Weights & Biases run for one step: grouped by pipeline, named after the step.

    `run_id` depends only on what the step is, so that a resumed step continues the same run. The
    run's files are below `folder/wandb`; an offline run is sent later with `wandb sync`. The
    library is imported here and nowhere else. Never asks for a login.
    Raises ConfigError if the mode is `online` and there is no key.
    """

    def __init__(
        self,
        section: Wandb,
        group: str,
        step_name: str,
        kind: str,
        config: dict[str, Any],
        folder: Path,
        run_id: str,
    ) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        mode = wandb_mode(section)
        self._wandb = wandb
        self._step = 0
        self._run = wandb.init(
            project=section.project,
            entity=section.entity,
            group=group,
            name=step_name,
            job_type=kind,
            id=run_id,
            # Offline there is no server to ask; `wandb sync --append` joins the parts by their id.
            resume="allow" if mode == "online" else None,
            config=config,
            dir=str(folder),
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        if mode == "online":
            print(f"{step_name}  W&B {self._run.url}", file=sys.stderr, flush=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step = step
        self._run.log(dict(metrics), step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns: list[Any] = list(dict.fromkeys(column for row in rows for column in row))
        data: list[Any] = [[plain(row.get(column)) for column in columns] for row in rows]
        # With its step: without one, wandb would close the step and drop what comes to it later.
        self._run.log({name: self._wandb.Table(columns=columns, data=data)}, step=self._step)

    def finish(self, metrics: Mapping[str, float]) -> None:
        self._run.summary.update(dict(metrics))
        self._run.finish()


WandbMode = Literal["online", "offline", "disabled"]


def wandb_mode(section: Wandb) -> WandbMode:
    """`online`, `offline` or what WANDB_MODE says; `auto` is online only when a key is present."""
    if section.mode == "offline":
        return "offline"
    if section.mode == "online":
        if not _has_wandb_key():
            raise ConfigError(
                "tracking.wandb.mode is 'online', but there is no key; set WANDB_API_KEY, run "
                "`wandb login`, or use mode: offline."
            )
        return "online"
    asked = os.environ.get("WANDB_MODE")
    if asked == "disabled" or asked == "offline":
        return asked
    return "online" if _has_wandb_key() else "offline"


def _has_wandb_key() -> bool:
    """Whether wandb would find a key in the environment or in the netrc file (it is not kept)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for file in files:
        try:
            if host and netrc.netrc(os.path.expanduser(file)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
