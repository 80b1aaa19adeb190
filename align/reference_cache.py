"""Log-probabilities of a reference, computed once and kept in the run folder.

A file holds one number a completion and is named after a fingerprint of all that these numbers
depend on, so that other epochs, another loss or beta, and a later run read it instead of asking
the reference again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from align.artifacts import fingerprint, hash_files
from align.roles import Roles
from align.stage import StageContext
from preference_data.batches import Group

FOLDER = "reference_logprobs"
WEIGHT_FILES = ("*.json", "*.safetensors", "*.bin")
log = logging.getLogger("align")


def reference_sums(
    context: StageContext,
    roles: Roles,
    groups: Sequence[Group],
    compute: Callable[[], list[Tensor]],
) -> list[Tensor]:
    """[K] log-probabilities of each group's completions under the step's reference, nats, float32.

    Read from the run folder, or made by `compute` (on all ranks, by group) and written there by
    rank 0. A file that is damaged or was made from something else is replaced.
    """
    engine = context.engine
    sizes = [len(group.completions) for group in groups]
    folder = Path(context.config.output_dir) / FOLDER
    # By rank 0 alone: the others need not see its disk.
    key = engine.from_main(lambda: _key(context, roles, groups))
    file = folder / f"{key}.safetensors"
    found = engine.from_main(lambda: _read(file, key, sum(sizes)))
    if found is not None:
        return list(found.split(sizes))
    sums = compute()
    engine.from_main(lambda: _write(file, key, torch.cat(sums)))
    return sums


def _key(context: StageContext, roles: Roles, groups: Sequence[Group]) -> str:
    """Changes with the reference's weights (by content, for a step run again may leave others
    under the same settings), how they are computed with, and every token."""
    base, own = Path(roles.base_path), context.weights_of(context.step.policy)
    return fingerprint(
        _contents(base) if base.is_dir() else [roles.base_path, _commit(roles)],
        _contents(own) if own is not None else None,
        context.config.base.model_dump(include={"revision", "dtype", "attention"}),
        context.engine.device.type,
        _tokens(groups),
    )


def _tokens(groups: Sequence[Group]) -> str:
    digest = hashlib.sha256()
    for group in groups:
        parts = (group.prompt, *group.completions)
        lengths = (len(parts), *map(len, parts))
        digest.update(array("q", (*lengths, *chain.from_iterable(parts))).tobytes())
    return digest.hexdigest()


def _contents(folder: Path) -> str:
    files = {path.name: path for pattern in WEIGHT_FILES for path in folder.glob(pattern)}
    files.pop("artifact.json", None)  # when the step ran, not what it made
    return hash_files(files)


def _commit(roles: Roles) -> str | None:
    """Which state of a hub model was loaded; a branch moves."""
    return getattr(roles.model.config, "_commit_hash", None)


def _read(file: Path, key: str, count: int) -> Tensor | None:
    """[count] the file's numbers, or None if there are none that can be trusted."""
    try:
        with safe_open(file, "pt") as opened:
            metadata, sums = opened.metadata() or {}, opened.get_tensor("logprobs")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError):
        metadata, sums = {}, torch.empty(0)
    if metadata.get("key") != key or sums.shape != (count,) or not bool(sums.isfinite().all()):
        log.warning("%s is damaged or foreign; the reference is computed again.", file)
        return None
    return sums


def _write(file: Path, key: str, sums: Tensor) -> None:
    """Writes atomically: a reader sees all of the file or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_file({"logprobs": sums.contiguous()}, temporary, metadata={"key": key})
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
