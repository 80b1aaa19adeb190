"""What a step leaves behind: a folder whose `artifact.json` is written atomically, last.

A folder without `artifact.json` is an interrupted step, whatever else it holds; a folder with one
is complete and was proved by reloading. Its fingerprint says what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from reward_models.folders import member_folders, weights_folder

FORMAT_VERSION = 2
"""Of the run folder. Raised when an older artifact must not be taken for a current one."""
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed")


@dataclass(frozen=True)
class Rows:
    """Row accounting of a step: `in` = `out` + `quarantined`."""

    rows_in: int
    rows_out: int
    quarantined: int = 0

    def to_json(self) -> dict[str, int]:
        return {"in": self.rows_in, "out": self.rows_out, "quarantined": self.quarantined}


@dataclass(frozen=True)
class Artifact:
    """A finished step.

    `adapter` and `model` are folders below `path`: a PEFT adapter on `base`, or whole weights.
    `base` is where the Transformer under the adapter was loaded from.
    """

    name: str
    kind: str
    path: Path
    fingerprint: str
    inputs: dict[str, str]
    """Fingerprint of every artifact this one was made from, by name."""
    base: str | None = None
    seconds: float = 0.0
    rows: Rows | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """The step's section of the configuration, which may be another one since."""
    files: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the files that the settings name, by option: a function's is its content."""

    @property
    def adapter(self) -> Path | None:
        folder = self.path / "adapter"
        return folder if folder.is_dir() else None

    @property
    def model(self) -> Path | None:
        folder = self.path / "model"
        return folder if folder.is_dir() else None

    @property
    def members(self) -> tuple[Path, ...]:
        """The `adapter/` or `model/` of each reward model of an ensemble; empty for any other."""
        return tuple(map(weights_folder, member_folders(self.path)))

    def save(self) -> None:
        """Writes `artifact.json`, which makes the folder complete."""
        record = asdict(self)
        del record["path"]
        record["rows"] = self.rows.to_json() if self.rows else None
        record["format"] = FORMAT_VERSION
        write_json(self.path / "artifact.json", record)

    @classmethod
    def load(cls, path: Path) -> Artifact | None:
        """The artifact in the folder `path`, or None if the step did not end."""
        record = read_json(path / "artifact.json")
        if record is None or record.pop("format") != FORMAT_VERSION:
            return None
        rows = record.pop("rows")
        return cls(
            path=path,
            rows=Rows(rows["in"], rows["out"], rows["quarantined"]) if rows else None,
            **record,
        )


def versions() -> dict[str, str]:
    """Of Python, this toolkit and the libraries whose numbers its own depend on."""
    found = {"python": platform.python_version()}
    for library in ("align-toolkit", *LIBRARIES):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_json(path: Path) -> Any:
    """What the file holds; None if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never a part."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text atomically: a temporary file in the same folder, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def fingerprint(*parts: Any) -> str:
    """16 hex digits that change with any of `parts` (plain data, in any key order)."""
    text = json.dumps([FORMAT_VERSION, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_files(files: Mapping[str, Path]) -> str:
    """sha256 of the contents, by name in order."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0")
        with files[name].open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
