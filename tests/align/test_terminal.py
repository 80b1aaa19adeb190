"""What a person sees: the command line on a real terminal, and the same without one."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

pty = pytest.importorskip("pty")  # not on Windows

WITHIN = 120.0
"""Seconds to wait for something to be printed: a busy machine is no failure."""
CONFIG = """
name: seen
output_dir: {folder}/run
base: {{model: "builtin:tiny", architecture: {{hidden_size: 32, intermediate_size: 64,
        num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2}}}}
world: {{documents: 60, demonstrations: 10, items: 10, prompts: 10}}
data: {{text: {{path: "builtin:text"}}}}
steps:
  learn: {{kind: pretrain, data: text, train: {{max_steps: {steps}, train_batch_size: 4,
           max_length: 64, logging_steps: 2}}}}
"""


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)


class Terminal:
    """A process on a pseudo-terminal, and all that it has printed."""

    def __init__(self, *arguments: str, columns: int = 100, **environment: str) -> None:
        import fcntl
        import struct
        import termios

        self._screen, keyboard = pty.openpty()
        fcntl.ioctl(keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        known = {**os.environ, "TERM": "xterm-256color", "PYTHONUNBUFFERED": "1", **environment}
        known.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "align.cli", *arguments],
            stdin=keyboard, stdout=keyboard, stderr=keyboard, env=known,
            # What a shell runs in the background hears no Ctrl-C, and its children neither.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        os.close(keyboard)
        self.printed = ""
        self._at = 0

    def wait_for(self, pattern: str) -> str:
        """Reads on until the pattern was printed, after what was waited for before; what it is."""
        found = self._seen(pattern, WITHIN)
        assert found is not None, self.printed
        return found

    def interrupt(self, pattern: str) -> str:
        """Ctrl-C, again and again until the pattern was printed: what it is. Between its prompt and
        its wait for a key, input() hears of no signal."""
        for _ in range(60):
            self.process.send_signal(signal.SIGINT)
            if (found := self._seen(pattern, WITHIN / 60)) is not None:
                return found
        pytest.fail(self.printed)

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def end(self) -> int:
        """Reads all that is left; the exit code."""
        while self._read():
            pass
        return self.process.wait(WITHIN)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._screen)

    def _seen(self, pattern: str, seconds: float) -> str | None:
        end = time.monotonic() + seconds
        while (found := re.search(pattern, plain(self.printed)[self._at :])) is None:
            if (left := end - time.monotonic()) <= 0 or not self._read(left):
                return None
        self._at += found.end()
        return found.group()

    def _read(self, seconds: float = WITHIN) -> bool:
        try:
            if select.select([self._screen], [], [], seconds)[0]:
                new = os.read(self._screen, 65536)
                self.printed += new.decode(errors="replace")
                return bool(new)
        except OSError:  # Linux's way to say that nobody has the terminal open any more
            pass
        return False

    @property
    def cursor_is_shown(self) -> bool:
        return self.printed.rfind("\x1b[?25l") <= self.printed.rfind("\x1b[?25h")


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str, **options: Any) -> Terminal:
        opened.append(Terminal(*arguments, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.mark.slow
def test_a_run_on_a_terminal_has_a_bar_and_ends_sanely_and_goes_on_without_one(
    terminal: Callable[..., Terminal], tmp_path: Path
):
    """A run that is terminated says how to go on, with the cursor shown; the same into a pipe is
    plain text: no control character, no bar."""
    path = tmp_path / "seen.yaml"
    path.write_text(CONFIG.format(folder=tmp_path, steps=100_000))
    run = terminal("run", str(path))
    assert "━" in run.wait_for(r"learn › training.* [\d,]+/100,000 steps, [^\n]+ left")
    run.wait_for(r"learn +[\d,]+/100,000  loss \d")
    assert "Loading weights" not in run.printed
    assert run.cursor_is_shown  # also while it runs: a killed process could not bring it back
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 130
    assert plain(run.printed).rstrip().endswith("run the same command again to go on.")
    assert run.cursor_is_shown

    path.write_text(CONFIG.format(folder=tmp_path, steps=4))
    done = subprocess.run(
        [sys.executable, "-m", "align.cli", "run", str(path)],
        capture_output=True, text=True, check=True, timeout=WITHIN,
        env={**os.environ, "FORCE_COLOR": ""},
    )  # fmt: skip
    for text in (done.stdout, done.stderr):
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    lines = done.stderr.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("learn  ")] == [
        ["learn", "2/4"], ["learn", "4/4"], ["learn", "done"],
    ]  # fmt: skip
    assert "━" not in done.stderr
    header, step, report = done.stdout.splitlines()
    assert header.split()[:2] == ["step", "kind"] and step.split()[:2] == ["learn", "pretrain"]
    assert report == f"Report: {tmp_path / 'run' / 'report.html'}"


@pytest.fixture
def talker(tiny_folder: Path, renderer: Any, tmp_path: Path) -> Path:
    """A saved policy that can say nothing but "a" and "b", and so never ends an answer.

    Its head is zero but for two rows that are each other's opposites: one of them is the likeliest
    token, whatever a machine's rounding makes of the hidden states.
    """
    from align.base import load_base
    from align.config import Base, Lora
    from align.roles import Roles

    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=False)
    a, b = renderer.tokenizer.convert_tokens_to_ids(["a", "b"])
    with torch.no_grad():
        row = model.get_input_embeddings().weight[a]
        model.lm_head.weight.zero_()
        model.lm_head.weight[a], model.lm_head.weight[b] = row, -row
    model.save_pretrained(folder)
    base = load_base(str(folder), Base(model=str(folder)), torch.device("cpu"))
    roles = Roles(base, renderer, Lora(r=4, alpha=8), str(folder))
    roles.add("policy", fresh=True, trainable=True)
    roles.save("policy", tmp_path / "ppo")
    return tmp_path / "ppo"


@pytest.mark.slow
def test_a_talk_in_a_terminal_streams_and_ctrl_c_stops_an_answer(
    terminal: Callable[..., Terminal], talker: Path
):
    """The likeliest token again and again: 900 of them take long enough to be stopped."""
    talk = terminal("chat", str(talker), "--temperature", "0", "--max-new-tokens", "900")
    talk.wait_for("Talking to ppo. /help shows the commands, Ctrl-D ends.")
    talk.wait_for("> ")
    for _ in range(10):  # a machine at work elsewhere may let an answer end before it hears
        talk.type("What is the capital of France?\n")
        talk.wait_for(r"France\?\s+[ab]")  # the first piece of the answer
        if "Stopped." in talk.interrupt(r"Stopped\.\s+> |\n> \s*> "):
            break
    else:
        pytest.fail("no answer was stopped")
    talk.interrupt("> ")  # at the prompt it empties the line
    talk.type("/undo\n")
    talk.wait_for(r"Taken back: What is the capital of France\?\s+> ")  # only then it reads keys
    talk.type("\x04")
    assert talk.end() == 0


def test_a_dumb_terminal_has_no_bar(monkeypatch: pytest.MonkeyPatch):
    from align import progress

    class Screen:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Screen())
    for term, drawn in (("xterm", True), ("dumb", False)):
        monkeypatch.setenv("TERM", term)
        assert progress.on_terminal() == drawn
