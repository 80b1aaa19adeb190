"""How a command ends when it is told to from outside."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM, which `kill` and batch systems send, ends the command as Ctrl-C
    does: files are closed, the terminal is left as it was, and a sentence says how to go on.

    A second one ends it at once. Processes of a launcher are left to it: one that waits for others
    could not hear anyway.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if not alone or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt
