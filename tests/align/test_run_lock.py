"""Two runs in one folder: the second is refused, and the first goes on alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.cli import main
from align.config import ConfigError
from align.run_lock import alone_in

HOLDER = """
import sys
from pathlib import Path
from align.run_lock import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_until_its_process_ends(tmp_path: Path, capsys: Any):
    folder, config = tmp_path / "run", tmp_path / "run.yaml"
    config.write_text(
        f"name: small\noutput_dir: {folder}\n"
        'data: {pairs: {path: "builtin:demonstrations"}}\n'
        "steps: {sft: {kind: sft, data: pairs}}\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert main(["run", str(config)]) == 2
        assert capsys.readouterr().err == (
            f"Another run is at work in output_dir '{folder}'. Wait for its end, or name another "
            "folder.\n"
        )
        assert list(folder.iterdir()) == []  # nothing was written beside the first
    finally:
        holder.kill()  # as a crash would
        holder.communicate()
    with alone_in(folder):
        pass


def test_in_one_process_the_second_is_refused_and_a_later_one_is_not(tmp_path: Path):
    with alone_in(tmp_path), pytest.raises(ConfigError, match="Another run"), alone_in(tmp_path):
        pytest.fail("both held it")
    with alone_in(tmp_path):
        (tmp_path / "run.json").write_text("{}")
    assert (tmp_path / "run.json").is_file()


def test_only_a_folder_made_for_nothing_is_removed(tmp_path: Path):
    before, made = tmp_path / "before", tmp_path / "made"
    before.mkdir()
    for folder in (before, made):
        with alone_in(folder):
            assert folder.is_dir()
    assert before.is_dir()
    assert not made.exists()
