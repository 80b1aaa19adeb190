"""A step's numbers in Weights & Biases: the only importer of wandb.

A step is one run, whose id depends only on what the step is. A step that starts again replaces
what its run held. One that goes on from a checkpoint continues it: online, lines that the server
has already are kept and not sent again (on a CPU the ones that come again are the same), and those
it has missed are sent from the run folder. Offline, a file that was cut off by a kill may hold
nothing at all, and of two files with one id `wandb sync` keeps the later. So the run is written
anew from the run folder into one file, and the one before it, if it was never sent, is removed.
"""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from align.config import ConfigError, Wandb
from align.tracking.files import ALERTS, METRICS, read_lines, read_tables
from align.tracking.lineage import Material
from align.tracking.plain import plain
from align.tracking.protocol import Level

AXIS = "step"
"""Optimiser step or PPO iteration, as in `metrics.jsonl`: what panels are drawn over."""
PATIENCE = 15
"""Seconds after which a service that does not answer is one that cannot be had."""
LEVELS = {"info": "INFO", "warning": "WARN", "error": "ERROR"}
TITLE = 63
"""Characters of an alert's title, at most."""
log = logging.getLogger("align")
_begun: dict[str, Any] = {}
"""Runs of this process that have not ended, by their id"""


class WandbTracker:
    """A Weights & Biases run for one step: grouped by pipeline, named after the step.

    `config` is shown with the run; `used` is what the step stands on, and `makes` what it makes,
    given its headline metrics. Tables grow: each time, all their rows are logged under their name.
    The run's files are below `folder/wandb`; an offline run is sent later with `wandb sync`. Never
    asks for a login.
    Raises ConfigError if the run cannot begin as the configuration wants it.
    """

    def __init__(
        self,
        section: Wandb,
        group: str,
        step_name: str,
        kind: str,
        config: Mapping[str, Any],
        folder: Path,
        run_id: str,
        used: Sequence[Material] = (),
        makes: Callable[[Mapping[str, float]], Material] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._step_name = step_name
        self._folder = folder
        self._run = start_run(
            section, project=section.project, entity=section.entity, group=group, name=step_name,
            job_type=kind, id=run_id, config=dict(config), dir=str(folder.absolute()),
            # Where there are lines, the step goes on; without them it replaces what its run held.
            resume="allow" if read_lines(folder / f"{METRICS}.jsonl") else None,
        )  # fmt: skip
        self._makes = makes
        self._step = 0
        self._first = self._run.starting_step
        """What comes before it, the server has"""
        self._rows: dict[str, list[Mapping[str, Any]]] = {}
        self._due: set[str] = set()
        """Tables with rows that are not logged yet"""
        lines = [] if self._run.offline else read_lines(folder / f"{ALERTS}.jsonl")
        self._sent = {(line["title"], line["text"]) for line in lines}
        self._run.define_metric(AXIS, hidden=True)
        self._run.define_metric("*", step_metric=AXIS)
        for material in used:
            self._use(material)
        if not self._run.offline:
            print(f"{step_name}  W&B {self._run.url}", file=sys.stderr, flush=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step = step
        self._write(metrics)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self._rows.setdefault(name, []).extend(rows)
            self._due.add(name)
            self._write({})

    def alert(self, title: str, text: str, level: Level) -> None:
        if (title, text) not in self._sent:
            self._sent.add((title, text))
            self._alert(title, text, level)

    def finish(self, metrics: Mapping[str, float]) -> None:
        if self._due:
            self._step = max(self._step, self._first)
            self._write({})
        self._run.summary.update(dict(metrics))
        if self._makes is not None:
            self._run.log_artifact(self._artifact(self._makes(metrics), "mutable"))
        self._end(exit_code=0)

    def fail(self, text: str) -> None:
        self._alert("failed", text, "error")  # each time, whether it failed so before or not
        self._end(exit_code=1)

    def _alert(self, title: str, text: str, level: Level) -> None:
        self._run.alert(f"{self._step_name}: {title}"[:TITLE], text, level=LEVELS[level])

    def _end(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)
        _begun.pop(self._run.id, None)

    def position(self) -> dict[str, int]:
        """Nothing: what it would go back to stands in the run folder."""
        return {}

    def rewind(self, position: Mapping[str, int]) -> None:
        """Writes what the run folder holds (the files that were cut back before) and the run does
        not; `position` says nothing to it."""
        self._rows = {name: list(rows) for name, rows in read_tables(self._folder).items()}
        lines = read_lines(self._folder / f"{METRICS}.jsonl")
        for left, line in zip(reversed(range(len(lines))), lines, strict=True):
            if left == 0:
                self._due = {name for name, rows in self._rows.items() if rows}
            self._step, when = line.pop("step"), line.pop("time")
            known = {name: math.nan if v is None else v for name, v in line.items()}
            self._write(known | {"_timestamp": when})
        if self._run.offline:
            for line in read_lines(self._folder / f"{ALERTS}.jsonl"):
                self.alert(line["title"], line["text"], line["level"])
            _remove_unsent(Path(self._run.dir).parent, self._run.id)

    def _write(self, values: Mapping[str, Any]) -> None:
        """A line at the step that was logged last, unless the server has it: with the tables that
        are due."""
        if self._step < self._first:
            return
        tables = {name: _table(self._rows[name]) for name in sorted(self._due)}
        self._due.clear()
        if values or tables:
            # Always with its step: without one, wandb would drop what comes to that step later.
            self._run.log({**values, **tables, AXIS: self._step}, step=self._step)

    def _use(self, material: Material) -> None:
        artifact = self._artifact(material, "immutable")
        if self._run.offline:
            # `use_artifact` refuses without a server, but what it does with an artifact that is
            # not there yet can be written down: logged (equal ones are one) and then used.
            self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        else:
            self._run.use_artifact(artifact)

    def _artifact(self, material: Material, policy: Literal["mutable", "immutable"]) -> Any:
        """`immutable` files are sent from where they lie, others from a copy that wandb makes."""
        import wandb

        artifact = wandb.Artifact(material.name, material.type, metadata=plain(material.metadata))
        with artifact.new_file("identity.json") as file:
            json.dump(material.identity, file, sort_keys=True)
        for name, path in material.files.items():
            artifact.add_file(str(path), name=name, policy=policy)
        return artifact


def start_run(section: Wandb, **arguments: Any) -> Any:
    """A run in the mode that the section asks for. Raises ConfigError if it cannot begin."""
    import wandb

    mode = wandb_mode(section)
    if mode == "online" and section.mode == "auto" and (why := _unreachable()) is not None:
        log.warning("W&B cannot be had (%s): the run is kept here, for `wandb sync`", why)
        mode = "offline"
    if mode == "offline":
        arguments["resume"] = None  # there is no server to ask
    if (left := _begun.pop(arguments["id"], None)) is not None:
        left.finish(exit_code=1)  # of a step that was interrupted; no two runs may have one id
    # Of git wandb would also send what differs from the commit, and where the repository is.
    commit = (arguments["config"].get("git") or {}).get("commit")
    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, git_commit=commit,
        # The host's name, and the command with every folder of this machine; `config` says it all.
        x_disable_meta=True, host="",
    )  # fmt: skip
    try:
        run = wandb.init(mode=mode, settings=settings, reinit="create_new", **arguments)
    except (wandb.Error, OSError, ValueError) as error:
        raise ConfigError(
            f"tracking.wandb: W&B cannot begin a run: {_sentence(error)}. Use mode: offline to "
            "keep it here, for `wandb sync` later."
        ) from error
    _begun[arguments["id"]] = run
    return run


def _unreachable() -> str | None:
    """Why the service cannot be used with the key that there is; None if it can."""
    import wandb

    try:
        if wandb.Api(timeout=PATIENCE).viewer is None:
            return "it does not know the key"
    except (wandb.Error, ValueError) as error:
        return _sentence(error)
    return None


WandbMode = Literal["online", "offline", "disabled"]


def wandb_mode(section: Wandb) -> WandbMode:
    """The section's mode, or what WANDB_MODE says; `auto` is online only when a key is present.

    Raises ConfigError if it is `online` and there is no key.
    """
    if section.mode == "online":
        if not has_wandb_key():
            raise ConfigError(
                "tracking.wandb.mode is 'online', but there is no key; set WANDB_API_KEY, run "
                "`wandb login`, or use mode: offline."
            )
        return "online"
    if section.mode != "auto":
        return section.mode
    asked = os.environ.get("WANDB_MODE")
    if asked == "disabled":
        return "disabled"
    if asked in ("offline", "dryrun"):  # its older name, which wandb still takes
        return "offline"
    return "online" if has_wandb_key() else "offline"


def has_wandb_key() -> bool:
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


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """All rows, in the columns that any of them has; what is no number and no text, as JSON."""
    import wandb

    columns: list[Any] = list(dict.fromkeys(column for row in rows for column in row))
    data: list[Any] = [[_cell(plain(row.get(column))) for column in columns] for row in rows]
    return wandb.Table(columns=columns, data=data)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value


def _remove_unsent(current: Path, run_id: str) -> None:
    """Removes the offline files of earlier parts of a run that were never sent."""
    for place in current.parent.glob(f"offline-run-*-{run_id}*"):
        if place != current and not any(place.glob("*.synced")):
            shutil.rmtree(place)


def _sentence(error: Exception) -> str:
    """The first line of what wandb says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
