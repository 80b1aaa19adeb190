"""SIGTERM and --quiet: how a run is ended, and how it is kept from talking."""

from __future__ import annotations

import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from align import progress, quiet
from align.cli import main
from align.interrupts import terminable

CONFIG = """
name: small
output_dir: {folder}/run
data: {{pairs: {{path: "builtin:demonstrations"}}}}
steps: {{sft: {{kind: sft, data: pairs}}}}
"""


def test_sigterm_ends_a_block_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_launcher_s_processes_are_left_to_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGTERM)
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Of each run, whether it was silent and whether libraries may talk; then it is terminated."""
    found: list[Any] = []

    class Pipeline:
        def __init__(self, config: Any):
            pass

        def run(self, **_: Any) -> None:
            found.append((progress.is_silent(), quiet._debug))
            os.kill(os.getpid(), signal.SIGTERM)

    module = types.ModuleType("align.pipeline")
    module.__dict__.update(Pipeline=Pipeline, main_process=lambda: True)
    monkeypatch.setitem(sys.modules, "align.pipeline", module)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return found


def test_run_takes_quiet_and_debug_and_says_how_to_go_on(
    seen: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(folder=tmp_path))
    for options in ([], ["--quiet"], ["--debug"], []):
        assert main(["run", str(path), *options]) == 130
    assert seen == [(False, False), (True, False), (False, True), (False, False)]
    sentence = "Interrupted; run the same command again to go on."
    assert capsys.readouterr().err.split("\n").count(sentence) == 4
