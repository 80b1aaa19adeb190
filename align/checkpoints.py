"""Checkpoints inside a step, so that a killed run goes on as if nothing had happened.

A checkpoint is a folder `<step>/checkpoints/<number>/`: tensors in safetensors, the rest in JSON,
each with its checksum, and no pickle. It is written aside, synced and renamed, and the last two
are kept, so that a kill at any moment leaves a whole one. It names the fingerprint of its step;
that of another configuration is never used. A step that ends removes them all.

ppo, reward and dpo have them, also under DeepSpeed (align/sharded_state.py), in the same form, so
that any number of ranks goes on with what any other wrote. pretrain and sft (trl's own loop) start
again when they are interrupted. On a CPU the resumed run equals an uninterrupted one to the last
bit, but for what a clock measures.

Importing this module does not load torch: `align plan` asks for the newest checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.artifacts import hash_files, write_json
from align.tracking import Rewindable

if TYPE_CHECKING:
    from torch import Tensor

    from align.engine import Engine
    from align.training import Training

FORMAT = 1
"""Of a checkpoint. Raised when an older one must not be resumed from."""
FOLDER, RECORD, TENSORS = "checkpoints", "state.json", "tensors.safetensors"
KEPT = 2
RESUMABLE = ("reward", "dpo", "ppo")
"""Kinds of steps that write checkpoints."""
log = logging.getLogger("align")


class DamagedCheckpoint(RuntimeError):
    """A checkpoint that is not what was written; the message says in what."""


@dataclass(frozen=True)
class Checkpoint:
    """What a step goes on from."""

    number: int = 0
    """Optimiser steps or PPO iterations that are done; 0: there is no checkpoint"""
    state: dict[str, Any] = field(default_factory=dict)
    """What the stage put in, the same on all ranks"""
    ranks: tuple[Any, ...] = ()
    """What each rank put in for itself, by rank of the run that wrote it"""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """What the stage put in besides, the same on all ranks"""


@dataclass(frozen=True)
class Record:
    """A checkpoint's JSON, without its tensors."""

    path: Path
    fingerprint: str
    number: int
    unit: str
    """What `number` counts: "step" or "iteration" """
    seconds: float
    """That the step had taken by then, over all its runs"""
    files: dict[str, int]
    """Bytes of each file that the step's trackers had written"""
    tensors: str
    """sha256 of the tensors' file"""
    size: int
    """of the tensors' file, bytes"""
    world_size: int
    state: dict[str, Any]
    ranks: list[Any]

    @classmethod
    def read(cls, path: Path) -> Record:
        """Raises DamagedCheckpoint if the folder is not whole; the tensors are not read."""
        try:
            record = json.loads((path / RECORD).read_text(encoding="utf-8"))
            digest = record.pop("digest")
            if digest != _digest(record):
                raise DamagedCheckpoint(f"{RECORD} has changed")
            if record.pop("format") != FORMAT:
                raise DamagedCheckpoint("it is of another version of the toolkit")
            found = cls(path=path, **record)
            if (path / TENSORS).stat().st_size != found.size:
                raise DamagedCheckpoint(f"{TENSORS} is not of {found.size} bytes")
        except FileNotFoundError as error:
            raise DamagedCheckpoint(f"{Path(str(error.filename)).name} is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DamagedCheckpoint(f"{RECORD} cannot be read") from None
        return found

    def check_tensors(self) -> None:
        """Raises DamagedCheckpoint if their file is not the one that was written."""
        if _hash(self.path / TENSORS) != self.tensors:
            raise DamagedCheckpoint(f"{TENSORS} has changed")


def newest(folder: Path, fingerprint: str) -> Record | None:
    """The newest checkpoint of a step's folder that is whole and of this fingerprint."""
    for path in _numbered(folder / FOLDER):
        try:
            record = Record.read(path)
        except DamagedCheckpoint:
            continue
        if record.fingerprint == fingerprint:
            return record
    return None


def remove(folder: Path) -> None:
    """Removes all checkpoints of a step's folder."""
    if (folder / FOLDER).is_dir():
        shutil.rmtree(folder / FOLDER)


class Checkpoints:
    """Kept nowhere: a step that has none, and a loop outside a pipeline, start from the start."""

    def number(self) -> int:
        """Of the checkpoint that `restore` would go on from; 0 if there is none."""
        return 0

    def restore(self, training: Training) -> Checkpoint:
        """Puts `training` where it was; the number is 0 if there is nothing to go on from."""
        return Checkpoint()

    def save(
        self,
        number: int,
        training: Training,
        state: Mapping[str, Any],
        *,
        mine: Any = None,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Writes a checkpoint: `training`, and what the stage puts in besides. `state` (JSON) and
        `tensors` are the same on all ranks, `mine` (JSON) is this rank's own."""


class StepCheckpoints(Checkpoints):
    """Kept in a step's folder: written by rank 0, read by all ranks.

    `unit` is what the numbers count, `seconds` what the step has taken in earlier runs.
    """

    def __init__(
        self, engine: Engine, folder: Path, name: str, fingerprint: str, unit: str, tracker: Any,
        seconds: float = 0.0,
    ):  # fmt: skip
        self._engine = engine
        self._folder = folder / FOLDER
        self._name = name
        self._fingerprint = fingerprint
        self._unit = unit
        self._tracker = tracker
        self._seconds = seconds
        self._started = time.monotonic()

    # --- reading ----------------------------------------------------------------------------------

    def number(self) -> int:
        path = self._engine.from_main(self._choose)
        return 0 if path is None else int(path.name)

    def restore(self, training: Training) -> Checkpoint:
        """The newest whole checkpoint of this step, put into `training`, the random state and the
        trackers' files.

        A damaged one is passed over with a line; so is one that does not fit the parameters.
        """
        path = self._engine.from_main(self._choose)
        if path is None:
            return Checkpoint()
        from safetensors.torch import load_file

        record = Record.read(path)
        tensors = load_file(path / TENSORS)
        try:
            training.restore(_below("training/", tensors))
        except ValueError as error:
            if self._engine.is_main:
                log.warning("%s starts again: its checkpoint does not fit: %s", self._name, error)
            self._cut_back({})
            return Checkpoint()
        self._set_random(_below("random/", tensors), record.world_size)
        self._cut_back(record.files)
        if self._engine.is_main:
            log.warning("%s resumes after %s %d", self._name, self._unit, record.number)
        own = _below("stage/", tensors)
        return Checkpoint(record.number, record.state, tuple(record.ranks), own)

    def _choose(self) -> Path | None:
        """The folder to resume from; those that cannot be used are removed, with a line."""
        paths = _numbered(self._folder)
        for path in paths:
            try:
                record = Record.read(path)
                if record.fingerprint != self._fingerprint:
                    raise DamagedCheckpoint("it was made with other settings")
                record.check_tensors()
                return path
            except DamagedCheckpoint as error:
                log.warning("%s: checkpoint %d is not used: %s", self._name, int(path.name), error)
                shutil.rmtree(path, ignore_errors=True)
        if paths:
            log.warning("%s starts again: none of its checkpoints can be used", self._name)
            self._cut_back({})
        return None

    def _cut_back(self, files: Mapping[str, int]) -> None:
        if self._engine.is_main and isinstance(self._tracker, Rewindable):
            self._tracker.rewind(files)

    def _set_random(self, randoms: Mapping[str, Tensor], world_size: int) -> None:
        """Torch's random state, which dropout draws from; of this rank, if there are as many."""
        import torch

        rank = self._engine.rank if world_size == self._engine.world_size else 0
        torch.set_rng_state(randoms[f"cpu/{rank}"])
        device = self._engine.device
        if device.type == "cuda" and f"cuda/{rank}" in randoms:
            torch.cuda.set_rng_state(randoms[f"cuda/{rank}"], device)

    # --- writing ----------------------------------------------------------------------------------

    def save(
        self,
        number: int,
        training: Training,
        state: Mapping[str, Any],
        *,
        mine: Any = None,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Writes the checkpoint `number` and keeps the one before it. Raises OSError."""
        found = {f"stage/{name}": tensor for name, tensor in (tensors or {}).items()}
        found |= {f"training/{name}": tensor for name, tensor in training.state().items()}
        for rank, states in enumerate(self._engine.gather([self._random()])):
            found |= {f"random/{device}/{rank}": tensor for device, tensor in states.items()}
        ranks = self._engine.gather([mine])
        self._engine.from_main(lambda: self._write(number, found, state, ranks))

    def _random(self) -> dict[str, Tensor]:
        import torch

        states = {"cpu": torch.get_rng_state()}
        if self._engine.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._engine.device)
        return states

    def _write(
        self, number: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], ranks: list[Any]
    ) -> None:
        files = self._tracker.position() if isinstance(self._tracker, Rewindable) else {}
        record = {
            "fingerprint": self._fingerprint,
            "number": number,
            "unit": self._unit,
            "seconds": self._seconds + time.monotonic() - self._started,
            "files": files,
            "world_size": self._engine.world_size,
            "state": dict(state),
            "ranks": ranks,
        }
        self._folder.mkdir(exist_ok=True)
        write(self._folder / f"{number:08d}", tensors, record)
        for old in _numbered(self._folder)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)


def write(target: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Writes a checkpoint's folder: whole or, if the process ends meanwhile, not at all."""
    from safetensors.torch import save_file

    temporary = target.with_name(f".{target.name}")
    for path in (temporary, target):
        shutil.rmtree(path, ignore_errors=True)
    temporary.mkdir()
    save_file(_apart(tensors), temporary / TENSORS)
    _sync(temporary / TENSORS)
    full: dict[str, Any] = {
        **record,
        "format": FORMAT,
        "tensors": _hash(temporary / TENSORS),
        "size": (temporary / TENSORS).stat().st_size,
    }
    write_json(temporary / RECORD, full | {"digest": _digest(full)})
    _sync(temporary)
    os.replace(temporary, target)
    _sync(target.parent)


def _below(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose name begins so, by the rest of it; copies, for a file's memory is not aligned as
    fast kernels want it."""
    return {n.removeprefix(start): t.clone() for n, t in tensors.items() if n.startswith(start)}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, each with memory of its own, which the format asks for."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def _numbered(folder: Path) -> list[Path]:
    """The checkpoints below a folder, the newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _digest(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _hash(path: Path) -> str:
    return hash_files({TENSORS: path})


def _sync(path: Path) -> None:
    """Waits until the file, or the folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
